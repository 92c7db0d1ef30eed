"""Readable lines about estimates (`plan`) and benchmarks (`bench`)."""

from ldm_jax.base import tree
from ldm_jax.cost import convolutions, latency

PARTS = ("train", "sample", "encode", "decode")
BOUNDS = ("matrix", "memory", "collective")


def of_estimate(summary: dict) -> list[str]:
    """The lines that `plan` prints about the summary of an Estimator."""
    lines = [
        f"{summary['config']} on {summary['topology']}: {summary['devices']} x {summary['chip']}, "
        f"batch {summary['batch_size']}, compiled with {summary['effort']} effort"
    ]
    for part in PARTS:
        if part in summary:
            lines += [f"  {part:6}  {line}" for line in _of_program(summary[part])]
    if "largest_batch" in summary:
        lines.append(f"  the largest batch that fits: {summary['largest_batch'] or 'none'}")
    return lines


def _of_program(estimate: dict):
    memory, limit = estimate["memory"], estimate["memory_limit"]
    of = f" of {tree.size(limit)}" if limit else ""
    verdict = "fits" if estimate["fits"] else "DOES NOT FIT"
    yield f"{verdict}: {tree.size(memory['peak'])}{of} a device, at most"
    shown = {kind: size for kind, size in memory.items() if size > 1024 and kind != "peak"}
    yield f"memory: {_sizes(shown)}"
    if "collectives" not in estimate:
        return
    for kind, c in estimate["collectives"].items():
        yield f"{kind}: {c['count']}, {tree.size(c['bytes'])}, {c['overlapping']} overlap"
    known = [name for name in BOUNDS if f"{name}_seconds" in estimate]
    share = f"float32 {estimate['float32_matrix_share']:.1%}"
    if estimate["matrix_efficiency"] and known:
        share = f"{estimate['matrix_efficiency']:.1%} useful, the rest is padding; {share}"
    yield f"matrix work: {share}"
    yield f"copies and transposes: {_sizes(estimate['moves']) or 'none'}"
    for where, size in estimate["largest_moves"].items():
        yield f"  {tree.size(size)} at {where}"
    yield f"memory traffic: {tree.size(estimate['traffic'])}"
    for where, size in list(estimate["largest_traffic"].items())[:3]:
        yield f"  {tree.size(size)} at {where}"
    if "flops" in estimate:
        yield f"{estimate['flops'] / 1e12:.4g} TFLOP a step, all devices"
    bounds = ", ".join(f"{name} {1e3 * estimate[f'{name}_seconds']:.3g} ms" for name in known)
    if "mfu_estimate" in estimate:
        speed = f"{estimate['images_per_second_estimate']:.4g} images/s"
        yield f"roofline: {speed}, MFU {estimate['mfu_estimate']:.1%} ({bounds})"
    elif known:
        yield f"at least: {bounds}; the compiler does not count what memory moves here"
    yield f"compiled in {estimate['compile_seconds']:.0f} s"


def _sizes(sizes: dict) -> str:
    return ", ".join(f"{name} {tree.size(size)}" for name, size in sizes.items())


def of_part(part: str, found: dict) -> list[str]:
    """The lines that `bench` prints about one part."""
    if "left_out" in found:
        return [f"{part:10}  left out: {found['left_out']}"]
    if "batches" in found:
        return latency.lines(found)
    words = [f"{1e3 * found['seconds']:.4g} ms"]
    if "seconds_min" in found:
        words[0] += f" ({1e3 * found['seconds_min']:.4g} to {1e3 * found['seconds_max']:.4g})"
    if "images_per_second" in found:
        words.append(f"{found['images_per_second']:.4g} images/s")
    if "mfu" in found:
        words.append(f"{found['flops_per_second'] / 1e12:.4g} TFLOP/s, MFU {found['mfu']:.1%}")
    if "host_seconds" in found:
        words.append(f"host {1e3 * found['host_seconds']:.2g} ms")
    if "core_seconds_per_image" in found:
        words.append(f"{1e3 * found['core_seconds_per_image']:.3g} ms of a core for an image")
    if "compile_seconds" in found:
        again, traced = found["compile_again_seconds"], found["trace_seconds"]
        words.append(
            f"compiled in {found['compile_seconds']:.1f} s, from the cache in {again:.1f} s "
            f"(of which tracing {traced:.1f} s)"
        )
    if "arrays" in found:
        words.append(f"{found['arrays']} arrays")
    if memory := found.get("peak_bytes", found.get("planned_bytes")):
        words.append(tree.size(memory))
    details = [_costly(one) for one in found.get("costliest", ())]
    details += convolutions.lines(found) if "shapes" in found else []
    details += [_reader(name, one, found) for name, one in found.get("readers", {}).items()]
    return [f"{part:10}  {'; '.join(words)}", *details]


def _costly(found: dict) -> str:
    spent = found["seconds"] / found["calls"]
    rates = f"{found['bytes'] / spent / 1e9:.3g} GB/s, {found['flops'] / spent / 1e9:.4g} GFLOP/s"
    where = found["where"] or found["name"]
    return f"  {found['share']:6.1%}  {1e3 * spent:8.3g} ms  {rates:32}  {where}"


def _reader(name: str, other: dict, found: dict) -> str:
    if "left_out" in other:
        return f"  {name:10}  left out: {other['left_out']}"
    theirs, ours = other["core_seconds_per_image"], found["core_seconds_per_image"]
    return (
        f"  {name:10}  {1e3 * theirs:.3g} ms of a core for an image: ours reads "
        f"{theirs / ours:.2f} times as many (images differ by {other['difference']:.1e})"
    )


def of_pairs(found: dict) -> list[str]:
    """A line about each program that was compared with the baseline's."""
    return [
        f"{name:10}  {1e3 * f['seconds']:.4g} ms, {f['baseline']} "
        f"{1e3 * f['baseline_seconds']:.4g} ms: {f['ratio']:.2f} times as fast"
        f"{_of_both(f)} (outputs differ by {f['difference']:.1e})"
        for name, f in found.items()
    ]


def _of_both(found: dict) -> str:
    if "bytes" not in found:
        return ""
    return f"; {tree.size(found['bytes'])} against {tree.size(found['baseline_bytes'])}"
