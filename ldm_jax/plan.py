"""Compiles a config for devices that are elsewhere, and says whether it fits and what it costs.

    python -m ldm_jax.plan --config=configs/ldm_celebahq.py --topology=v5e:2x4 [--config.key=value]
    python -m ldm_jax.plan --config=... --topology=cuda:8 --target=h200.txtpb
    python -m ldm_jax.plan --config=... --topology=cpu:8

What is compiled is the training step that `train` runs, sharded as the config says, and the program
that `sample` runs. Where weights or data are not there yet, their shapes do: --config.first_stage
may name a recipe. Exits with 2, and says what would help, where a device's memory does not suffice.
"""

import pathlib
import tempfile

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, platforms, tree, watch

# Of the compiler, under the name of jax before 0.12 and since.
EFFORTS = {
    "reduced": {"jax_exec_time_optimization_effort": -1.0, "jax_optimization_level": "O0"},
    "full": {"jax_exec_time_optimization_effort": 0.0, "jax_optimization_level": "UNKNOWN"},
}
PARTS = ("train", "sample")


def define(values):
    flags.DEFINE_string("config", None, "config file, path.py[:variant]", flag_values=values)
    flags.DEFINE_string(
        "topology", None, "v5e:4x4, v5p:2x2x1, v6e:2x4, cuda:8, cpu:8", flag_values=values
    )
    flags.DEFINE_string("target", "", "cuda: file that describes the GPU", flag_values=values)
    flags.DEFINE_list("parts", list(PARTS), "programs: train, sample", flag_values=values)
    flags.DEFINE_string("effort", "reduced", "of the compiler: reduced or full", flag_values=values)
    flags.DEFINE_bool("largest", False, "find the largest batch that fits", flag_values=values)
    flags.DEFINE_integer("sample_batch", 0, "images; a row a device by default", flag_values=values)
    flags.DEFINE_float(
        "memory_gib", 0.0, "of a device; by default what the compiler has", flag_values=values
    )
    flags.DEFINE_string("out", "", "folder for summary.json and the HLO", flag_values=values)


def main(args, overrides):
    cli.require(args, "config", "topology")
    if args.effort not in EFFORTS:
        raise errors.UsageError(f"--effort={args.effort}: use {' or '.join(EFFORTS)}.")
    if unknown := sorted(set(args.parts) - set(PARTS)):
        raise errors.UsageError(f"--parts={unknown[0]}: use {', '.join(PARTS)}.")
    from ldm_jax.cost import topologies

    config = config_lib.load(args.config, overrides)
    devices, chip = topologies.open_topology(args.topology, args.target)

    import jax

    from ldm_jax.build import checks
    from ldm_jax.cost import planner as planner_lib
    from ldm_jax.cost import programs

    seconds = watch.stopwatch()
    name = next(key for key in EFFORTS[args.effort] if hasattr(jax.config, key))
    jax.config.update(name, EFFORTS[args.effort][name])
    platforms.cache_compilations(pathlib.Path(tempfile.gettempdir()) / "ldm_jax_plan_cache")
    config = programs.with_data(config)
    mesh = checks.make_mesh(config, devices)
    planner = planner_lib.Planner(config, mesh, chip, args.memory_gib * 2**30)
    summary = {
        "config": args.config,
        "topology": args.topology,
        "devices": len(devices),
        "chip": chip.name,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "effort": args.effort,
    }
    if "train" in args.parts:
        summary["train"] = planner.training(config.batch_size)
    if "sample" in args.parts and config.stage == "diffuse":
        summary["sample"] = planner.sampling(args.sample_batch or len(devices))
    if args.largest and "train" in args.parts:
        summary["largest_batch"] = planner.largest(summary["train"])
    summary["seconds"] = seconds()
    report(summary)
    out = pathlib.Path(args.out) if args.out else None
    if out:
        for name, text in planner.texts.items():
            (out / f"{name}.hlo.txt").parent.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.hlo.txt").write_text(text)
        cli.finish(out / "summary.json", summary)
    misfits = [p for p in PARTS if not summary.get(p, {}).get("fits", True)]
    if misfits:
        raise errors.UsageError(advice(config, summary, misfits[0]))


