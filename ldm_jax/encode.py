"""Encodes a data set once: the latent cache that a second stage trains from instead of images.

    python -m ldm_jax.encode --run=FIRST_STAGE_RUN --config=configs/NAME.py:ldm --out=DIR
    python -m ldm_jax.train --config=configs/NAME.py:ldm --config.first_stage=FIRST_STAGE_RUN \\
        --config.latents.cache=DIR --workdir=RUN

Kept are the posterior's moments of every training record (and of its mirror image where the config
flips), so that training draws from the posterior as it does from images. The data is --config's
`data` group, the run's own without --config. A job that was cut goes on with the shards that are
missing. Several machines that share DIR encode one cache: --worker=0/4 ... --worker=3/4.
"""

import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, platforms, watch
from ldm_jax.base import progress as progress_lib

DTYPES = ("float16", "bfloat16")
TRIES = 8  # records in the place of a bad one, as in training


def define(values):
    flags.DEFINE_string("run", None, "workdir of a first stage", flag_values=values)
    flags.DEFINE_string("config", None, "config whose data to encode", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_string("dtype", "float16", "float16 or bfloat16", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 64, "images at a time, over all devices", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "shard_size", 4096, "records of a unit of work", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "worker", "", "K/N: encode every N-th shard from the K-th (0-based)", flag_values=values
    )


def main(args, overrides):
    cli.require(args, "run", "out")
    cli.mirror(args)
    cli.check_writable("--out", args.out)
    config = config_lib.of_run(args.run)
    if config.stage != "autoencode":
        raise errors.UsageError(
            f"--run={args.run} is of stage {config.stage!r}: give the run of a first stage."
        )
    if args.dtype not in DTYPES:
        raise errors.UsageError(f"--dtype={args.dtype}: use {' or '.join(DTYPES)}.")
    given = config_lib.load(args.config or f"{args.run}/{config_lib.RUN_CONFIG}", overrides)
    from ldm_jax.build import objects as build

    build.sources.check_flags(given.data, overrides)
    encode(args, given.data)


def encode(args, data):
    import jax
    import numpy as np

    from ldm_jax import sample
    from ldm_jax.base import shard, tree
    from ldm_jax.build import checks
    from ldm_jax.build import objects as build
    from ldm_jax.data import latents, pipeline, sources
    from ldm_jax.engine import preempt
    from ldm_jax.jobs import job as job_lib
    from ldm_jax.jobs import moments as moments_lib

    seconds = watch.stopwatch()
    worker, workers = sample.read_worker(args.worker)
    chains = latents.variants(data.size, data.crop, data.flip, data.interpolation)
    codec = build.open_codec(args.run)
    checks.divides(data.size, codec.f, "the downsampling factor f of --run")
    records = sources.holdout(build.open_source(data), data.holdout, train=True)
    readers = [pipeline.Rows(records, tuple(chain), 1, 0, 1, (), TRIES) for chain in chains]
    reader = moments_lib.Reader(readers, data.threads)

    platforms.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
    mesh = shard.make_mesh(devices=jax.local_devices())
    shard.check_batch(args.batch_size, mesh, key="--batch_size")
    params, step = build.codec_params(args.run)
    origin = {"run": str(args.run), "step": step, "weights": tree.digest(params)}
    index = {"data": latents.about(records, data), "first_stage": origin, "dtype": args.dtype}
    job = moments_lib.Job(args.out, len(records), args.shard_size, index)
    job.claim(index)

    params = jax.device_put(params, shard.replicated(mesh))
    moments = jax.jit(codec.moments)

    def draw(first, count):
        """[count, variants, h/f, w/f, c] of records first, ...; the last one fills up a batch."""
        parts = reader.read(np.minimum(range(first, first + count), len(records) - 1))
        parts = [moments(params, shard.put_batch({"image": x}, mesh)["image"]) for x in parts]
        return moments_lib.narrow(np.stack(jax.device_get(parts), 1), args.dtype)

    todo = job.missing(worker, workers)
    progress = progress_lib.Progress(0, sum(map(len, todo)))
    with preempt.Preemption() as preemption:
        stop = lambda: preemption.requested(0)
        clocks = job_lib.run(job, todo, draw, reader.take, args.batch_size, stop, progress)
    progress.close()
    if left := job.missing():
        print(f"{len(left)} of {len(job.shards)} shards are other workers' and not finished yet.")
        return
    digest = job.finish()
    encoded, size = sum(map(len, todo)), sum(latents.open_cache(job.out).index["files"].values())
    summary = {"records": len(records), "variants": len(chains), "bytes": size, "digest": digest}
    summary |= {"encoded": encoded, "seconds": seconds()}
    if todo:
        summary["records_per_second"] = encoded / clocks["draw"]
    cli.finish(job.out / "summary.json", summary | {"index": index})


if __name__ == "__main__":
    cli.start(__doc__, define, main)
