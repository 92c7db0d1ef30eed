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


@dataclasses.dataclass(frozen=True)
class Plan:
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


def plan(args, default) -> Plan:
    """From the flags of `evaluate`; reads the weights."""
    if not args.weights:
        raise errors.UsageError(
            f"--metrics={','.join(args.metrics)} needs --weights=FILE, the weights of "
            f"--features={args.features} (docs/evaluation.md says where they are)."
        )
    for name in args.metrics:
        suite.METRICS.get(name)
    extractor, weights, extraction = open_features(args.features, args.weights)
    return Plan(
        tuple(args.metrics) or default,
        suite.Settings(bootstrap=args.bootstrap),
        *(extractor, weights, extraction),
        args.reference_records,
    )


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


def of_samples(samples, manifest: dict, reference, plan: Plan, other=None) -> dict:
    """The figures of an ImageSet and their "protocol". reference: its path, or None.

    other: a summary to be compared with later, so that a difference is found at once.
    """
    statistics, images, origin = _open_reference(reference, samples.size, plan)
    has_features = images is not None or getattr(statistics, "features", None) is not None
    has_reference = reference is not None
    suite.check(plan.metrics, plan.extractor.classes, has_reference, has_features)
    measurement = _measurement(plan, samples.count, samples.size, origin)
    subject = {k: v for k, v in manifest.items() if k != "run"} or samples.origin
    protocols = protocol.protocol(measurement, subject)
    if other:
        protocol.refuse_unless_equal(protocols, other.get("protocol", {}), "--against")
    count = statistics.count if statistics else (images.count if images else None)
    _warn(plan, samples.count, count)
    if images:
        compute = lambda: plan.gather(images.batches(), reference_lib.KEEP)
        statistics = reference_lib.cached(plan.extraction | origin, compute)
    figures = suite.measure(plan.metrics, plan.gather(samples.batches()), statistics, plan.settings)
    return stored(plan.named(figures), protocols)


def protocol_of_run(plan: Plan | None, data: dict, subject: dict, lpips=()) -> dict:
    """The protocol of a run's own measures and, with a plan, of figures of reconstructions.

    data: origin of the images. lpips: files of its weights.
    """
    n = data["records"]
    measurement = {"n": n, "size": data["size"], "reference": data}
    if plan:
        suite.check(plan.metrics, False, True, True)
        _warn(plan, n, n)
        measurement = _measurement(plan, n, data["size"], data)
    measurement["scores"] = "of unrounded floats"
    measurement["lpips"] = [tensorfile.digest(file)[:16] for file in lpips]
    return protocol.protocol(measurement, subject)


def of_first_stage(codec, params, batches, data: dict, plan: Plan | None) -> tuple[dict, dict]:
    """Statistics of the latents of some images and, with a plan, figures of reconstructions.

    batches: () -> {"image": [b, h, w, 3], "real": [b]}. data: origin of the images.
    """
    held_out = HeldOut(codec, params, batches)
    if plan is None:
        collections.deque(held_out.reconstructions(), maxlen=0)
        return held_out.summary(), {}
    real, fake = plan.gather(held_out.originals()), plan.gather(held_out.reconstructions())
    reference = reference_lib.Reference.of(real, data)
    figures = suite.measure(plan.metrics, fake, reference, plan.settings)
    return held_out.summary(), {f"r{k}": value for k, value in plan.named(figures).items()}


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


def _open_reference(path, size, plan):
    """(statistics or None, ImageSet or None, origin) of --reference."""
    if path is None:
        return None, None, {}
    if imagesets.is_statistics(path):
        statistics = reference_lib.load(pathlib.Path(path), plan.extraction)
        width = len(statistics.mean)
        if width != plan.extractor.dimension:
            raise errors.UsageError(
                f"--reference={path} is of {width} features, {plan.extraction['features']} has "
                f"{plan.extractor.dimension}: take the extractor it was made with."
            )
        if statistics.origin.get("size", list(size)) != list(size):
            raise errors.UsageError(
                f"--reference={path} is of images of {statistics.origin['size']}, the samples are "
                f"{list(size)}."
            )
        origin = {k: v for k, v in statistics.origin.items() if k not in plan.extraction}
        return statistics, None, origin
    images = imagesets.open_set(path, "--reference", size, plan.reference_records)
    return None, images, images.origin


def stored(figures: dict, protocols: dict) -> dict:
    """Figures as a summary holds them, beside their protocol."""
    return figures | {"protocol": protocols | {"figures": list(figures)}}


def _measurement(plan, n, size, origin):
    return plan.extraction | {
        "n": n,
        "size": list(size),
        "reference": origin,
        "settings": dataclasses.asdict(plan.settings),
    }


def _warn(plan, n, reference_n):
    if min(n, reference_n or n) < 2:
        raise errors.UsageError(
            f"{n} samples against {reference_n} images: figures need 2 images or more of each."
        )
    dimension = plan.extractor.dimension
    for line in suite.warnings(plan.metrics, n, reference_n, dimension, plan.settings):
        print(line, file=sys.stderr, flush=True)
