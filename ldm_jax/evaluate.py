"""Measures what a run reconstructs or predicts, or a set of samples (docs/evaluation.md).

    python -m ldm_jax.evaluate --run=RUN [--weights=FILE]
    python -m ldm_jax.evaluate --samples=FOLDER|FILE.npz --reference=RUN|FOLDER|FILE.npz \\
        --features=inception --weights=FILE [--metrics=fd,kid,prc,dc,is,fd_infinity]

A run: the stage's own measures over all held-out records; of a first stage its latents as well,
and with --weights distances between images and reconstructions (rfid, rfd_mobilenet). Samples:
the figures of --metrics; class_accuracy where the run was trained on the procedural scenes, whose
checker reads shape and colour from pixels. Every figure comes with its protocol in summary.json;
--against=SUMMARY compares with another one, and refuses where the protocols differ.
"""

import json
import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import disk, errors, platforms, watch

DEFAULT = ("fd", "kid", "prc", "dc")


def define(values):
    flags.DEFINE_string("run", None, "workdir of a run", flag_values=values)
    flags.DEFINE_string(
        "samples", None, "folder that `sample` wrote, of images, or .npz", flag_values=values
    )
    flags.DEFINE_string(
        "summary", None, "finished evaluation, to compare with --against", flag_values=values
    )
    flags.DEFINE_string(
        "reference",
        None,
        "run, folder, .npz of images or statistics; the samples' own data by default",
        flag_values=values,
    )
    flags.DEFINE_string(
        "features", "mobilenet", "mobilenet, inception, inception_clean", flag_values=values
    )
    flags.DEFINE_string("weights", None, "file of the features' weights", flag_values=values)
    flags.DEFINE_list(
        "metrics", [], "of fd, kid, prc, dc, is, fd_infinity; the first four", flag_values=values
    )
    flags.DEFINE_integer(
        "reference_records", 50_000, "at most so many", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer(
        "bootstrap", 20, "rounds for the error of fd, 0 for none", lower_bound=0, flag_values=values
    )
    flags.DEFINE_list(
        "lpips", [], "BACKBONE,HEADS: weights for LPIPS of a first stage", flag_values=values
    )
    flags.DEFINE_string("against", None, "summary.json to compare with", flag_values=values)
    flags.DEFINE_string("out", None, "folder for summary.json", flag_values=values)


def main(args, overrides):
    if overrides:
        raise errors.UsageError("evaluate reads the run's own config; --config.* is for training.")
    given = [name for name in ("run", "samples", "summary") if args[name].value]
    if len(given) != 1:
        raise errors.UsageError("Give one of --run=RUN, --samples=PATH and --summary=FILE.")
    cli.mirror(args)
    other = read_summary(args.against, "--against") if args.against else None
    if args.summary:
        cli.require(args, "against")
        print(*_compare(read_summary(args.summary, "--summary"), other, args.against), sep="\n")
        return
    if args.run:
        out = args.out or f"{args.run}/evaluation"
    else:
        path = pathlib.Path(args.samples)
        out = args.out or (path if path.is_dir() else path.with_suffix("")) / "evaluation"
    cli.check_writable("--out", out)
    summary = evaluate_run(args, other) if args.run else evaluate_samples(args, other)
    lines = _compare(summary, other, args.against) if other else []
    cli.finish(pathlib.Path(out) / "summary.json", summary, lines)


def evaluate_run(args, other=None) -> dict:
    """The stage's measures over all held-out records, with averaged weights."""
    import jax

    from ldm_jax.base import shard
    from ldm_jax.build import objects as build
    from ldm_jax.engine import checkpoint
    from ldm_jax.evaluation import held_out as held_out_lib
    from ldm_jax.evaluation import measures, protocol
    from ldm_jax.training import latents as stages

    seconds = watch.stopwatch()
    path = pathlib.Path(args.run)
    config = build.read_config(path)
    first = config.stage == "autoencode"
    if not first and (args.weights or args.lpips):
        raise errors.UsageError(f"{path} is a second stage: sample from it, then --samples=FOLDER.")
    if args.lpips:
        config = _with_lpips(config, args.lpips)
    plan = measures.plan(args, DEFAULT) if args.weights else None
    source = build.open_source(config.data)
    mesh = shard.make_mesh()
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    held_out = build.sources.holdout(source, config.data.holdout, train=False)
    with config.unlocked():
        config.eval.records = len(held_out)
    data = {"fingerprint": held_out.fingerprint, "records": len(held_out), "crop": "center"}
    data |= {"size": [config.data.size] * 2, "interpolation": config.data.interpolation}
    params, step = checkpoint.read_params(path)
    subject = {"run": str(path), "step": step}
    lpips = [file for file in config.get("lpips", {}).values() if file]
    protocols = measures.protocol_of_run(plan, data, subject, lpips)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")

    platforms.cache_compilations(path / "compilation_cache")
    stage = stages.stage(config, source, path)
    whole = shard.replicated(mesh)
    batches = lambda: build.held_out_batches(config, held_out, stage.fields)
    weights, figures = jax.device_put((params, stage.frozen), whole), {}
    evaluator = held_out_lib.HeldOutRecords(stage, batches, mesh)
    for name, (mean, error) in evaluator.measure(*weights).items():
        figures |= {name: mean, f"{name}_std": error}
    latents = {}
    if first:
        codec, own = build.Codec(build.make_autoencoder(config)), params["autoencoder"]["model"]
        latents, distances = measures.of_first_stage(codec, own, batches, data, plan)
        figures |= distances
    summary = subject | {"records": len(held_out)}
    return summary | latents | measures.stored(figures, protocols) | {"seconds": seconds()}


def evaluate_samples(args, other=None) -> dict:
    """What can be measured of a set of samples."""
    from ldm_jax.evaluation import imagesets, measures

    seconds = watch.stopwatch()
    plan = measures.plan(args, DEFAULT) if args.weights or args.metrics else None
    samples = imagesets.open_set(args.samples, "--samples")
    manifest = disk.read_json(samples.job.out / "manifest.json") if samples.job else {}
    summary = {"samples": str(args.samples), "num": samples.count, "manifest": manifest}
    if "labels" in manifest and _of_scenes(manifest["run"]):
        summary["class_accuracy"] = class_accuracy(samples.job)
    if plan:
        reference = args.reference or manifest.get("run")
        summary |= measures.of_samples(samples, manifest, reference, plan, other)
    return summary | {"seconds": seconds()}


def class_accuracy(job) -> float:
    """Share of the images that show the shape and the colour they were asked for."""
    import numpy as np

    from ldm_jax.scenes import checker as scene_checker

    hits = [
        scene_checker.check(images).class_id == np.array([row["class"] for row in rows])
        for images, rows in job.batches()
    ]
    return float(np.mean(np.concatenate(hits)))


def read_summary(path, flag: str) -> dict:
    """A summary.json of this command, or the folder it lies in."""
    path = pathlib.Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise errors.UsageError(f"{flag}={path} is no summary.json of evaluate.") from e


def _compare(summary, other, name):
    from ldm_jax.evaluation import protocol

    return protocol.compare(summary, other, name)


def _of_scenes(run) -> bool:
    from ldm_jax.build import objects as build

    try:
        return build.read_config(run).data.source == "scenes"
    except errors.UsageError:  # the run is no longer there; its samples are
        return False


def _with_lpips(config, files):
    from ldm_jax.stages import autoencode

    if len(files) != 2:
        raise errors.UsageError(f"--lpips={','.join(files)}: give two files, BACKBONE,HEADS.")
    with config.unlocked():
        config.lpips.update(dict(zip(("backbone", "heads"), files)))
        # any weight makes the stage measure it
        config.loss.perceptual_weight = config.loss.perceptual_weight or 1.0
    autoencode.check(autoencode.Loss(**config.loss), True)
    return config


if __name__ == "__main__":
    cli.start(__doc__, define, main)
