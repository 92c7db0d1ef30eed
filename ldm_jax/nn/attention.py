"""Attention over the positions of an image, and from an image to the tokens of a condition.

Shapes of `attend` are jax.nn.dot_product_attention's: [b, n, heads, d].
"""

from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.nn import tpu_attention
from ldm_jax.nn.blocks import KERNEL_INIT, ZERO_INIT, DenseParts, GroupNorm, dense

KERNELS = ("xla", "cudnn", "pallas", "auto")


def choose(kernel: str, q, k, masked: bool, platform: str) -> str:
    """The kernel of one layer, "xla", "cudnn" or "pallas": what was asked for where it can be had.

    "cudnn", and "auto" on a GPU, is cuDNN's flash attention, there, in 16 bits, for heads of a
    multiple of 8 and at most 128 channels (cuDNN's limits before Hopper), without a mask. "pallas",
    and "auto" on a TPU, is nn/tpu_attention.py, without a mask, where its `fits` says so.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention_kernel={kernel!r} is unknown; use {', '.join(KERNELS)}.")
    if kernel == "auto":
        kernel = {"gpu": "cudnn", "tpu": "pallas"}.get(platform, "xla")
    if masked or (kernel == "pallas" and not tpu_attention.fits(q, k)):
        return "xla"
    narrow, width = q.dtype in (jnp.bfloat16, jnp.float16), q.shape[-1]
    if kernel == "cudnn" and not (platform == "gpu" and narrow and width % 8 == 0 and width <= 128):
        return "xla"
    return kernel


def attend(q, k, v, mask=None, kernel="xla"):
    """softmax(q k^T / sqrt(d)) v, softmax in float32. q: [b, n, heads, d]; k, v: [b, m, heads, d].

    mask: [b, m] bool, True where a key may be seen. kernel: see `choose`.
    """
    chosen = choose(kernel, q, k, mask is not None, jax.default_backend())
    if chosen == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if chosen == "pallas":
        return tpu_attention.attend(q, k, v, elsewhere=attend)
    # On a CPU the gradient of this form takes less than half the time of jax's "xla" one.
    q, k, v = (einops.rearrange(x, "b n i d -> b i n d") for x in (q * q.shape[-1] ** -0.5, k, v))
    logits = _products(q, k)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    y = nn.softmax(logits, axis=-1).astype(v.dtype) @ v
    return einops.rearrange(y, "b i n d -> b n i d")


@jax.custom_vjp
def _products(q, k):
    """q k^T in float32, whose gradient is taken in the inputs' dtype, as in flash attention.

    JAX's own would multiply in float32, which takes a GPU at least twice as long as bfloat16.
    """
    return jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)


def _products_backward(inputs, gradient):
    q, k = inputs
    gradient = gradient.astype(q.dtype)
    return gradient @ k, gradient.swapaxes(-1, -2) @ q


_products.defvjp(lambda q, k: (_products(q, k), (q, k)), _products_backward)


class AttentionBlock(nn.Module):
    """Self-attention over the positions of an image, residual. x: [b, h, w, c] -> same.

    The columns of `qkv` are [q | k | v], each split into heads. One head is the autoencoder's form;
    several heads with a zero-initialised projection are ADM's (Dhariwal & Nichol 2021).
    """

    heads: int = 1
    eps: float = 1e-5
    zero_init: bool = False
    groups: int = 32
    attention_kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        _, h, w, c = x.shape
        y = GroupNorm(self.eps, self.groups, self.dtype, name="norm")(x)
        parts = DenseParts(3, c, dtype=self.dtype, name="qkv")(y)
        q, k, v = (einops.rearrange(y, "b h w (n d) -> b (h w) n d", n=self.heads) for y in parts)
        y = attend(q, k, v, kernel=self.attention_kernel)
        y = einops.rearrange(y, "b (h w) n d -> b h w (n d)", h=h, w=w)
        init = ZERO_INIT if self.zero_init else KERNEL_INIT
        return x + dense(c, "proj", dtype=self.dtype, kernel_init=init)(y)


class LinearAttention(nn.Module):
    """Attention at a cost linear in h * w (Shen et al. 2018). x: [b, h, w, c] -> same.

    As the official autoencoder has it (`attn_type: linear`): one head, neither norm nor residual.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        _, h, w, c = x.shape
        parts = DenseParts(3, c, use_bias=False, dtype=self.dtype, name="qkv")(x)
        q, k, v = (einops.rearrange(y, "b h w d -> b (h w) d") for y in parts)
        k = nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        y = jnp.einsum("bnd,bde->bne", q, jnp.einsum("bnd,bne->bde", k, v))
        y = einops.rearrange(y, "b (h w) d -> b h w d", h=h, w=w)
        return dense(c, "proj", dtype=self.dtype)(y)


