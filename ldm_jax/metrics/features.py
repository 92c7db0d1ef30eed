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
import numpy as np

from ldm_jax.base import hub
from ldm_jax.base.registry import Registry
from ldm_jax.metrics import resize
from ldm_jax.models import inception, mobilenet, vit

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
    published: sha256 of the files that its names stand for; () where the reader refuses others, or
      the names stand for any. digits: of other weights, which all names then end in.
    own: metrics of this network alone, named so already; they are the default.
    embed: (weights, ids [b, n]) -> [b, dimension], of texts as CLIP's byte pairs; pure.
    """

    network: str
    dimension: int
    classes: int
    resize: str
    distance: str
    suffix: str
    apply: Callable
    weights: str = ""
    published: tuple[str, ...] = ()
    digits: str = ""
    own: tuple[str, ...] = ()
    embed: Callable | None = None

    def bind(self, weights):
        """uint8 [b, h, w, 3] -> (features, logits), compiled."""
        apply = jax.jit(self.apply)
        return lambda pixels: apply(weights, pixels)

    def name(self, figure: str) -> str:
        """The public name of a figure such as "fd", "fd/std" or "kid"."""
        head, _, tail = figure.partition("/")
        if head not in self.own:
            head = self.distance if head == "fd" else head + self.suffix
        return "_".join(part for part in (head, self.digits, tail) if part)

    def of(self, digest: str) -> "Extractor":
        """This extractor as it is called with weights of that sha256."""
        known = not self.published or digest in self.published
        return self if known else dataclasses.replace(self, digits=digest[:8])


def _inception(kind, distance, suffix):
    """Inception on images resized by `kind`, a name of resize.RESIZES."""

    def apply(weights, pixels):
        return inception.Inception().apply(weights, _for_inception(kind, pixels))

    names = (distance, suffix, apply, "inception:fid")
    return Extractor("inception", 2048, inception.CLASSES, _to_inception(kind), *names)


def _spatial(weights, pixels, channels=7):
    """What sFID is of (Nash et al. 2021) in ADM's evaluator: some channels of mixed_6/conv there.

    That is the first branch of Mixed_6d, by the names of the weights' file.
    """
    maps = inception.Inception(until="Mixed_6d")
    found = maps.apply(weights, _for_inception("tf1_bilinear", pixels))
    return found[..., :channels].reshape(len(found), -1), None


def _for_inception(kind, pixels):
    return (resize.resize(pixels, kind, inception.SIDE) - 128.0) / 128.0


def _to_inception(kind):
    return f"{kind} to {inception.SIDE}x{inception.SIDE}"


def _mobilenet(weights, pixels, side=160):
    images = pixels.astype(jnp.float32) / 127.5 - 1.0
    shape = (images.shape[0], side, side, 3)
    resized = jax.image.resize(images, shape, "bilinear", antialias=True)
    return mobilenet.features(weights, resized), None


_IMAGENET = np.array([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], np.float32)
_CLIP = np.array(
    [(0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)], np.float32
)


def _dinov2(weights, pixels, side=224):
    """As Stein et al.'s dgm-eval prepares images, unless it is told to resize as clean-fid does."""
    x = _normalised(resize.pillow(pixels, side, side), _IMAGENET)
    with jax.default_matmul_precision("highest"):
        return vit.embed(vit.DINOV2, weights, x), None


def _clip(crop):
    """CLIP's unit embeddings. crop: pixels -> square uint8 images of the side that they go in."""

    def apply(weights, pixels):
        x = _normalised(crop(pixels), _CLIP)
        with jax.default_matmul_precision("highest"):
            return _unit(vit.embed(vit.CLIP, weights["image"], x) @ weights["image_out"]), None

    return apply


def _clip_texts(weights, ids):
    with jax.default_matmul_precision("highest"):
        return _unit(vit.embed_text(weights["text"], ids) @ weights["text_out"])


def crop_and_resize(pixels, side=336):
    """The square in the middle, resized: what CMMD's code does."""
    height, width = pixels.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return resize.pillow(pixels[:, top : top + edge, left : left + edge], side, side)


def resize_and_crop(pixels, side=224):
    """Resized so that the shorter edge fits, then cropped: what CLIP's own code does."""
    height, width = pixels.shape[1:3]
    edge = min(height, width)
    height, width = side * height // edge, side * width // edge
    pixels = resize.pillow(pixels, height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)  # to even, as torchvision
    return pixels[:, top : top + side, left : left + side]


def _normalised(pixels, mean_and_std):
    mean, std = mean_and_std
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


EXTRACTORS.register("inception")(_inception("tf1_bilinear", "fid", ""))
EXTRACTORS.register("inception_clean")(_inception("pil_bicubic", "fid_clean", "_clean"))
EXTRACTORS.register("inception_spatial")(
    Extractor(
        network="inception",
        dimension=7 * 17**2,
        classes=0,
        resize=_to_inception("tf1_bilinear"),
        distance="sfid",
        suffix="_spatial",
        apply=_spatial,
        weights="inception:fid",
    )
)
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
for _name, _size, _dimension in (("dinov2", "l", 1024), ("dinov2_b", "b", 768)):
    EXTRACTORS.register(_name)(
        Extractor(
            network="dinov2",
            dimension=_dimension,
            classes=0,
            resize="Pillow's 8-bit bicubic to 224x224",
            distance=f"fd_{_name}",
            suffix=f"_{_name}",
            apply=_dinov2,
            weights=f"dinov2:{_size}",
            published=(hub.KNOWN[f"dinov2:{_size}"].rpartition("=")[2],),
        )
    )
EXTRACTORS.register("clip")(
    Extractor(
        network="clip_pair",
        dimension=768,
        classes=0,
        resize="square crop, then Pillow's 8-bit bicubic to 336x336",
        distance="fd_clip",
        suffix="_clip",
        apply=_clip(crop_and_resize),
        weights="clip:l14-336",
        published=("c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",),
        own=("cmmd",),
    )
)
EXTRACTORS.register("clip_b32")(
    Extractor(
        network="clip_pair",
        dimension=512,
        classes=0,
        resize="Pillow's 8-bit bicubic of the shorter edge to 224, then square crop",
        distance="fd_clip_b32",
        suffix="_clip_b32",
        apply=_clip(resize_and_crop),
        weights="clip:b32",
        published=("a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",),
        own=("clip_score",),
        embed=_clip_texts,
    )
)
