"""What `evaluate` says of a run, and of a set of samples."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from ldm_jax.base import disk, errors, platforms, shard, watch
from ldm_jax.base import record as record_lib
from ldm_jax.engine import checkpoint
from ldm_jax.evaluation import held_out as held_out_lib
from ldm_jax.evaluation import imagesets, measures, protocol, rival
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds
from ldm_jax.scenes import checker
from ldm_jax.stages import autoencode


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate: the flags of `evaluate`, which say what each field means."""

    run: str = ""
    samples: str = ""
    reference: str = ""
    features: str = "mobilenet"
    weights: str = ""
    metrics: tuple[str, ...] = ()
    reference_records: int = 50_000
    bootstrap: int = 20
    lpips: tuple[str, ...] = ()

    def request(self) -> measures.Request:
        """Reads the weights of the features."""
        return measures.make_request(
            self.metrics, self.features, self.weights, self.bootstrap, self.reference_records
        )


def of_run(wanted: Evaluation, other: dict | None = None) -> dict:
    """The stage's measures over all held-out records, with averaged weights.

    other: a summary to be compared with later, so that a difference in protocol is found at once.
    """
    seconds = watch.stopwatch()
    record = record_lib.Record(wanted.run)
    path, config = record.path, record.config
    kind = kinds.of(config)
    if kind.draws and (wanted.weights or wanted.lpips):
        raise errors.UsageError(f"{path} is {kind.title}: sample from it, then --samples=FOLDER.")
    if wanted.lpips:
        _measure_lpips(config, wanted.lpips)
    request = wanted.request() if wanted.weights else None
    mesh = shard.make_mesh()
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    source = data_lib.open_source(config.data)
    held_out = data_lib.held_out(config, source)
    with config.unlocked():
        config.eval.records = len(held_out)
    side, interpolation = config.data.size, config.data.interpolation
    data = protocol.origin(held_out, len(held_out), (side, side), "center", interpolation)
    params, step = checkpoint.read_params(path)
    subject = {"run": str(path), "step": step}
    lpips = [file for file in config.get("lpips", {}).values() if file]
    protocols = measures.protocol_of_run(request, data, subject, lpips)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")

    platforms.cache_compilations(path / "compilation_cache")
    stage = kind.evaluated(config, record)
    whole = shard.replicated(mesh)
    batches = lambda: data_lib.held_out_batches(config, held_out, stage.fields)
    records = held_out_lib.HeldOutRecords(stage, batches, mesh)
    measured = records.measure(*jax.device_put((params, stage.frozen), whole))
    figures, latents = {}, {}
    for name, (mean, error) in measured.items():
        figures |= {name: mean, f"{name}_std": error}
    if not kind.draws:
        codec, own = kind.codec(config), params[kind.player]["model"]
        latents, distances = measures.of_first_stage(codec, own, batches, data, request)
        figures |= distances
    if kind.rival(config):
        figures |= rival.psnr_db(config, source, record, held_out)
    summary = subject | {"records": len(held_out)}
    return summary | latents | measures.stored(figures, protocols) | {"seconds": seconds()}


def of_samples(wanted: Evaluation, other: dict | None = None) -> dict:
    """What can be measured of a set of samples; other: as of `of_run`."""
    seconds = watch.stopwatch()
    request = wanted.request() if wanted.weights or wanted.metrics else None
    samples = imagesets.open_set(wanted.samples, "--samples")
    manifest = disk.read_json(samples.job.out / "manifest.json") if samples.job else {}
    summary = {"samples": str(wanted.samples), "num": samples.count, "manifest": manifest}
    if "labels" in manifest and _of_scenes(manifest["run"]):
        summary["class_accuracy"] = class_accuracy(samples.job)
    if request:
        reference = wanted.reference or manifest.get("run")
        summary |= measures.of_samples(samples, manifest, reference, request, other)
    return summary | {"seconds": seconds()}


def class_accuracy(job) -> float:
    """Share of the images that show the shape and the colour they were asked for."""
    hits = [
        checker.check(images) == np.array([row["class"] for row in rows])
        for images, rows in job.batches()
    ]
    return float(np.mean(np.concatenate(hits)))


def read(path, flag: str) -> dict:
    """A summary.json of `evaluate`, or the one in a folder; flag: its name, for errors."""
    path = pathlib.Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise errors.UsageError(f"{flag}={path} is no summary.json of evaluate.") from e


def _of_scenes(run) -> bool:
    try:
        return record_lib.read(run).data.source == "scenes"
    except errors.UsageError:  # the run is no longer there; its samples are
        return False


def _measure_lpips(config, files):
    if len(files) != 2:
        raise errors.UsageError(f"--lpips={','.join(files)}: give two files, BACKBONE,HEADS.")
    with config.unlocked():
        config.lpips.update(dict(zip(("backbone", "heads"), files)))
        # The stage measures LPIPS where it has a weight, whatever that is.
        config.loss.perceptual_weight = config.loss.perceptual_weight or 1.0
    autoencode.check(autoencode.Loss(**config.loss), True)
