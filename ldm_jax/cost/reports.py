"""Estimates and benchmarks in readable lines."""

from ldm_jax.base import tree
from ldm_jax.cost import convolutions

PARTS = ("train", "sample")  # of an estimate
BOUNDS = ("matrix", "memory", "collective")


def of_estimate(summary: dict) -> list[str]:
    """What `plan` prints of what estimates.estimate found."""
    lines = [
        f"{summary['config']} on {summary['topology']}: {summary['devices']} x {summary['chip']}, "
        f"batch {summary['batch_size']}, compiled with {summary['effort']} effort"
    ]
    for part in PARTS:
        if part in summary:
            lines += [f"  {part:6}  {line}" for line in _estimate_of_part(summary[part])]
    if "largest_batch" in summary:
        lines.append(f"  the largest batch that fits: {summary['largest_batch'] or 'none'}")
    return lines


def _estimate_of_part(estimate: dict) -> list[str]:
    """Lines about one program."""
    of = f" of {tree.size(estimate['memory_limit'])}" if estimate["memory_limit"] else ""
    verdict = "fits" if estimate["fits"] else "DOES NOT FIT"
    found = [f"{verdict}: {tree.size(estimate['memory']['peak'])}{of} a device, at most"]
    shown = {
        kind: size for kind, size in estimate["memory"].items() if size > 1024 and kind != "peak"
    }
    kinds = (f"{kind} {tree.size(size)}" for kind, size in shown.items())
    found.append("memory: " + ", ".join(kinds))
    if "collectives" not in estimate:
        return found
    if estimate["collectives"]:
        found += [
            f"{kind}: {c['count']}, {tree.size(c['bytes'])}, {c['overlapping']} overlap"
            for kind, c in estimate["collectives"].items()
        ]
    share = f"float32 {estimate['float32_matrix_share']:.1%}"
    if estimate["matrix_efficiency"] and "matrix_seconds" in estimate:
        share = (
            f"{estimate['matrix_efficiency']:.1%} of what the unit does, the rest fills up; {share}"
        )
    found.append(f"matrix work: {share}")
    copied = ", ".join(f"{kind} {tree.size(size)}" for kind, size in estimate["moves"].items())
    found.append(f"moves of their own: {copied or 'none'}")
    found += [
        f"  {tree.size(size)} at {where}" for where, size in estimate["largest_moves"].items()
    ]
    if "flops" in estimate:
        found.append(f"{estimate['flops'] / 1e12:.4g} TFLOP a step, all devices")
    known = [name for name in BOUNDS if f"{name}_seconds" in estimate]
    bounds = ", ".join(f"{name} {1e3 * estimate[f'{name}_seconds']:.3g} ms" for name in known)
    if "mfu_estimate" in estimate:
        found.append(
            f"roofline: {estimate['images_per_second_estimate']:.4g} images/s, MFU "
            f"{estimate['mfu_estimate']:.1%} ({bounds})"
        )
    elif known:
        found.append(f"at least: {bounds}; this compiler does not count what memory moves")
    found.append(f"compiled in {estimate['compile_seconds']:.0f} s")
    return found


def of_part(part: str, found: dict) -> list[str]:
    """What `bench` prints of one part that it timed."""
    if "left_out" in found:
        return [f"{part:10}  left out: {found['left_out']}"]
    clock = f"{1e3 * found['seconds']:.4g} ms"
    if "seconds_min" in found:
        clock += f" ({1e3 * found['seconds_min']:.4g} to {1e3 * found['seconds_max']:.4g})"
    words = [clock]
    if "images_per_second" in found:
        words.append(f"{found['images_per_second']:.4g} images/s")
    if "mfu" in found:
        words.append(f"{found['flops_per_second'] / 1e12:.4g} TFLOP/s, MFU {found['mfu']:.1%}")
    if "host_seconds" in found:
        words.append(f"host {1e3 * found['host_seconds']:.2g} ms")
    if "core_seconds_per_image" in found:
        words.append(f"{1e3 * found['core_seconds_per_image']:.3g} ms of a core for an image")
    if "compile_seconds" in found:
        again = found["compile_again_seconds"]
        words.append(f"compiled in {found['compile_seconds']:.1f} s, again in {again:.1f} s")
        words[-1] += f" (traced in {found['trace_seconds']:.1f} s)"
    if "arrays" in found:
        words.append(f"{found['arrays']} arrays")
    memory = found.get("peak_bytes", found.get("planned_bytes"))
    if memory:
        words.append(tree.size(memory))
    details = [_costly(one) for one in found.get("costliest", ())]
    details += convolutions.lines(found) if "shapes" in found else []
    return [f"{part:10}  {'; '.join(words)}", *details]


def _costly(found: dict) -> str:
    """One operation of a profile."""
    spent = found["seconds"] / found["calls"]
    rates = f"{found['bytes'] / spent / 1e9:.3g} GB/s, {found['flops'] / spent / 1e9:.4g} GFLOP/s"
    where = found["where"] or found["name"]
    return f"  {found['share']:6.1%}  {1e3 * spent:8.3g} ms  {rates:32}  {where}"


def of_pairs(found: dict) -> list[str]:
    """A line for each program that was timed in turns with the baseline's."""
    return [
        f"{name:10}  {1e3 * f['seconds']:.4g} ms, {f['baseline']} "
        f"{1e3 * f['baseline_seconds']:.4g} ms: "
        f"{f['ratio']:.2f} times as fast (outputs differ by {f['difference']:.1e})"
        for name, f in found.items()
    ]
