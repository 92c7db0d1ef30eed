"""Times what a config does on the devices that are here, and says what share of their best it is.

    python -m ldm_jax.bench --config=configs/quickstart.py:ldm
    python -m ldm_jax.bench --config=configs/ldm_celebahq.py --batch_size=64 --against=diffusers
    python -m ldm_jax.bench --compare=old.json,new.json      # 1 where something became slower

Weights and batches are noise in the shapes that the config says, so nothing has to be trained or
there; only `data` reads records, and is left out where there are none. A second stage trains on
cached latents unless --images. MFU is the model's work, three times the forward pass, by the rate
of a large product measured in the same run (docs/performance.md).
"""

import json
import os
import pathlib
import tempfile

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, platforms, tree

USUAL = ("train", "sample", "encode", "decode", "data", "checkpoint")
PARTS = (*USUAL, "dispatch", "convolutions")


def define(values):
    flags.DEFINE_string("config", None, "config file, path.py[:variant]", flag_values=values)
    flags.DEFINE_list("parts", list(USUAL), ", ".join(PARTS), flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 0, "images; the config's by default", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("images", False, "train a second stage on images", flag_values=values)
    flags.DEFINE_integer("steps", None, "of the sampler; the config's else", flag_values=values)
    flags.DEFINE_float("guidance", None, "of the sampler; the config's else", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "of every clock", lower_bound=1, flag_values=values)
    flags.DEFINE_string("against", "", "diffusers: time it too, in turns", flag_values=values)
    flags.DEFINE_string(
        "profile", "", "folder for a trace of the training step", flag_values=values
    )
    flags.DEFINE_string("json", "", "file to write; bench.json", flag_values=values)
    flags.DEFINE_list("compare", [], "two such files: old,new", flag_values=values)
    flags.DEFINE_float(
        "tolerance", 1.1, "--compare: how many times slower is too slow", flag_values=values
    )


def main(args, overrides):
    if args.compare:
        return compare(args.compare, args.tolerance)
    cli.require(args, "config")
    if unknown := sorted(set(args.parts) - set(PARTS)):
        raise errors.UsageError(
            f"--parts={unknown[0]}: use some of {', '.join(PARTS)}"
            f"{errors.nearest(unknown[0], PARTS)}"
        )
    if args.against not in ("", "diffusers"):
        raise errors.UsageError(f"--against={args.against}: only diffusers is known.")
    config = config_lib.load(args.config, overrides)
    with config.unlocked():
        config.batch_size = args.batch_size or config.batch_size
        given = {"steps": args.steps, "guidance": args.guidance}
        if config.stage == "diffuse":
            config.sample.update({k: v for k, v in given.items() if v is not None})

    import jax

    from ldm_jax.build import checks
    from ldm_jax.cost import benchmarks, programs, timing

    config = programs.with_data(config)
    mesh = checks.make_mesh(config)
    rival = None
    if args.against:
        from ldm_jax.cost import rival as rival_lib

        rival = rival_lib.open_rival(config)
        pairs = rival.pairs()
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    summary = {
        "config": args.config,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "machine": {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
        "matmul": timing.matmul_rate(config.dtype if on_cpu else "bfloat16", args.repeats),
    }
    rate = summary["matmul"]["flops_per_second"] * mesh.size
    with tempfile.TemporaryDirectory() as folder:
        platforms.cache_compilations(pathlib.Path(folder) / "cache")
        bench = benchmarks.Bench(config, mesh, rate, args.repeats, not args.images, args.profile)
        for part in args.parts:
            if found := getattr(bench, part)():
                summary[part] = found
                for line in lines(part, found):
                    print(line, flush=True)
        if rival:
            summary["against"] = bench.against(rival, pairs)
            for line in ratios(summary["against"]):
                print(line, flush=True)
    cli.finish(args.json or "bench.json", summary)


def lines(part: str, found: dict) -> list[str]:
    """What to say of one part."""
    from ldm_jax.cost import convolutions

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
    details = [costly(one) for one in found.get("costliest", ())]
    details += convolutions.lines(found) if "shapes" in found else []
    return [f"{part:10}  {'; '.join(words)}", *details]


def costly(found: dict) -> str:
    """One operation of a profile."""
    spent = found["seconds"] / found["calls"]
    rates = f"{found['bytes'] / spent / 1e9:.3g} GB/s, {found['flops'] / spent / 1e9:.4g} GFLOP/s"
    where = found["where"] or found["name"]
    return f"  {found['share']:6.1%}  {1e3 * spent:8.3g} ms  {rates:32}  {where}"


def ratios(found: dict) -> list[str]:
    """What to say of both."""
    return [
        f"{name:10}  {1e3 * f['seconds']:.4g} ms, {f['rival']} {1e3 * f['rival_seconds']:.4g} ms: "
        f"{f['ratio']:.2f} times as fast (outputs differ by {f['difference']:.1e})"
        for name, f in found.items()
    ]


def compare(files, tolerance: float):
    """Raises RunError where a part of the second file is more than `tolerance` times slower."""
    if len(files) != 2:
        raise errors.UsageError("--compare wants two files: --compare=old.json,new.json")
    old, new = (read(file) for file in files)
    parts = [part for part in PARTS if "seconds" in old.get(part, {}) and part in new]
    if not parts:
        raise errors.UsageError(f"{files[0]} and {files[1]} have no timed part in common.")
    slower = []
    for part in parts:
        ratio = new[part]["seconds"] / old[part]["seconds"]
        print(f"{part:10}  {ratio:.3f} times the seconds")
        slower += [part] if ratio > tolerance else []
    if old["machine"] != new["machine"] or old["batch_size"] != new["batch_size"]:
        print("note: machines, versions or batches differ")
    if slower:
        raise errors.RunError(f"more than {tolerance} times slower: {', '.join(slower)}")


def read(file) -> dict:
    try:
        found = json.loads(pathlib.Path(file).read_text())
        return found if "machine" in found else found["not a benchmark"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise errors.UsageError(f"{file} is no file of bench --json ({e!r}).") from e


if __name__ == "__main__":
    cli.start(__doc__, define, main)