def report(summary: dict):
    """The plan in a few readable lines."""
    print(
        f"{summary['config']} on {summary['topology']}: {summary['devices']} x {summary['chip']}, "
        f"batch {summary['batch_size']}, compiled with {summary['effort']} effort"
    )
    for part in PARTS:
        if part in summary:
            for line in lines(summary[part]):
                print(f"  {part:6}  {line}")
    if "largest_batch" in summary:
        print(f"  the largest batch that fits: {summary['largest_batch'] or 'none'}")


def lines(plan: dict) -> list[str]:
    """What to say of one program."""
    of = f" of {tree.size(plan['memory_limit'])}" if plan["memory_limit"] else ""
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    found = [f"{verdict}: {tree.size(plan['memory']['peak'])}{of} a device, at most"]
    shown = {kind: size for kind, size in plan["memory"].items() if size > 1024 and kind != "peak"}
    kinds = (f"{kind} {tree.size(size)}" for kind, size in shown.items())
    found.append("memory: " + ", ".join(kinds))
    if "collectives" not in plan:
        return found
    if plan["collectives"]:
        found += [
            f"{kind}: {c['count']}, {tree.size(c['bytes'])}, {c['overlapping']} overlap"
            for kind, c in plan["collectives"].items()
        ]
    share = f"float32 {plan['float32_matrix_share']:.1%}"
    if plan["matrix_efficiency"] and "matrix_seconds" in plan:
        share = f"{plan['matrix_efficiency']:.1%} of what the unit does, the rest fills up; {share}"
    found.append(f"matrix work: {share}")
    copied = ", ".join(f"{kind} {tree.size(size)}" for kind, size in plan["moves"].items())
    found.append(f"moves of their own: {copied or 'none'}")
    found += [f"  {tree.size(size)} at {where}" for where, size in plan["largest_moves"].items()]
    if "flops" in plan:
        found.append(f"{plan['flops'] / 1e12:.4g} TFLOP a step, all devices")
    known = [name for name in BOUNDS if f"{name}_seconds" in plan]
    bounds = ", ".join(f"{name} {1e3 * plan[f'{name}_seconds']:.3g} ms" for name in known)
    if "mfu_estimate" in plan:
        found.append(
            f"roofline: {plan['images_per_second_estimate']:.4g} images/s, MFU "
            f"{plan['mfu_estimate']:.1%} ({bounds})"
        )
    elif known:
        found.append(f"at least: {bounds}; this compiler does not count what memory moves")
    found.append(f"compiled in {plan['compile_seconds']:.0f} s")
    return found


BOUNDS = ("matrix", "memory", "collective")


def advice(config, summary, part) -> str:
    """What to do where memory does not suffice."""
    plan = summary[part]
    peak, limit = plan["memory"]["peak"], plan["memory_limit"]
    text = f"{part} does not fit: {tree.size(peak)} of {tree.size(limit)} a device"
    if part == "sample":
        return f"{text}: take a smaller --sample_batch."
    remedies = []
    devices = summary["devices"]
    if summary.get("largest_batch"):
        remedies.append(f"--config.batch_size={summary['largest_batch']}")
    elif config.batch_size > devices:
        remedies.append(f"--config.batch_size={max(devices, config.batch_size // 2)}")
        remedies.append(f"--config.accumulate={2 * config.accumulate}")
    if not config.model.get("remat", True):
        remedies.append("--config.model.remat=True")
    if summary["mesh"]["fsdp"] == 1 and devices > 1:
        remedies.append(f"--config.mesh.fsdp={devices} --config.mesh.data=1")
    return f"{text}: try {', or '.join(remedies) or 'a larger topology'}."


if __name__ == "__main__":
    cli.start(__doc__, define, main)
