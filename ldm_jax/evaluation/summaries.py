"""What `evaluate` says of a run, and of a set of samples."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np

from ldm_jax.base import disk, errors, platforms, raster, shard, tensorfile, watch
from ldm_jax.base import record as record_lib
from ldm_jax.engine import snapshots
from ldm_jax.evaluation import distances as distances_lib
from ldm_jax.evaluation import held_out as held_out_lib
from ldm_jax.evaluation import imagesets, measures, protocol, rival, suite
from ldm_jax.evaluation import lengths as lengths_lib
from ldm_jax.evaluation import reference as reference_lib
from ldm_jax.metrics import latents as latents_lib
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
    ema: tuple[float, ...] = ()
    out: str = ""

    def request(self) -> measures.Request:
        """Reads the weights of the features."""
        return measures.make_request(
            self.metrics, self.features, self.weights, bootstrap=self.bootstrap
        )


def measure(wanted: Evaluation, other: dict | None = None) -> dict:
    """What can be measured of a run or of a set of samples; other: as of `of_run`."""
    return (of_run if wanted.run else of_samples)(wanted, other)


def of_run(wanted: Evaluation, other: dict | None = None) -> dict:
    """The stage's measures over all held-out records, with averaged weights.

    Of several lengths of the average, the figures are those of the last, `by_ema` has all, and a
    plot of them is written into the folder `out`.

    other: a summary to be compared with later, so that a difference in protocol is found at once.
    """
    seconds = watch.stopwatch()
    record = record_lib.Record(wanted.run)
    path, config = record.path, record.config
    kind = kinds.of(config)
    lengths = tuple(wanted.ema) or (True,)
    for length in lengths:
        snapshots.check(path, length)
    if kind.draws and (wanted.lpips or (wanted.weights and not wanted.ema)):
        raise errors.UsageError(f"{path} is {kind.title}: sample from it, then --samples=FOLDER.")
    if wanted.lpips:
        _measure_lpips(config, wanted.lpips)
    request = wanted.request() if wanted.weights else None
    mesh = shard.make_mesh()
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    source = data_lib.open_source(config.data)
    held_out = data_lib.held_out(config, source)
    count, size = len(held_out), (config.data.size,) * 2
    origin = protocol.origin(held_out, count, size, config.data.interpolation)
    params, step = snapshots.read_params(path, ema=lengths[0])
    subject = {"run": str(path), "step": step} | ({"ema": lengths} if wanted.ema else {})
    measurement, drawn = _measurement(config, origin, request if not kind.draws else None), None
    if kind.draws and request:
        suite.check(request.metrics, request.extractor.classes, True, True)
        drawn = distances_lib.Distances(request, config, source, mesh)
        measurement["drawn"] = drawn.measurement
    protocols = protocol.protocol(measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")

    platforms.cache_compilations(path / "compilation_cache")
    stage = kind.evaluated(config, record)
    batches = lambda: data_lib.held_out_batches(config, held_out, stage.fields, count)
    records = held_out_lib.HeldOutRecords(stage, batches, mesh)

    def measured(params):
        """(figures, what else a summary says) of these weights."""
        figures, given = {}, jax.device_put((params, stage.frozen), shard.replicated(mesh))
        for name, (mean, error) in records.measure(*given).items():
            figures |= {name: mean, f"{name}_std": error}
        if drawn:
            return figures | drawn.figures(*given), {}
        if kind.draws:
            return figures, {}
        codec, own = kind.codec(config), params[kind.player]["model"]
        latents, distances = _of_first_stage(codec, own, batches, origin, request)
        return figures | distances, latents

    by_ema = {}
    for i, length in enumerate(lengths):
        if i:
            params, _ = snapshots.read_params(path, ema=length)
        figures, latents = measured(params)
        by_ema[f"{length:g}"] = figures
    if kind.rival(config):
        figures |= rival.psnr_db(config, source, count)
    summary = subject | {"records": count} | latents | protocol.stored(figures, protocols)
    if len(lengths) > 1:
        picture = pathlib.Path(wanted.out) / "ema.png"
        lengths_lib.plot(by_ema, picture)
        summary |= {"by_ema": by_ema, "ema_png": str(picture)}
    return summary | {"seconds": seconds()}


def of_samples(wanted: Evaluation, other: dict | None = None) -> dict:
    """What can be measured of a set of samples; other: as of `of_run`."""
    seconds = watch.stopwatch()
    if wanted.ema:
        raise errors.UsageError(
            f"--ema={','.join(f'{length:g}' for length in wanted.ema)} is for --run=RUN: samples "
            "were drawn by an average already (sample --ema)."
        )
    request = wanted.request() if wanted.weights or wanted.metrics else None
    samples = imagesets.open_set(wanted.samples, "--samples")
    manifest = disk.read_json(samples.job.out / "manifest.json") if samples.job else {}
    summary = {"samples": str(wanted.samples), "num": samples.count, "manifest": manifest}
    if "labels" in manifest and _of_scenes(manifest["run"]):
        summary["class_accuracy"] = class_accuracy(samples.job)
    if not request:
        return summary | {"seconds": seconds()}

    path, n = wanted.reference or manifest.get("run"), wanted.reference_records
    origin, count, has_features, read = _open_reference(path, samples.size, request, n)
    classes = request.extractor.classes
    suite.check(request.metrics, classes, path is not None, has_features)
    measurement = request.measurement(samples.count, samples.size, origin)
    subject = {k: v for k, v in manifest.items() if k != "run"} or samples.origin
    protocols = protocol.protocol(measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")
    request.warn(samples.count, count)
    reference = read()
    figures = request.figures(request.gather(samples.batches()), reference)
    return summary | protocol.stored(figures, protocols) | {"seconds": seconds()}


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


def _measurement(config, origin, request) -> dict:
    """How a run's own measures and, with a request, figures of reconstructions are taken."""
    n, size = origin["records"], origin["size"]
    found = {"n": n, "size": size, "reference": origin}
    if request:
        suite.check(request.metrics, False, True, True)
        request.warn(n, n)
        found = request.measurement(n, size, origin)
    files = [file for file in config.get("lpips", {}).values() if file]
    lpips = [tensorfile.digest(file)[:16] for file in files]
    return found | {"scores": "of unrounded floats", "lpips": lpips}


