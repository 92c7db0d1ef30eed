"""What `evaluate` says of a run, and of a set of samples."""

import dataclasses
import pathlib

import numpy as np

from ldm_jax.base import disk, errors, hub, platforms, remote, values, watch
from ldm_jax.base import record as record_lib
from ldm_jax.engine import snapshots
from ldm_jax.evaluation import imagesets, measures, protocol, run_measures
from ldm_jax.evaluation import lengths as lengths_lib
from ldm_jax.evaluation import reference as reference_lib
from ldm_jax.runs import keys, kinds
from ldm_jax.scenes import checker


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate: the flags of `evaluate`, which say what each field means."""

    run: str = ""
    samples: str = ""
    reference: str = ""
    features: str = ""
    weights: str = ""
    metrics: tuple[str, ...] = ()
    reference_records: int = 50_000
    bootstrap: int = 20
    lpips: tuple[str, ...] = ()
    ema: tuple[float, ...] = ()
    decoder: str = ""
    out: str = ""

    @property
    def of_images(self) -> bool:
        """Whether figures of images are wanted."""
        return bool(self.features or self.weights or self.metrics)

    def request(self) -> measures.Request | None:
        """Reads the weights of the features; None where no figures of images are wanted."""
        if not self.of_images:
            return None
        return measures.make_request(*self._wanted, bootstrap=self.bootstrap)

    def check(self):
        """Raises UsageError for what `request` refuses before it reads anything."""
        if self.of_images:
            measures.check_request(*self._wanted)

    @property
    def _wanted(self):
        return self.metrics, self.features or "mobilenet", self.weights


def place(subject: str) -> pathlib.Path:
    """Where the evaluation of a run or of samples is written if no folder is given."""
    if hub.is_name(subject):
        raise errors.UsageError(f"--out is missing: {subject} is not here to write the figures to.")
    path = pathlib.Path(subject)
    return (path if path.is_dir() else path.with_suffix("")) / "evaluation"


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
    record, lengths = record_lib.Record(wanted.run), tuple(wanted.ema) or (True,)
    path, kind = record.path, kinds.of(keys.read(wanted.run))
    for length in lengths:
        snapshots.check(path, length)
    drawn = wanted.of_images and not (wanted.ema or wanted.decoder)
    if kind.draws and (wanted.lpips or drawn):
        raise errors.UsageError(f"{path} is {kind.title}: sample from it, then --samples=FOLDER.")
    _check_decoder(wanted, path, kind)
    measures_of = run_measures.RunMeasures(record, wanted.request, wanted.lpips, wanted.decoder)
    params, step = snapshots.read_params(path, ema=lengths[0])
    subject = {"run": record.shown, "step": step} | ({"ema": lengths} if wanted.ema else {})
    protocols = protocol.protocol(measures_of.measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")

    platforms.cache_compilations(record.compiled)
    by_ema = {}
    for i, length in enumerate(lengths):
        if i:
            params, _ = snapshots.read_params(path, ema=length)
        figures, about = measures_of(params)
        by_ema[f"{length:g}"] = figures
    figures = figures | measures_of.rival()
    summary = subject | {"records": measures_of.count} | measures_of.about | about
    summary |= protocol.stored(figures, protocols)
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
    samples = imagesets.open_set(wanted.samples, "--samples")
    manifest = disk.read_json(samples.job.out / "manifest.json") if samples.job else {}
    of_scenes = "run" in manifest and _of_scenes(manifest["run"])  # and has its plugins' metrics
    request = wanted.request()
    if wanted.reference and not request:
        raise errors.UsageError(
            f"--reference={wanted.reference} does nothing without figures of images: give "
            "--features, and --weights=FILE where those have no public ones."
        )
    summary = {"samples": str(wanted.samples), "num": samples.count, "manifest": manifest}
    if "labels" in manifest and of_scenes:
        summary["class_accuracy"] = class_accuracy(samples.job)
    if not request:
        return summary | {"seconds": seconds()}

    path = wanted.reference or (manifest.get("run") if request.compares else None)
    n = wanted.reference_records
    origin, count, has_features, read = _open_reference(path, samples.size, request, n)
    have = {"reference": path is not None, "features": has_features, "captions": samples.captions}
    request.check("logits", *(need for need, there in have.items() if there))
    measurement = request.measurement(samples.count, samples.size, origin)
    subject = {k: v for k, v in manifest.items() if k != "run"} or samples.origin
    protocols = protocol.protocol(measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")
    request.warn(samples.count, count)
    captions = samples.captions() if "clip_score" in request.metrics else ()
    reference = read()
    figures = request.figures(request.gather(samples.batches(), captions=captions), reference)
    return summary | protocol.stored(figures, protocols) | {"seconds": seconds()}


def _check_decoder(wanted: Evaluation, path, kind):
    """Raises UsageError for a decoder that would decode nothing."""
    said = f"--decoder={wanted.decoder}"
    if wanted.decoder and not kind.draws:
        raise errors.UsageError(
            f"{said}: {path} is {kind.title}; evaluate --run={wanted.decoder} measures that "
            "decoder on its latents."
        )
    if wanted.decoder and not wanted.of_images:
        raise errors.UsageError(
            f"{said} does nothing without figures of images: give --features, --weights or "
            "--metrics."
        )


def class_accuracy(job) -> float:
    """Share of the images that show the shape and the colour they were asked for."""
    hits = [checker.check(images) == _classes(job, rows) for images, rows in job.batches()]
    return float(np.mean(np.concatenate(hits)))


def _classes(job, rows) -> np.ndarray:
    classes = [row.get("class") for row in rows]
    for one in classes:
        values.check(f"{job.out}: the class of an image", one, values.Number(0, whole=True))
    return np.array(classes)


def read(path, flag: str) -> dict:
    """A summary.json of `evaluate`, or the one in a folder; flag: its name, for errors."""
    path = pathlib.Path(path)
    path = path / "summary.json" if path.is_dir() else path
    with errors.of(flag):
        found = disk.read_json(path)
        if "protocol" in found:  # without, protocol.compare says what to do
            values.check(f"{path}: protocol", found["protocol"], protocol.STORED)
            for name in found["protocol"]["figures"]:
                for key in {name, f"{name}_std"} & found.keys():
                    values.check(f"{path}: {key}", found[key], values.Number(finite=False))
        return found


def _open_reference(path, size, request, records: int):
    """Of --reference: (origin, images or None, whether it has features, () -> Reference)."""
    if path is None:
        return {}, None, False, lambda: None
    path = remote.copy(path)
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
