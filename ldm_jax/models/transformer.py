"""The transformer over discrete tokens, and the layer of the paper's text and layout models.

These are trained from scratch with the denoiser (Rombach et al. 2022, app. E.2), in the form of
x-transformers' pre-norm encoder.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.nn import attention, blocks


class TokenTransformer(nn.Module):
    """ids: int [b, n], n <= length -> [b, n, width] after the last norm.

    table_std: standard deviation that the embeddings of tokens and positions start with.
    block: makes a layer, given its name. The layer is called with x [b, n, width] and, where there
    is one, the mask [b, n], which is False at tokens that must not be attended to.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    block: Callable[..., nn.Module]
    table_std: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids, mask=None):
        init = nn.initializers.normal(self.table_std)
        how = dict(embedding_init=init, dtype=self.dtype, name="table")
        table = nn.Embed(self.vocab_size, self.width, **how)
        positions = self.param("positions", init, (self.length, self.width))
        x = table(ids) + positions[: ids.shape[1]].astype(self.dtype)
        seen = () if mask is None else (mask,)
        for i in range(self.depth):
            x = self.block(name=f"block_{i}")(x, *seen)
        return nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)


class Block(nn.Module):
    """Self-attention, then an MLP with the exact gelu, each after its norm. x: [b, n, d].

    The attention's inner width is heads * head_width, whatever d is (8 * 64 officially).
    """

    heads: int
    head_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None):
        width = x.shape[-1]
        attend = attention.CrossAttention(self.heads, self.head_width, self.dtype, name="attn")
        norm_1, norm_2 = (nn.LayerNorm(1e-5, dtype=self.dtype, name=f"norm_{i}") for i in (1, 2))
        x = x + attend(norm_1(x), None, mask)
        h = blocks.dense(4 * width, "mlp_in", dtype=self.dtype)(norm_2(x))
        h = nn.gelu(h, approximate=False)
        return x + blocks.dense(width, "mlp_out", dtype=self.dtype)(h)
