"""The vision transformer of DINOv2 and of CLIP's image side, as a fixed feature extractor.

Dosovitskiy et al. 2020; Oquab et al. 2023 (arXiv 2304.07193); Radford et al. 2021. Its sizes are
those of the arrays, which weights/vit.py reads: nothing here is trained or initialised.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from ldm_jax.models import clip, transformer

HEAD_WIDTH = 64  # of attention, in all published sizes
_OFFSET = 0.1  # that DINOv2 adds to a grid's side before it interpolates positions


@dataclasses.dataclass(frozen=True)
class Style:
    """In what the two differ. layer_scale: Touvron et al. 2021; norm_first: before any layer."""

    activation: str
    epsilon: float
    layer_scale: bool
    norm_first: bool


DINOV2 = Style("gelu", 1e-6, layer_scale=True, norm_first=False)
CLIP = Style("quick_gelu", 1e-5, layer_scale=False, norm_first=True)


class ViT(nn.Module):
    """The class token behind the last norm, [b, width]. x: [b, h, w, 3], normalised as trained.

    grid: side of the square of positions that the weights hold; those of others are interpolated.
    """

    style: Style
    patch: int
    width: int
    depth: int
    grid: int

    @nn.compact
    def __call__(self, x):
        style, init = self.style, nn.initializers.normal(0.02)
        norm = lambda name: nn.LayerNorm(style.epsilon, name=name)
        side, bias = (self.patch,) * 2, not style.norm_first
        x = nn.Conv(self.width, side, side, "VALID", use_bias=bias, name="patch")(x)
        token = self.param("token", init, (self.width,))
        positions = self.param("positions", init, (1 + self.grid**2, self.width))
        seen = interpolated(positions, *x.shape[1:3])
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        x = jnp.concatenate([token, rearrange(x, "b h w d -> b (h w) d")], axis=1) + seen
        x = norm("norm_0")(x) if style.norm_first else x
        block = dict(heads=self.width // HEAD_WIDTH, activation=style.activation, causal=False)
        block |= dict(epsilon=style.epsilon, layer_scale=style.layer_scale)
        for i in range(self.depth):
            x = clip.Block(**block, name=f"block_{i}")(x)
        return norm("norm")(x[:, 0])


def depth(params) -> int:
    """How many layers the params of a transformer have."""
    return sum(name.startswith("block_") for name in params)


def embed(style: Style, params, x):
    """The output of a ViT of that style with these params, whose shapes are its sizes."""
    patch, _, _, width = params["patch"]["kernel"].shape
    grid = math.isqrt(len(params["positions"]) - 1)
    return ViT(style, patch, width, depth(params), grid).apply({"params": params}, x)


def embed_text(params, ids):
    """CLIP's text side behind its last norm, where a caption ends. ids: [b, n] -> [b, d].

    The end is the largest id of the vocabulary.
    """
    (vocabulary, width), length = params["table"]["embedding"].shape, len(params["positions"])
    block = lambda name: clip.Block(width // HEAD_WIDTH, CLIP.activation, name=name)
    sizes = dict(vocab_size=vocabulary, length=length, width=width, depth=depth(params))
    tokens = transformer.TokenTransformer(**sizes, block=block).apply({"params": params}, ids)
    return tokens[jnp.arange(len(ids)), ids.argmax(1)]


def interpolated(positions, rows: int, columns: int):
    """The positions of a grid of that size, [1 + rows * columns, d], the class token's first.

    Bicubic, as DINOv2's own code resizes them with torch: the stretch is that of a side longer by
    _OFFSET, and there is no antialiasing.
    """
    grid = math.isqrt(len(positions) - 1)
    if (rows, columns) == (grid, grid):
        return positions
    down, across = (_bicubic(grid, side) for side in (rows, columns))
    square = rearrange(positions[1:], "(h w) d -> h w d", h=grid)
    square = jnp.einsum("yh,xw,hwd->yxd", down, across, square, precision="highest")
    return jnp.concatenate([positions[:1], rearrange(square, "y x d -> (y x) d")])


def _bicubic(old: int, new: int) -> np.ndarray:
    """The weights [new, old] of torch's bicubic interpolation, a = -3/4; beyond the edge, it."""
    at = (np.arange(new) + 0.5) * old / (new + _OFFSET) - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        place = np.floor(at).astype(int) + tap
        x = np.abs(at - place)
        near = (1.25 * x - 2.25) * x**2 + 1.0
        far = ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0
        index = np.arange(new), place.clip(0, old - 1)
        np.add.at(weights, index, np.where(x <= 1.0, near, far))
    return weights.astype(np.float32)
