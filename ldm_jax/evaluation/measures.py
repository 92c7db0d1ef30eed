"""Figures with their protocol: of samples against a reference, of a first stage's images.

What `evaluate` and training (monitor.py) share.
"""

import collections
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from ldm_jax.base import errors, raster, tensorfile
from ldm_jax.evaluation import imagesets, protocol, suite
from ldm_jax.evaluation import reference as reference_lib
from ldm_jax.metrics import features
from ldm_jax.metrics import latents as latents_lib
from ldm_jax.weights.readers import READERS

DEFAULT = ("fd", "kid", "prc", "dc")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured, on which features. extraction: their part of the protocol."""

    metrics: tuple[str, ...]
    settings: suite.Settings
    extractor: object
    weights: object
    extraction: dict
    reference_records: int

    def gather(self, batches, keep=None):
        extract = self.extractor.bind(self.weights)
        return suite.gather(extract, batches, keep)

    def named(self, figures: dict) -> dict:
        return {self.extractor.name(name): value for name, value in figures.items()}


def make_request(
    metrics, features: str, weights, bootstrap: int, reference_records: int
) -> Request:
    """Of metrics by name, DEFAULT where there are none; reads the file `weights` of `features`."""
    if not weights:
        raise errors.UsageError(
            f"--metrics={','.join(metrics)} needs --weights=FILE, the weights of "
            f"--features={features} (docs/evaluation.md says where they are)."
        )
    for name in metrics:
        suite.METRICS.get(name)
    settings = suite.Settings(bootstrap=bootstrap)
    opened = open_features(features, weights)
    return Request(tuple(metrics) or DEFAULT, settings, *opened, reference_records)


def open_features(name: str, path):
    """An extractor, its weights, and its part of a protocol."""
    extractor = features.EXTRACTORS.get(name)
    weights = READERS.get(extractor.network)(path)
    extraction = {
        "features": name,
        "resize": extractor.resize,
        "feature_weights": tensorfile.digest(path)[:16],
    }
    return extractor, weights, extraction


def of_samples(samples, manifest: dict, reference, request: Request, other=None) -> dict:
    """The figures of an ImageSet and their "protocol". reference: its path, or None.

    other: a summary to be compared with later, so that a difference is found at once.
    """
    statistics, images, origin = _open_reference(reference, samples.size, request)
    has_features = images is not None or getattr(statistics, "features", None) is not None
    has_reference = reference is not None
    suite.check(request.metrics, request.extractor.classes, has_reference, has_features)
    measurement = _measurement(request, samples.count, samples.size, origin)
    subject = {k: v for k, v in manifest.items() if k != "run"} or samples.origin
    protocols = protocol.protocol(measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")
    count = statistics.count if statistics else (images.count if images else None)
    _warn(request, samples.count, count)
    if images:
        compute = lambda: request.gather(images.batches(), reference_lib.KEEP)
        statistics = reference_lib.cached(request.extraction | origin, compute)
    figures = suite.measure(
        request.metrics, request.gather(samples.batches()), statistics, request.settings
    )
    return stored(request.named(figures), protocols)


def protocol_of_run(request: Request | None, data: dict, subject: dict, lpips=()) -> dict:
    """The protocol of a run's own measures and, with a request, of figures of reconstructions.

    data: origin of the images. lpips: files of its weights.
    """
    n = data["records"]
    measurement = {"n": n, "size": data["size"], "reference": data}
    if request:
        suite.check(request.metrics, False, True, True)
        _warn(request, n, n)
        measurement = _measurement(request, n, data["size"], data)
    measurement["scores"] = "of unrounded floats"
    measurement["lpips"] = [tensorfile.digest(file)[:16] for file in lpips]
    return protocol.protocol(measurement, subject)


def of_first_stage(
    codec, params, batches, data: dict, request: Request | None
) -> tuple[dict, dict]:
    """Statistics of the latents of some images and, with a request, figures of reconstructions.

    batches: () -> {"image": [b, h, w, 3], "real": [b]}. data: origin of the images.
    """
    held_out = HeldOut(codec, params, batches)
    if request is None:
        collections.deque(held_out.reconstructions(), maxlen=0)
        return held_out.summary(), {}
    real, fake = request.gather(held_out.originals()), request.gather(held_out.reconstructions())
    reference = reference_lib.Reference.of(real, data)
    figures = suite.measure(request.metrics, fake, reference, request.settings)
    return held_out.summary(), {f"r{k}": value for k, value in request.named(figures).items()}


class HeldOut:
    """The images of `batches`, what a first stage makes of them, and its latents on the way."""

    def __init__(self, codec, params, batches):
        self._codec, self._params, self._batches = codec, params, batches
        self._latents, self._counts = None, 0

    def originals(self):
        """(uint8 [b, h, w, 3], mask)."""
        for batch in self._batches():
            yield np.asarray(raster.to_uint8(batch["image"])), batch["real"]

    def reconstructions(self):
        """The same of the posterior's mode, decoded."""
        measure = jax.jit(self._measure)
        for batch in self._batches():
            rows = batch["real"] > 0
            z, counts, pixels = jax.device_get(measure(self._params, batch["image"]))
            new = latents_lib.Latents.of(z[rows])
            self._latents = self._latents.merge(new) if self._latents else new
            self._counts = self._counts + counts[rows].sum(0)
            yield pixels, batch["real"]

    def summary(self) -> dict:
        """Of the latents seen so far."""
        codebook = latents_lib.codebook(self._counts) if len(self._counts) else {}
        return self._latents.summary() | codebook

    def _measure(self, params, images):
        z = self._codec.encode(params, images)
        counts = self._codec.bottleneck.counts(params, z)
        return z, counts, raster.to_uint8(self._codec.decode(params, z))


def _open_reference(path, size, request):
    """(statistics or None, ImageSet or None, origin) of --reference."""
    if path is None:
        return None, None, {}
    if imagesets.is_statistics(path):
        statistics = reference_lib.load(pathlib.Path(path), request.extraction)
        width = len(statistics.mean)
        if width != request.extractor.dimension:
            raise errors.UsageError(
                f"--reference={path} is of {width} features, {request.extraction['features']} has "
                f"{request.extractor.dimension}: take the extractor it was made with."
            )
        if statistics.origin.get("size", list(size)) != list(size):
            raise errors.UsageError(
                f"--reference={path} is of images of {statistics.origin['size']}, the samples are "
                f"{list(size)}."
            )
        origin = {k: v for k, v in statistics.origin.items() if k not in request.extraction}
        return statistics, None, origin
    images = imagesets.open_set(path, "--reference", size, request.reference_records)
    return None, images, images.origin


def stored(figures: dict, protocols: dict) -> dict:
    """Figures as a summary holds them, beside their protocol."""
    return figures | {"protocol": protocols | {"figures": list(figures)}}


def _measurement(request, n, size, origin):
    return request.extraction | {
        "n": n,
        "size": list(size),
        "reference": origin,
        "settings": dataclasses.asdict(request.settings),
    }


def _warn(request, n, reference_n):
    if min(n, reference_n or n) < 2:
        raise errors.UsageError(
            f"{n} samples against {reference_n} images: figures need 2 images or more of each."
        )
    dimension = request.extractor.dimension
    for line in suite.warnings(request.metrics, n, reference_n, dimension, request.settings):
        print(line, file=sys.stderr, flush=True)
