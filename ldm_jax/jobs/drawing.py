"""The job that draws images from a second stage; see `sample`."""

import dataclasses

import jax
import numpy as np

from ldm_jax.base import errors, raster, remote, shard, watch
from ldm_jax.jobs import conditioning, settings
from ldm_jax.jobs import job as job_lib
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

GRID_COLUMNS = 8
GRID_ROWS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(settings.Wanted):
    """What to draw: the flags of `sample`, which say what each field means."""

    labels: str = conditioning.BALANCED
    prompts: str = ""
    held_out: bool = False
    cond: str = ""
    hints: str = ""
    format: str = "png"
    shard_size: int = 256
    worker: str = ""


def draw(wanted: Drawing) -> dict | None:
    """Draws the shards that are missing; the summary, or None while other workers still draw."""
    seconds, how = watch.stopwatch(), settings.read(wanted)
    model = kinds.of(how.config).model(how.config)
    how.sampling.tiling(model, *how.size)
    classes = conditions_of.classes(how.config)

    def make(held_out: bool, fields):
        try:
            source = data_lib.open_source(how.config.data)
        except errors.UsageError:
            if held_out:
                raise
            source = None  # a run may be drawn from where its data is not
        records = data_lib.held_out(how.config, source) if held_out else None
        return conditions_of.make(how.config, source, fields), records

    known = dict(classes=classes, known=model.fields, hint=settings.hint(model, how.size))
    conditions = conditioning.read(wanted, make=make, **known)
    job = job_lib.Job(wanted.out, wanted.num, wanted.shard_size, wanted.format, classes)
    worker = settings.read_worker(wanted.worker)
    mesh = shard.make_mesh(devices=jax.local_devices())
    shard.check_batch(wanted.batch_size, mesh, key="--batch_size")
    run = how.open(mesh)
    about = dataclasses.asdict(how.sampling) | {"seed": wanted.seed, "size": list(how.size)}
    if not isinstance(wanted.ema, bool):  # whose difference the digest of the weights tells alone
        about["ema"] = wanted.ema
    origin = {"run": remote.shown(wanted.run), "step": run.step, "weights": run.digest}
    if wanted.weaker:
        origin["weaker"] = run.guide_digest
    if wanted.decoder:
        origin["decoder"] = run.decoder_digest
    if wanted.adapters:
        origin["adapters"] = wanted.adapters
    with settings.owned(wanted.out, worker):
        job.claim(about | origin | conditions.names)

        def batch(first, count):
            cond, indices = conditions.fields(first, count), np.arange(first, first + count)
            return run.draw(count, how.sampling, wanted.seed, cond, how.size, indices)

        with watch.compile_clock() as compiling:
            drawn, clocks = job_lib.work(job, worker, batch, conditions.row, wanted.batch_size)
        with job.merging() as whole:
            if not whole:
                return None
            digest = job.finish()
            write_grid(job, conditions)
        summary = {"num": wanted.num, "digest": digest, "seconds": seconds(), **about}
        if wanted.decoder:
            summary["decoder"] = {"run": wanted.decoder, "weights": run.decoder_digest}
        summary["samples_png"] = remote.shown(job.out / "grid.png")
        if not drawn:
            return summary
        # Decoding is part of the sampler's program: it is measured apart, the device drained.
        decode = run.time_decode(wanted.batch_size, how.sampling, how.size) * clocks["batches"]
        drawing = clocks["draw"] - compiling()
        return summary | {
            "drawn": drawn,
            "images_per_second": drawn / max(drawing, 1e-9),
            "compile_seconds": compiling(),
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
