"""U-ViT (Bao et al. 2023, arXiv 2209.12152): a plain transformer with the long skips of a UNet.

The timestep, the condition and the patches of the image are all tokens of one sequence, with a
learned embedding of their places, so that there is neither adaptive norm nor cross-attention. Each
layer of the second half also reads what its counterpart of the first half put out, which the paper
finds to be what matters (its figure 2).
"""

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base import errors, tree
from ldm_jax.base.values import Amount, Positive
from ldm_jax.models.backbones import BACKBONES, Backbone
from ldm_jax.nn import attention, blocks
from ldm_jax.nn import tokens as tokens_lib

INIT, CUT_INIT = nn.initializers.normal(0.02), blocks.KERNEL_INIT
EPS = 1e-5


@BACKBONES.register("uvit")
class UViT(Backbone):
    """U-ViT (Bao et al. 2023).

    x: [b, h, w, c], t: [b] -> [b, h, w, out_channels] float32. It takes sides of one size, and one
    number of tokens, those that it was initialised with.

    width, heads: of the layers; depth: their number, even, beside the middle one. S, M, L and H of
    the paper are (512, 12, 8), (768, 16, 12), (1024, 20, 16) and (1152, 28, 16) as (width, depth,
    heads). patch: side of a patch, in positions of the latent. time_mlp: the timestep's sinusoids
    go through two layers before they are a token. conv_out: a 3x3 convolution of the image at the
    end. position_std: deviation that the embeddings of places start with, officially 0.02; a brief
    training learned shapes only with 1, and photographs better with 0.02 (docs/objectives.md).
    time_offset: added to the timestep; officially 1, as it counts from 1 there. attention_kernel:
    see `attention.choose`.
    """

    width: Positive = 512
    depth: Positive = 12
    heads: Positive = 8
    patch: Positive = 2
    time_mlp: bool = False
    conv_out: bool = True
    position_std: Amount = 0.02
    time_offset: int = 0
    attention_kernel: Literal["xla", "cudnn", "pallas", "auto"] = "xla"
    remat: bool = False
    remat_saves: Literal["", "products"] = ""

    one_size: ClassVar[bool] = True

    @property
    def divisor(self):
        return self.patch

    @property
    def width_unit(self):
        return self.heads

    @property
    def time_width(self):
        return self.width

    @nn.nowrap
    def check(self):
        if self.width % self.heads:
            nearest = max(1, round(self.width / self.heads)) * self.heads
            raise errors.UsageError(
                f"width={self.width} must divide by heads={self.heads}; nearest: {nearest}."
            )
        if self.depth % 2:
            raise errors.UsageError(
                f"depth={self.depth} must be even, as half of the layers come before the middle "
                f"one and half behind it; nearest: {self.depth + 1}."
            )

    @nn.compact
    def __call__(
        self, x, t, tokens=None, vector=None, concat=None, mask=None, time=None, train=False
    ):
        """tokens: [b, n, d], seen where mask [b, n] is True, and mapped to the width where d
        differs from it; concat: [b, h, w, c2], channels appended to x; time: [b, width], added to
        the timestep's sinusoids."""
        x = x if concat is None else jnp.concatenate([x, concat], axis=-1)
        h, w = tokens_lib.grid(x, self.patch)
        cut = tokens_lib.cut(x, self.patch, self.width, kernel_init=CUT_INIT, dtype=self.dtype)
        condition = [] if tokens is None else [self._condition(tokens)]
        sequence = jnp.concatenate([self._time(t, time), *condition, cut], axis=1)
        sequence = sequence + self._positions(sequence.shape[1]).astype(self.dtype)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (1, h * w)), constant_values=True)
        each = blocks.same_fields(self, Layers) | dict(length=self.depth // 2)
        sequence, skips = Layers(**each, name="before")(sequence, None, mask)
        sequence, _ = blocks.layer(Layer, self)(name="middle")(sequence, None, mask)
        sequence, _ = Layers(**each, name="behind")(sequence, skips[::-1], mask)
        return self._head(sequence[:, -h * w :], h, w)

    @nn.nowrap
    def _time(self, t, time):
        """[b] -> one token, [b, 1, width]."""
        features = blocks.timestep_embedding(t + self.time_offset, self.width)
        features = (features if time is None else features + time).astype(self.dtype)
        if self.time_mlp:
            how = dict(dtype=self.dtype, kernel_init=INIT)
            hidden = nn.silu(blocks.dense(4 * self.width, "time_in", **how)(features))
            features = blocks.dense(self.width, "time_out", **how)(hidden)
        return features[:, None]

    @nn.nowrap
    def _condition(self, tokens):
        if tokens.shape[-1] == self.width:
            return tokens.astype(self.dtype)
        return blocks.dense(self.width, "tokens_in", dtype=self.dtype, kernel_init=INIT)(tokens)

    @nn.nowrap
    def _positions(self, length):
        """[1, length, width]: of the timestep, the condition's tokens and the patches."""
        if self.has_variable("params", "positions"):
            known = self.get_variable("params", "positions").shape[1]
            if known != length:
                raise ValueError(
                    f"A U-ViT keeps an embedding of every place of its sequence: this one was made "
                    f"for {known} tokens of the timestep, the condition and the patches, not "
                    f"{length}."
                )
        init = nn.initializers.normal(self.position_std)
        return self.param("positions", init, (1, length, self.width))

    @nn.nowrap
    def _head(self, x, h, w):
        """[b, n, width] -> [b, h * patch, w * patch, out_channels]."""
        columns = self.patch**2 * self.out_channels
        x = _norm(self.dtype, "norm_out")(x)
        x = blocks.dense(columns, "patch_out", dtype=self.dtype, kernel_init=INIT)(x)
        x = tokens_lib.joined(x, h, w, self.patch)
        if self.conv_out:
            x = blocks.conv3x3(self.out_channels, "conv_out", dtype=self.dtype)(x)
        return x.astype(jnp.float32)


class Layers(nn.Module):
    """So many layers one after another, compiled once and run by a scan.

    (x [b, n, d], skips, mask) -> (like x, what each layer put out [length, b, n, d]). skips: what
    each layer reads beside x, or None.
    """

    length: int
    heads: int
    attention_kernel: str = "xla"
    remat: bool = False
    remat_saves: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, skips, mask):
        layer = blocks.layer(Layer, self)
        stack = nn.scan(
            layer.func,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.length,
        )
        return stack(**layer.keywords, name=tree.STACK)(x, skips, mask)


class Layer(nn.Module):
    """Self-attention and an MLP, each residual, of x and, where there is one, of a skip.

    (x [b, n, d], skip [b, n, d] or None, mask [b, n]) -> (like x, the same), as a scan takes it.
    """

    heads: int
    attention_kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, skip, mask):
        width = x.shape[-1]
        how = dict(dtype=self.dtype, kernel_init=INIT)
        if skip is not None:
            x = blocks.dense(width, "skip", **how)(jnp.concatenate([x, skip], axis=-1))
        own = dict(kernel=self.attention_kernel, kernel_init=INIT, name="attn")
        attend = attention.CrossAttention(self.heads, width // self.heads, self.dtype, **own)
        x = x + attend(_norm(self.dtype, "norm_1")(x), mask=mask)
        y = blocks.dense(4 * width, "mlp_in", **how)(_norm(self.dtype, "norm_2")(x))
        x = x + blocks.dense(width, "mlp_out", **how)(nn.gelu(y, approximate=False))
        return x, x


def _norm(dtype, name):
    return nn.LayerNorm(EPS, dtype=dtype, use_fast_variance=False, name=name)
