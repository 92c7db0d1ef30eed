"""Feature extractors for distances between sets of images, each with its fixed protocol.

    extract = EXTRACTORS.get(name).bind(weights)
    features, logits = extract(pixels)          # uint8 [b, h, w, 3] -> [b, d] and [b, k] or None

Pixels are uint8: what an image file holds is what is measured. A Frechet distance on extractor `x`
is called `fd_x`; only Inception's pooled features make a FID.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ldm_jax.base.registry import Registry
from ldm_jax.metrics import resize
from ldm_jax.models import inception, mobilenet

EXTRACTORS = Registry("feature extractor")


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network and how images enter it.

    network: whose weights it takes, a name of weights/readers.py's READERS.
    dimension: of the features; classes: of the logits, 0 for none.
    resize: in words, for the protocol.
    distance, suffix: the Frechet distance's name, and what other figures' names end in.
    apply: (weights, uint8 [b, h, w, 3]) -> (float32 [b, dimension], logits [b, k] or None); pure.
    weights: the public name of its weights (base/hub.py), "" where they have none.
    """

    network: str
    dimension: int
    classes: int
    resize: str
    distance: str
    suffix: str
    apply: Callable
    weights: str = ""

    def bind(self, weights):
        """uint8 [b, h, w, 3] -> (features, logits), compiled."""
        apply = jax.jit(self.apply)
        return lambda pixels: apply(weights, pixels)

    def name(self, figure: str) -> str:
        """The public name of a figure such as "fd", "fd/std" or "kid"."""
        head, _, tail = figure.partition("/")
        head = self.distance if head == "fd" else head + self.suffix
        return f"{head}_{tail}" if tail else head


def _inception(kind, distance, suffix):
    """Inception on images resized by `kind`, a name of resize.RESIZES."""

    def apply(weights, pixels):
        x = (resize.resize(pixels, kind, inception.SIDE) - 128.0) / 128.0
        return inception.Inception().apply(weights, x)

    how = f"{kind} to {inception.SIDE}x{inception.SIDE}"
    names = (distance, suffix, apply, "inception:fid")
    return Extractor("inception", 2048, inception.CLASSES, how, *names)


def _mobilenet(weights, pixels, side=160):
    images = pixels.astype(jnp.float32) / 127.5 - 1.0
    shape = (images.shape[0], side, side, 3)
    resized = jax.image.resize(images, shape, "bilinear", antialias=True)
    return mobilenet.features(weights, resized), None


EXTRACTORS.register("inception")(_inception("tf1_bilinear", "fid", ""))
EXTRACTORS.register("inception_clean")(_inception("pil_bicubic", "fid_clean", "_clean"))
EXTRACTORS.register("mobilenet")(
    Extractor(
        network="mobilenet",
        dimension=1280,
        classes=0,
        resize="antialiased bilinear to 160x160",
        distance="fd_mobilenet",
        suffix="_mobilenet",
        apply=_mobilenet,
    )
)