def _of_first_stage(codec, params, batches, origin, request) -> tuple[dict, dict]:
    """Statistics of the latents of images and, with a request, figures of reconstructions.

    batches: () -> {"image": [b, h, w, 3], "real": [b]}. origin: what the images are.
    """
    latents, counts = [], []

    @jax.jit
    def measure(params, images):
        moments = codec.moments(params, images)
        z, noise = codec.latents(moments), codec.bottleneck.variance(moments)
        pixels = raster.to_uint8(codec.decode(params, z))
        return z, noise, codec.bottleneck.counts(params, z), pixels

    def originals():
        for batch in batches():
            yield np.asarray(raster.to_uint8(batch["image"])), batch["real"]

    def reconstructions():
        for batch in batches():
            z, noise, used, pixels = jax.device_get(measure(params, batch["image"]))
            real = batch["real"] > 0
            latents.append(latents_lib.Latents.of(z[real], noise[real]))
            counts.append(used[real].sum(0))
            yield pixels, batch["real"]

    figures = {}
    if request:
        reference = reference_lib.Reference.of(request.gather(originals()), origin)
        figures = request.figures(request.gather(reconstructions()), reference, "r")
    else:
        for _ in reconstructions():
            pass
    codebook = latents_lib.codebook(sum(counts)) if len(counts[0]) else {}
    return functools.reduce(latents_lib.Latents.merge, latents).summary() | codebook, figures


def _open_reference(path, size, request, records: int):
    """Of --reference: (origin, images or None, whether it has features, () -> Reference)."""
    if path is None:
        return {}, None, False, lambda: None
    if not imagesets.is_statistics(path):
        images = imagesets.open_set(path, "--reference", size, records)
        compute = lambda: request.gather(images.batches(), reference_lib.KEEP)
        origin = request.extraction | images.origin
        return images.origin, images.count, True, lambda: reference_lib.cached(origin, compute)
    found = reference_lib.load(path, request.extraction)
    width, extractor = len(found.mean), request.extractor
    if width != extractor.dimension:
        raise errors.UsageError(
            f"--reference={path} is of {width} features, {request.extraction['features']} has "
            f"{extractor.dimension}: take the extractor it was made with."
        )
    if found.origin.get("size", list(size)) != list(size):
        raise errors.UsageError(
            f"--reference={path} is of images of {found.origin['size']}, the samples are "
            f"{list(size)}."
        )
    origin = {k: v for k, v in found.origin.items() if k not in request.extraction}
    return origin, found.count, found.features is not None, lambda: found


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