class CrossAttention(nn.Module):
    """Attention to tokens, or to x itself. x: [b, n, d], tokens: [b, m, e] -> [b, n, d]."""

    heads: int
    head_width: int
    dtype: Any = jnp.float32
    kernel: str = "xla"
    zero_init: bool = False
    kernel_init: Any = KERNEL_INIT

    @nn.compact
    def __call__(self, x, tokens=None, mask=None):
        source = x if tokens is None else tokens.astype(self.dtype)
        inner = self.heads * self.head_width
        how = dict(dtype=self.dtype, use_bias=False, kernel_init=self.kernel_init)
        maps = [dense(inner, n, **how)(y) for n, y in zip("qkv", (x, source, source))]
        q, k, v = (einops.rearrange(y, "b n (i d) -> b n i d", i=self.heads) for y in maps)
        y = einops.rearrange(attend(q, k, v, mask, self.kernel), "b n i d -> b n (i d)")
        init = ZERO_INIT if self.zero_init else self.kernel_init
        return dense(x.shape[-1], "out", dtype=self.dtype, kernel_init=init)(y)


class GatedMLP(nn.Module):
    """GEGLU (Shazeer 2020): value * gelu(gate), with the exact gelu. x: [b, n, d] -> same."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        value, gate = DenseParts(2, 4 * d, dtype=self.dtype, name="proj")(x)
        return dense(d, "out", dtype=self.dtype)(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, MLP. x: [b, n, d], tokens: [b, m, e] -> [b, n, d].

    The order is the official code's; the paper's table 16 draws the MLP in the middle.
    """

    heads: int
    head_width: int
    dtype: Any = jnp.float32
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x, tokens=None, mask=None):
        shape = (self.heads, self.head_width, self.dtype, self.kernel)
        norms = [nn.LayerNorm(1e-5, dtype=self.dtype, name=f"norm_{i}") for i in (1, 2, 3)]
        x = x + CrossAttention(*shape, name="self_attn")(norms[0](x))
        # The mask is of the tokens: without them the layer attends to x itself, all of it.
        mask = None if tokens is None else mask
        x = x + CrossAttention(*shape, name="cross_attn")(norms[1](x), tokens, mask)
        return x + GatedMLP(dtype=self.dtype, name="mlp")(norms[2](x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over an image (Rombach et al. 2022, sec. 3.3). x: [b, h, w, c] -> same."""

    heads: int
    head_width: int
    depth: int = 1
    groups: int = 32
    attention_kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, tokens=None, mask=None):
        _, h, w, c = x.shape
        y = GroupNorm(1e-6, self.groups, self.dtype, name="norm")(x)
        y = dense(self.heads * self.head_width, "proj_in", dtype=self.dtype)(y)
        y = einops.rearrange(y, "b h w d -> b (h w) d")
        for i in range(self.depth):
            shape = (self.heads, self.head_width, self.dtype, self.attention_kernel)
            y = TransformerBlock(*shape, name=f"block_{i}")(y, tokens, mask)
        y = einops.rearrange(y, "b (h w) d -> b h w d", h=h, w=w)
        return x + dense(c, "proj_out", dtype=self.dtype, kernel_init=ZERO_INIT)(y)
