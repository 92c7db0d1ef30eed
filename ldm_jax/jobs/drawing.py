"""The job that draws images from a second stage, and the sampler as a file; see `sample`."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from ldm_jax.base import errors, raster, shard, watch
from ldm_jax.jobs import conditioning, export, settings
from ldm_jax.jobs import job as job_lib
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

GRID_COLUMNS = 8
GRID_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What to draw: the flags of `sample`, which say what each field means."""

    run: str
    out: str
    num: int
    batch_size: int
    sampling: dict
    size: str = ""
    labels: str = conditioning.BALANCED
    prompts: str = ""
    held_out: bool = False
    cond: str = ""
    format: str = "png"
    shard_size: int = 256
    worker: str = ""
    seed: int = 0
    ema: bool = True
    weaker: str = ""

    def settings(self) -> settings.Settings:
        return settings.read(self.run, self.sampling, self.size, self.ema, self.weaker)


def draw(wanted: Drawing) -> dict | None:
    """Draws the shards that are missing; the summary, or None while other workers still draw."""
    seconds = watch.stopwatch()
    how = wanted.settings()
    model = kinds.of(how.config).model(how.config)
    how.sampling.tiling(model, *how.size)
    classes = conditions_of.classes(how.config)
    conditions = conditioning.read(
        wanted, classes=classes, known=model.fields, make=functools.partial(_maker, how.config)
    )
    job = job_lib.Job(wanted.out, wanted.num, wanted.shard_size, wanted.format, classes)
    worker = settings.read_worker(wanted.worker)
    mesh = shard.make_mesh(devices=jax.local_devices())
    shard.check_batch(wanted.batch_size, mesh, key="--batch_size")
    run = how.open(mesh)
    about = dataclasses.asdict(how.sampling) | {"seed": wanted.seed, "size": list(how.size)}
    origin = {"run": str(wanted.run), "step": run.step, "weights": run.digest}
    if wanted.weaker:
        origin["weaker"] = run.guide_digest
    job.claim(about | origin | conditions.names)

    def batch(first, count):
        cond, indices = conditions.fields(first, count), np.arange(first, first + count)
        return run.draw(count, how.sampling, wanted.seed, cond, how.size, indices)

    with watch.compile_clock() as compiling:
        drawn, clocks = job_lib.work(job, worker, batch, conditions.row, wanted.batch_size)
    if job.unrecorded():
        return None
    digest = job.finish()
    write_grid(job, conditions)
    summary = {"num": wanted.num, "digest": digest, "seconds": seconds(), **about}
    summary["samples_png"] = str(job.out / "grid.png")
    if drawn:
        decode = run.time_decode(wanted.batch_size, how.sampling, how.size) * clocks["batches"]
        summary |= timings(clocks, compiling(), drawn, decode)
    return summary


def write_file(wanted: Drawing, file: pathlib.Path, platforms: list[str]) -> dict:
    """The sampler of one batch as a file that runs without this code (jobs.exported)."""
    seconds = watch.stopwatch()
    if wanted.weaker:
        raise errors.UsageError(
            f"--weaker={wanted.weaker}: an exported sampler holds one run alone."
        )
    how = wanted.settings()
    run = how.open()
    export.write(file, run, wanted.batch_size, how.sampling, how.size, platforms)
    summary = {"export": str(file), "bytes": file.stat().st_size, "platforms": platforms}
    return summary | dataclasses.asdict(how.sampling) | {"seconds": seconds()}


def _maker(config):
    """(data.conditions.Conditions, held-out records) of a run's data."""
    source = data_lib.open_source(config.data)
    held_out = data_lib.held_out(config, source)
    return conditions_of.make(config, source), held_out


def timings(clocks: dict, compiling: float, drawn: int, decode: float) -> dict:
    """Where the seconds of `clocks` (job.run) went.

    compiling: seconds of it; decode: seconds of all batches, measured apart, the device drained.
    """
    drawing = clocks["draw"] - compiling
    return {
        "drawn": drawn,
        "images_per_second": drawn / max(drawing, 1e-9),
        "compile_seconds": compiling,
        "denoise_seconds": max(drawing - decode, 0.0),
        "decode_seconds": decode,
        "write_seconds": clocks["write"],
    }


def write_grid(job, conditions):
    """The first images as one picture, a row per class where there are few enough classes."""
    cells = GRID_COLUMNS * GRID_ROWS
    labels = [conditions.row(i).get("class", 0) for i in range(min(job.num, GRID_ROWS * cells))]
    rows = [np.flatnonzero(np.equal(labels, label))[:GRID_COLUMNS] for label in np.unique(labels)]
    columns = max(map(len, rows))
    if not 1 < len(rows) <= GRID_ROWS or any(len(row) < columns for row in rows):
        rows, columns = [np.arange(min(job.num, cells))], GRID_COLUMNS
    chosen = [int(i) for row in rows for i in row]
    raster.write_png(job.out / "grid.png", raster.grid(np.stack(job.read(chosen)), columns))
