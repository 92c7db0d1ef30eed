"""Which figures are wanted, on which features, and their part of a protocol.

What `evaluate` (summaries.py) and training (distances.py) share.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from ldm_jax.base import errors, hub, tensorfile, terminal
from ldm_jax.data import bytepairs
from ldm_jax.evaluation import suite
from ldm_jax.metrics import clip_score
from ldm_jax.metrics import features as features_lib
from ldm_jax.weights import clip
from ldm_jax.weights.readers import READERS

DEFAULT = ("fd", "kid", "prc", "dc")
TEXTS = 256  # captions that are embedded at a time


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured, on which features.

    extraction: their part of the protocol. tokenizer: the folder or name of the vocabulary of an
      extractor that embeds texts.
    """

    metrics: tuple[str, ...]
    extractor: features_lib.Extractor
    weights: object
    extraction: dict
    settings: suite.Settings
    tokenizer: str = ""

    def gather(self, batches, keep: int | None = None, captions=()) -> suite.Features:
        """The features of batches (uint8 [b, h, w, 3], mask [b]); see suite.collect.

        captions: of all these images, where a metric needs them.
        """
        texts = self._embedded(captions) if len(captions) else None
        extract = self.extractor.bind(self.weights)
        found = suite.collect(((*extract(pixels), mask) for pixels, mask in batches), keep)
        return dataclasses.replace(found, texts=texts)

    def _embedded(self, captions) -> np.ndarray:
        """[n, d], of captions with the words of CLIPScore before them."""
        prompts = [clip_score.PROMPT + caption for caption in captions]
        ids = bytepairs.encode(prompts, self.tokenizer)
        embed = jax.jit(functools.partial(self.extractor.embed, self.weights))
        parts = np.array_split(ids, max(1, len(ids) // TEXTS))
        return np.concatenate([embed(part) for part in parts])

    @property
    def compares(self) -> bool:
        """Whether any metric needs a reference."""
        return any("reference" in suite.METRICS.get(name).needs for name in self.metrics)

    def check(self, *have, flag="--metrics"):
        """Raises UsageError for a metric that needs more than `have`, of suite.NEEDS."""
        lacks = () if self.extractor.classes else ("logits",)
        suite.check(self.metrics, {*have, *self.extractor.own}.difference(lacks), flag)

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
    """Of metrics by name, or the usual ones of the features; reads the `weights` of `features`.

    weights: a file or its public name; "" takes the public ones of the features, if there are any.
    flags: what the user calls the metrics and the file. bootstrap: see suite.Settings; training
      needs none, as the curve of its figures shows how much they vary.
    """
    weights = check_request(metrics, features, weights, flags)
    settings = suite.Settings(bootstrap=bootstrap)
    extractor, read, extraction = open_features(features, weights)
    metrics = tuple(metrics) or extractor.own or DEFAULT
    tokenizer = _tokenizer(weights) if extractor.embed else ""
    return Request(metrics, extractor, read, extraction, settings, tokenizer)


def check_request(metrics, features: str, weights, flags=("--metrics", "--weights=FILE")):
    """What `make_request` refuses before it reads the weights; returns where they are."""
    if not (weights := weights or features_lib.EXTRACTORS.get(features).weights):
        what = f"{flags[0]}={','.join(metrics)} needs" if metrics else "Figures of images need"
        raise errors.UsageError(
            f"{what} {flags[1]}, the weights of the features {features!r}, which have no public "
            "name (docs/evaluation.md says where they are)."
        )
    for name in metrics:
        with errors.of(flags[0]):
            suite.METRICS.get(name)
    return weights


def open_features(name: str, path):
    """An extractor, its weights, and its part of a protocol."""
    extractor = features_lib.EXTRACTORS.get(name)
    weights = READERS.get(extractor.network)(path)
    if extractor.published:  # then files of other sizes can be read, too
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
        width = jax.eval_shape(extractor.apply, weights, image)[0].shape[1]
        if width != extractor.dimension:
            raise errors.UsageError(
                f"{path} gives {width} features an image, but {name} has {extractor.dimension}: "
                "take the --features that these weights are of."
            )
    digest = tensorfile.digest(clip.weights_file(path))
    extraction = {"features": name, "resize": extractor.resize, "feature_weights": digest[:16]}
    return extractor.of(digest), weights, extraction


def _tokenizer(weights) -> str:
    """The folder of CLIP's vocabulary: that of the weights, or else the name of one like it."""
    path = pathlib.Path(weights)
    path = path if path.is_dir() else path.parent
    return str(path) if (path / "vocab.json").is_file() and not hub.is_name(weights) else "clip:l14"
