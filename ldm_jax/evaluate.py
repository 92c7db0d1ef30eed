"""Measures a run on its held-out records, or a folder of samples.

    python -m ldm_jax.evaluate --run=RUN
    python -m ldm_jax.evaluate --samples=DIR [--reference=RUN --mobilenet=WEIGHTS.npz]

A run: the stage's own measures (PSNR, SSIM; the denoiser's error). Samples: class_accuracy where
the run was trained on the procedural scenes, whose checker reads shape and colour from pixels
alone; and fd_mobilenet, the Frechet distance on MobileNetV2 features to the training records of
--reference (never to be called FID). Writes summary.json.
"""

import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import errors

BATCH = 64


def define(values):
    flags.DEFINE_string("run", None, "workdir of a run", flag_values=values)
    flags.DEFINE_string("samples", None, "folder that `sample` wrote", flag_values=values)
    flags.DEFINE_string(
        "reference",
        None,
        "run whose data is the reference; the samples' own by default",
        flag_values=values,
    )
    flags.DEFINE_string("mobilenet", None, "weights for fd_mobilenet", flag_values=values)
    flags.DEFINE_integer(
        "reference_records", 5_000, "at most so many, for fd_mobilenet", flag_values=values
    )
    flags.DEFINE_string("out", None, "folder for summary.json", flag_values=values)


def main(args, overrides):
    if overrides:
        raise errors.UsageError("evaluate reads the run's own config; --config.* is for training.")
    if bool(args.run) == bool(args.samples):
        raise errors.UsageError("Give one of --run=RUN and --samples=DIR.")
    if args.run:
        out, summary = pathlib.Path(args.out or f"{args.run}/evaluation"), evaluate_run(args.run)
    else:
        out = pathlib.Path(args.out or f"{args.samples}/evaluation")
        summary = evaluate_samples(args)
    cli.finish(out / "summary.json", summary)


def evaluate_run(path) -> dict:
    """The stage's measures over all held-out records, with averaged weights."""
    import jax

    from ldm_jax import build, train
    from ldm_jax.base import shard
    from ldm_jax.engine import checkpoint
    from ldm_jax.engine import judge as judge_lib

    seconds = cli.stopwatch()
    path = pathlib.Path(path)
    config = build.read_config(path)
    source = build.open_source(config.data)
    mesh = shard.make_mesh()
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    params, step = checkpoint.read_params(path)
    cli.cache_compilations(path / "compilation_cache")
    if config.stage == "autoencode":
        stage = build.make_autoencode(config).stage()
    else:
        stage = train.second_stage(config, source, path)
    held_out = build.sources.holdout(source, config.data.holdout, train=False)
    with config.unlocked():
        config.eval.records = len(held_out)
    whole = shard.replicated(mesh)
    judge = judge_lib.Judge(
        stage,
        lambda: build.held_out_batches(config, held_out, stage.fields),
        jax.device_put(stage.frozen, whole),
        mesh,
    )
    values = judge(jax.device_put(params, whole))
    values = {name.removeprefix("val/"): value for name, value in values.items()}
    return (
        {"run": str(path), "step": step, "records": len(held_out)} | values | {"seconds": seconds()}
    )


def evaluate_samples(args) -> dict:
    """What can be measured of a folder of samples."""
    from ldm_jax import build
    from ldm_jax.jobs import job as job_lib

    seconds = cli.stopwatch()
    job = job_lib.open_job(args.samples)
    manifest = build.read_json(job.out / "manifest.json")
    config = build.read_config(args.reference or manifest["run"])
    summary = {"samples": str(job.out), "num": job.num, "manifest": manifest}
    if "labels" in manifest and config.data.source == "scenes":
        summary["class_accuracy"] = class_accuracy(job)
    if args.mobilenet:
        summary |= fd_mobilenet(config, job, args.mobilenet, args.reference_records)
    return summary | {"seconds": seconds()}


def class_accuracy(job) -> float:
    """Share of the images that show the shape and the colour they were asked for."""
    import numpy as np

    from ldm_jax.data import scene_checker

    hits = [
        scene_checker.check(images).class_id == np.array([row["class"] for row in rows])
        for images, rows in job.batches()
    ]
    return float(np.mean(np.concatenate(hits)))


def fd_mobilenet(config, job, weights, records: int) -> dict:
    """Frechet distance on MobileNetV2 features between the samples and the training records."""
    import numpy as np

    from ldm_jax import build
    from ldm_jax.metrics import features, frechet

    extract = features.EXTRACTORS.get("mobilenet")(weights)
    source = build.open_source(config.data)
    train = build.sources.holdout(source, config.data.holdout, train=True)
    count = min(records, len(train))
    with config.unlocked():
        config.eval.update(records=count, batch_size=BATCH)
    real = fake = frechet.Moments.empty(features.DIMENSIONS["mobilenet"])
    for batch in build.held_out_batches(config, train, ("image",)):
        real = real.update(np.asarray(extract(batch["image"]))[batch["mask"] > 0])
    for images, _ in job.batches():
        for i in range(0, len(images), BATCH):
            pixels = images[i : i + BATCH].astype(np.float32) / 127.5 - 1
            fake = fake.update(np.asarray(extract(pixels)))
    return {
        "fd_mobilenet": frechet.frechet_distance(real, fake),
        "fd_mobilenet_reference_records": count,
    }


if __name__ == "__main__":
    cli.start(__doc__, define, main)
