"""The diffusion transformer, DiT (Peebles & Xie 2023, arXiv 2212.09748).

An image is cut into patches, each of which is a token. Every layer shifts, scales and gates its
tokens by the embedding of the timestep and of a vector condition (adaLN-zero), so that at
initialisation it is the identity. All layers are one layer, compiled once and run by a scan: their
weights are stacked, and the time to compile does not grow with the depth.
"""

from typing import Any, Literal

import einops
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors, tree
from ldm_jax.base.values import Above0, Positive
from ldm_jax.models.backbones import BACKBONES, Backbone
from ldm_jax.nn import attention, blocks
from ldm_jax.nn import tokens as tokens_lib

XAVIER = nn.initializers.xavier_uniform()
TIME_FEATURES = 256
TIME_INIT = nn.initializers.normal(0.02)
EPS = 1e-6


@BACKBONES.register("dit")
class DiT(Backbone):
    """The diffusion transformer (Peebles & Xie 2023), and its published variants.

    x: [b, h, w, c], t: [b] -> [b, h, w, out_channels] float32, zero at initialisation.

    width, depth, heads: of the layers; S, B, L and XL of the paper are (384, 12, 6), (768, 12, 12),
    (1024, 24, 16) and (1152, 28, 16). patch: side of a patch, in positions of the latent.
    cross_attention: every layer attends to the condition's tokens too, between its self-attention
    and its MLP, as in PixArt (Chen et al. 2023, arXiv 2310.00426). qk_norm: queries and keys are
    divided by their root mean square (Henry et al. 2020). rope: they are turned by their position
    (Su et al. 2021), half of a head by its row and half by its column, beside the fixed sinusoids.
    attention_kernel: see `attention.choose`.

    The other arguments reproduce published variants. separate: every layer embeds the timestep and
    the vector by itself, as diffusers' DiT; a vector is then as wide as all layers. freq_shift: of
    the timestep's sinusoids; time_offset: added to the timestep before them. mlp_eps: of the norm
    before the MLP.
    """

    width: Positive = 384
    depth: Positive = 12
    heads: Positive = 6
    patch: Positive = 2
    cross_attention: bool = False
    qk_norm: bool = False
    rope: bool = False
    separate: bool = False
    freq_shift: int = 0
    time_offset: int = 0
    mlp_eps: Above0 = EPS
    attention_kernel: Literal["xla", "cudnn", "pallas", "auto"] = "xla"
    remat: bool = False
    remat_saves: Literal["", "products"] = ""

    @property
    def divisor(self):
        return self.patch

    @property
    def width_unit(self):
        return 4 * self.heads  # rows and columns, each with sines and cosines, in every head

    @property
    def vector_width(self):
        return self.width * (self.depth if self.separate else 1)

    @property
    def time_width(self):
        return TIME_FEATURES

    @nn.nowrap
    def check(self):
        if self.width % self.width_unit:
            nearest = max(1, round(self.width / self.width_unit)) * self.width_unit
            raise errors.UsageError(
                f"width={self.width} must divide by four times heads={self.heads}; nearest: "
                f"{nearest}."
            )

    @nn.compact
    def __call__(
        self, x, t, tokens=None, vector=None, concat=None, mask=None, time=None, train=False
    ):
        """tokens: [b, n, d], seen where mask [b, n] is True; vector: [b, vector_width]; concat:
        [b, h, w, c2], channels appended to x; time: [b, 256], added to the timestep's
        sinusoids."""
        x = x if concat is None else jnp.concatenate([x, concat], axis=-1)
        h, w = tokens_lib.grid(x, self.patch)
        x = tokens_lib.cut(x, self.patch, self.width, kernel_init=_as_matrix, dtype=self.dtype)
        x = x + sinusoids(h, w, self.width).astype(self.dtype)
        features = blocks.timestep_embedding(
            t + self.time_offset, TIME_FEATURES, freq_shift=self.freq_shift
        )
        features = features if time is None else features + time
        vector = 0.0 if vector is None else vector.astype(self.dtype)
        if self.separate:
            emb = jnp.broadcast_to(vector, (len(t), self.vector_width))
            emb = einops.rearrange(emb, "b (l d) -> l b d", l=self.depth)
        else:
            emb = TimeEmbedding(self.width, self.dtype, name="time")(features) + vector
            features = None
        turns = rotations(h, w, self.width // self.heads) if self.rope else None
        # One layer after another; what is not of each layer is the same for all.
        over = (0 if self.separate else nn.broadcast, *[nn.broadcast] * 4)
        layer = blocks.layer(Layer, self)
        stack = nn.scan(
            layer.func,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=over,
            length=self.depth,
        )
        seen = (tokens, mask) if self.cross_attention else (None, None)
        x, embs = stack(**layer.keywords, name=tree.STACK)(x, emb, features, turns, *seen)
        return self._head(x, embs[0] if self.separate else emb, h, w).astype(jnp.float32)

    @nn.nowrap
    def _head(self, x, emb, h, w):
        """[b, n, width] -> [b, h * patch, w * patch, out_channels]."""
        shift, scale = _modulations(2, self.width, self.dtype, "out_ada")(nn.silu(emb))
        columns, zero = self.patch**2 * self.out_channels, blocks.ZERO_INIT
        x = _modulate(_norm(EPS, self.dtype, "norm_out")(x), shift, scale)
        x = blocks.dense(columns, "patch_out", dtype=self.dtype, kernel_init=zero)(x)
        return tokens_lib.joined(x, h, w, self.patch)


class TimeEmbedding(nn.Module):
    """Features of the timestep through an MLP: [b, TIME_FEATURES] -> [b, width]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features):
        how = dict(dtype=self.dtype, kernel_init=TIME_INIT)
        hidden = nn.silu(blocks.dense(self.width, "mlp_in", **how)(features))
        return blocks.dense(self.width, "mlp_out", **how)(hidden)


class Layer(nn.Module):
    """Self-attention, cross-attention to tokens if there are any, MLP; each is gated.

    (x [b, n, d], emb [b, d], features, turns, tokens, mask) -> (like x, emb), as a scan takes it.
    features: of the timestep, where the layer embeds it by itself and adds that to emb.
    """

    heads: int
    qk_norm: bool = False
    mlp_eps: float = EPS
    attention_kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb, features, turns, tokens, mask):
        width = x.shape[-1]
        if features is not None:
            emb = emb + TimeEmbedding(width, self.dtype, name="time")(features)
        parts = _modulations(6, width, self.dtype, "ada")(nn.silu(emb))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        own = (self.heads, self.qk_norm, self.attention_kernel, self.dtype)
        attend = SelfAttention(*own, name="attn")
        y = _modulate(_norm(EPS, self.dtype, "norm_1")(x), shift, scale)
        x = x + gate[:, None] * attend(y, turns)
        if tokens is not None:
            own = dict(kernel=self.attention_kernel, zero_init=True, name="cross_attn")
            cross = attention.CrossAttention(self.heads, width // self.heads, self.dtype, **own)
            x = x + cross(x, tokens, mask)
        y = _modulate(_norm(self.mlp_eps, self.dtype, "norm_2")(x), mlp_shift, mlp_scale)
        how = dict(dtype=self.dtype, kernel_init=XAVIER)
        y = nn.gelu(blocks.dense(4 * width, "mlp_in", **how)(y), approximate=True)
        return x + mlp_gate[:, None] * blocks.dense(width, "mlp_out", **how)(y), emb


class SelfAttention(nn.Module):
    """Attention of tokens to one another. x: [b, n, d] -> same; turns: see `rotations`."""

    heads: int
    qk_norm: bool
    kernel: str
    dtype: Any

    @nn.compact
    def __call__(self, x, turns):
        width = x.shape[-1]
        how = dict(dtype=self.dtype, kernel_init=XAVIER)
        parts = blocks.DenseParts(3, width, **how, name="qkv")(x)
        q, k, v = (einops.rearrange(y, "b n (i d) -> b n i d", i=self.heads) for y in parts)
        if self.qk_norm:
            q = nn.RMSNorm(EPS, dtype=self.dtype, name="norm_q")(q)
            k = nn.RMSNorm(EPS, dtype=self.dtype, name="norm_k")(k)
        if turns is not None:
            q, k = _turn(q, *turns), _turn(k, *turns)
        y = einops.rearrange(attention.attend(q, k, v, kernel=self.kernel), "b n i d -> b n (i d)")
        return blocks.dense(width, "proj", **how)(y)


def sinusoids(h: int, w: int, width: int):
    """The fixed embedding of positions, [h * w, width]: of the column, then of the row."""
    quarter = width // 4
    freqs = 10_000.0 ** (-np.arange(quarter) / quarter)
    angles = [np.outer(at.ravel(), freqs) for at in np.mgrid[:h, :w][::-1]]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)


def rotations(h: int, w: int, head_width: int):
    """(cosines, sines), each [h * w, head_width / 2]: of the row, then of the column."""
    quarter = head_width // 4
    freqs = 10_000.0 ** (-np.arange(quarter) / quarter)
    angles = np.concatenate([np.outer(at.ravel(), freqs) for at in np.mgrid[:h, :w]], axis=1)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def _turn(x, cos, sin):
    """Turns the pairs (x_i, x_{i + d/2}) of every head. x: [b, n, heads, d]."""
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1)
    return turned.astype(x.dtype)


def _modulations(parts, width, dtype, name):
    """The linear map from an embedding to so many shifts, scales and gates, zero at first."""
    how = dict(kernel_init=blocks.ZERO_INIT, dtype=dtype, name=name)
    return blocks.DenseParts(parts, width, **how)


def _norm(eps, dtype, name):
    """A LayerNorm without weights: the embedding brings scale and shift."""
    how = dict(use_bias=False, use_scale=False, use_fast_variance=False)
    return nn.LayerNorm(eps, dtype=dtype, name=name, **how)


def _modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


def _as_matrix(key, shape, *dtype):
    """XAVIER of a convolution's kernel, as of the matrix from all its inputs to its outputs."""
    return XAVIER(key, (np.prod(shape[:-1]), shape[-1]), *dtype).reshape(shape)
