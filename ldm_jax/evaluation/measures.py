"""Which figures are wanted, on which features, and their part of a protocol.

What `evaluate` (summaries.py) and training (distances.py) share.
"""

import dataclasses

from ldm_jax.base import errors, tensorfile, terminal
from ldm_jax.evaluation import suite
from ldm_jax.metrics import features as features_lib
from ldm_jax.weights.readers import READERS

DEFAULT = ("fd", "kid", "prc", "dc")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured, on which features. extraction: their part of the protocol."""

    metrics: tuple[str, ...]
    extractor: features_lib.Extractor
    weights: object
    extraction: dict
    settings: suite.Settings

    def gather(self, batches, keep: int | None = None) -> suite.Features:
        """The features of batches (uint8 [b, h, w, 3], mask [b]); see suite.collect."""
        extract = self.extractor.bind(self.weights)
        return suite.collect(((*extract(pixels), mask) for pixels, mask in batches), keep)

    def figures(self, samples: suite.Features, reference, prefix: str = "") -> dict:
        """{prefix + public name: number}. reference: a reference.Reference, or None."""
        found = {}
        for name in self.metrics:
            found |= suite.METRICS.get(name).compute(samples, reference, self.settings)
        return {prefix + self.extractor.name(name): value for name, value in found.items()}

    def measurement(self, n: int, size, origin: dict) -> dict:
        """The half of a protocol that must be equal; origin: of the reference."""
        settings = dataclasses.asdict(self.settings)
        measured = {"n": n, "size": list(size), "reference": origin, "settings": settings}
        return self.extraction | measured

    def warn(self, n: int, reference_n: int | None):
        """Warns of figures that so few images say little about; fewer than 2 are refused."""
        if min(n, reference_n or n) < 2:
            raise errors.UsageError(
                f"{n} samples against {reference_n} images: figures need 2 images or more of each."
            )
        dimension = self.extractor.dimension
        for line in suite.warnings(self.metrics, n, reference_n, dimension, self.settings):
            terminal.warn(line)


def make_request(
    metrics, features: str, weights, flags=("--metrics", "--weights=FILE"), bootstrap: int = 0
) -> Request:
    """Of metrics by name, DEFAULT where there are none; reads the `weights` of `features`.

    weights: a file or its public name; "" takes the public ones of the features, if there are any.
    flags: what the user calls the metrics and the file. bootstrap: see suite.Settings; training
      needs none, as the curve of its figures shows how much they vary.
    """
    if not (weights := weights or features_lib.EXTRACTORS.get(features).weights):
        what = f"{flags[0]}={','.join(metrics)} needs" if metrics else "Figures of images need"
        raise errors.UsageError(
            f"{what} {flags[1]}, the weights of the features {features!r}, which have no public "
            "name (docs/evaluation.md says where they are)."
        )
    for name in metrics:
        suite.METRICS.get(name)
    settings = suite.Settings(bootstrap=bootstrap)
    return Request(tuple(metrics) or DEFAULT, *open_features(features, weights), settings)


def open_features(name: str, path):
    """An extractor, its weights, and its part of a protocol."""
    extractor = features_lib.EXTRACTORS.get(name)
    weights = READERS.get(extractor.network)(path)
    extraction = {
        "features": name,
        "resize": extractor.resize,
        "feature_weights": tensorfile.digest(path)[:16],
    }
    return extractor, weights, extraction
