"""Draws images from a trained second stage.

    python -m ldm_jax.sample --run=RUN --out=DIR --num=50000 --format=npz [--steps=50 --guidance=2]

Image i depends only on (seed, i, weights, settings), whatever the batch size, the devices and the
workers; where an image's row of the batch changes, float rounding may. A job that was cut goes on
with the shards that are missing; other settings into the same folder are refused. Several machines
that share DIR draw one job: --worker=0/4 ... --worker=3/4, or by themselves under jax.distributed.

DIR holds images/, a grid (a row per class), shards/ (a digest of every finished shard),
manifest.json and summary.json; with --format=npz also samples.npz (arr_0, arr_1).
"""

import dataclasses
import pathlib
import re

from absl import flags

from ldm_jax import cli
from ldm_jax.base import errors, platforms, raster, watch
from ldm_jax.base import progress as progress_lib

GRID_COLUMNS = 8
GRID_ROWS = 16
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def define(values):
    flags.DEFINE_string("run", None, "workdir of a second stage", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_integer("num", 64, "how many images", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 32, "images at a time, over all devices", lower_bound=1, flag_values=values
    )
    define_sampling(values)
    flags.DEFINE_string(
        "size", "", "HxW in pixels; the training size by default", flag_values=values
    )
    flags.DEFINE_string(
        "labels",
        "balanced",
        "balanced, random, class ids that are repeated (3,5), or a file of them",
        flag_values=values,
    )
    flags.DEFINE_string(
        "prompts", "", "a caption, or a file with one a line, in turn", flag_values=values
    )
    flags.DEFINE_bool(
        "held_out", False, "the conditions of the run's held-out records", flag_values=values
    )
    flags.DEFINE_string(
        "cond", "", ".npz of the other conditions: an array [n, ...] per field", flag_values=values
    )
    flags.DEFINE_string(
        "format", "png", "png, webp, tar, arrayrecord, or npz (ADM's)", flag_values=values
    )
    flags.DEFINE_integer(
        "shard_size", 256, "images of a unit of work", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "worker", "", "K/N: draw every N-th shard from the K-th (0-based)", flag_values=values
    )
    flags.DEFINE_string(
        "export", "", "write the compiled sampler to this file instead", flag_values=values
    )
    flags.DEFINE_list("platforms", ["cpu"], "of --export: cpu, cuda, tpu", flag_values=values)


def define_sampling(values):
    """Flags of how images are drawn; what is not given is the run's own."""
    flags.DEFINE_string("sampler", None, "ddim, ddpm, ... (docs/samplers.md)", flag_values=values)
    flags.DEFINE_integer("steps", None, "steps of the time grid", flag_values=values)
    flags.DEFINE_float("eta", None, "stochasticity of ddim", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "guidance", None, "classifier-free scale, 1 for none", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string(
        "spacing", None, "time grid: exact, legacy, trailing, linspace, ...", flag_values=values
    )
    flags.DEFINE_float(
        "rescale", None, "share of the way back from overexposure by guidance", flag_values=values
    )
    flags.DEFINE_string(
        "weaker", "", "guide away from this run of the same model instead", flag_values=values
    )
    flags.DEFINE_list("interval", None, "noise levels of guidance: 0.2,0.9", flag_values=values)
    flags.DEFINE_integer(
        "tile", None, "pixels of tiles' sides; 0: only for large images", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("ema", True, "use the averaged weights", flag_values=values)


def main(args, overrides):
    if overrides:
        raise errors.UsageError("sample reads the run's own config; --config.* is for training.")
    cli.require(args, "run", *(() if args.export else ("out",)))
    cli.mirror(args)
    if args.export:
        cli.check_writable("--export", pathlib.Path(args.export).parent)
        return export(args)
    cli.check_writable("--out", args.out)
    import jax
    import numpy as np

    from ldm_jax.base import shard
    from ldm_jax.build import objects as build
    from ldm_jax.engine import preempt
    from ldm_jax.jobs import conditions as conditions_lib
    from ldm_jax.jobs import job as job_lib
    from ldm_jax.models.conditioners import num_classes
    from ldm_jax.runs import opened as run_lib

    seconds = watch.stopwatch()
    config = build.read_config(args.run)
    sampling = read_sampling(args, config)
    size = read_size(args.size, config)
    model = build.make_diffuse(config)
    sampling.tiling(model, *size)
    classes = num_classes(config.conditioners)

    def make_conditions():
        source = build.open_source(config.data)
        held_out = build.sources.holdout(source, config.data.holdout, train=False)
        return build.make_conditions(config, source), held_out

    conditions = conditions_lib.read(
        args, classes=classes, known=model.fields, make=make_conditions
    )
    job = job_lib.Job(args.out, args.num, args.shard_size, args.format, classes)
    worker, workers = read_worker(args.worker)

    platforms.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
    mesh = shard.make_mesh(devices=jax.local_devices())
    shard.check_batch(args.batch_size, mesh, key="--batch_size")
    run = run_lib.load(args.run, ema=args.ema, mesh=mesh, weaker=args.weaker)
    settings = dataclasses.asdict(sampling) | {"seed": args.seed, "size": list(size)}
    origin = {"run": str(args.run), "step": run.step, "weights": run.digest}
    if args.weaker:
        origin["weaker"] = run.guide_digest
    job.claim(settings | origin | conditions.names)

    def draw(first, count):
        cond, indices = conditions.fields(first, count), range(first, first + count)
        return run.draw(count, sampling, args.seed, cond, size, np.array(indices))

    todo = job.missing(worker, workers)
    progress = progress_lib.Progress(0, sum(map(len, todo)))
    with preempt.Preemption() as preemption, watch.compile_clock() as compiling:
        clocks = job_lib.run(
            job,
            todo,
            draw,
            conditions.row,
            args.batch_size,
            stop=lambda: preemption.requested(0),
            progress=progress,
        )
    progress.close()
    if left := job.unrecorded():
        print(f"{len(left)} of {len(job.shards)} shards are other workers' and not finished yet.")
        return
    digest = job.finish()
    write_grid(job, conditions)
    summary = {"num": args.num, "digest": digest, "seconds": seconds(), **settings}
    summary["samples_png"] = str(job.out / "grid.png")
    if todo:
        decode_seconds = run.time_decode(args.batch_size, sampling, size) * clocks["batches"]
        summary |= timings(clocks, compiling(), sum(map(len, todo)), decode_seconds)
    cli.finish(job.out / "summary.json", summary)


def export(args):
    """The sampler of one batch as a file that runs without this code (ldm_jax.exported)."""
    from ldm_jax.build import objects as build
    from ldm_jax.jobs import export as export_lib
    from ldm_jax.runs import opened as run_lib

    seconds = watch.stopwatch()
    if unknown := sorted(set(args.platforms) - set(PLATFORMS)):
        raise errors.UsageError(
            f"--platforms={unknown[0]} is unknown; use some of {', '.join(PLATFORMS)}."
        )
    config = build.read_config(args.run)
    sampling, size = read_sampling(args, config), read_size(args.size, config)
    file = pathlib.Path(args.export)
    run = run_lib.load(args.run, ema=args.ema)
    export_lib.write(file, run, args.batch_size, sampling, size, args.platforms)
    summary = {"export": str(file), "bytes": file.stat().st_size, "platforms": args.platforms}
    summary |= dataclasses.asdict(sampling) | {"seconds": seconds()}
    cli.finish(file.with_name(file.name + ".summary.json"), summary)


def read_sampling(args, config):
    """The sampling settings: the flags that were given over the run's own."""
    if config.stage != "diffuse":
        raise errors.UsageError(
            f"--run={args.run} is a first stage; sampling needs a second stage."
        )
    from ldm_jax.build import objects as build
    from ldm_jax.stages.sampling import Sampling

    names = [field.name for field in dataclasses.fields(Sampling)]
    given = {name: getattr(args, name, None) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if "interval" in given:
        try:
            given["interval"] = tuple(float(level) for level in given["interval"])
        except ValueError as e:
            raise errors.UsageError(f"--interval={args.interval} must be two numbers.") from e
    sampling = Sampling(**config.sample).over(given)
    sampling.grid(build.make_process(**config.process))
    return sampling


def read_size(text: str, config) -> tuple[int, int]:
    """ "64x96" -> (64, 96); every side must suit the first stage and the UNet."""
    from ldm_jax.build import objects as build

    if not text:
        return (config.data.size,) * 2
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else sides * 2
    except ValueError as e:
        raise errors.UsageError(f"--size={text} must read HxW in pixels, e.g. 64x96.") from e
    factor = build.open_codec(config.first_stage).f * 2 ** (len(config.model.mult) - 1)
    if height < 1 or width < 1 or height % factor or width % factor:
        raise errors.UsageError(
            f"--size={text}: both sides must be positive multiples of {factor}."
        )
    return height, width


def read_worker(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8); by default what jax.distributed says, which is 0/1 on a lone machine."""
    if not text:
        import jax

        return jax.process_index(), jax.process_count()
    parsed = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parsed or int(parsed[1]) >= int(parsed[2]):
        raise errors.UsageError(f"--worker={text} must read K/N with 0 <= K < N, e.g. 0/4.")
    return int(parsed[1]), int(parsed[2])


def timings(clocks, compiling: float, drawn: int, decode: float) -> dict:
    """Where the time went. decode: as measured by itself, the device drained."""
    denoise = max(clocks["draw"] - compiling - decode, 0.0)
    return {
        "drawn": drawn,
        "images_per_second": drawn / max(clocks["draw"] - compiling, 1e-9),
        "compile_seconds": compiling,
        "denoise_seconds": denoise,
        "decode_seconds": decode,
        "write_seconds": clocks["write"],
    }


def write_grid(job, conditions):
    """The first images as one picture, a row per class where there are few enough classes."""
    import numpy as np

    cells = GRID_COLUMNS * GRID_ROWS
    labels = [conditions.row(i).get("class", 0) for i in range(min(job.num, GRID_ROWS * cells))]
    rows = [np.flatnonzero(np.equal(labels, label))[:GRID_COLUMNS] for label in np.unique(labels)]
    columns = max(map(len, rows))
    if not 1 < len(rows) <= GRID_ROWS or any(len(row) < columns for row in rows):
        rows, columns = [np.arange(min(job.num, cells))], GRID_COLUMNS
    chosen = [int(i) for row in rows for i in row]
    raster.write_png(job.out / "grid.png", raster.grid(np.stack(job.read(chosen)), columns))


if __name__ == "__main__":
    cli.start(__doc__, define, main)
