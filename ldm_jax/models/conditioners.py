"""Conditioners: from the batch's condition fields to what the denoiser takes.

A conditioner is a Linen module called with `(batch, drop)`: a dict of arrays, and [b] bool, the
rows to give the null condition (classifier-free guidance, Ho & Salimans 2022). Its `fields` name
what it reads from the batch.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base import registry

CONDITIONERS = registry.Registry("conditioner")


class Cond(NamedTuple):
    """What the denoiser takes beside x and t; every part may be absent.

    tokens: [b, n, d] for cross-attention, seen where mask [b, n] is True; vector: [b, d], added to
    the time embedding; concat: [b, h, w, c], channels appended to x.
    """

    tokens: jax.Array | None = None
    vector: jax.Array | None = None
    concat: jax.Array | None = None
    mask: jax.Array | None = None


@CONDITIONERS.register("class")
class ClassEmbedder(nn.Module):
    """One embedding per class, and a last one for the null class. batch["class"]: int [b].

    As one token [b, 1, width] for cross-attention, or with `place="vector"` as [b, width], where
    width must be 4 * the UNet's width.
    """

    num_classes: int
    width: int = 512
    place: str = "tokens"
    dtype: Any = jnp.float32

    fields: ClassVar[tuple] = ("class",)

    @nn.compact
    def __call__(self, batch, drop):
        if self.place not in ("tokens", "vector"):
            raise ValueError(f"place={self.place!r} is unknown; use 'tokens' or 'vector'.")
        rows = self.num_classes + 1
        init = nn.initializers.normal(1.0)
        table = nn.Embed(rows, self.width, embedding_init=init, dtype=self.dtype, name="table")
        emb = table(jnp.where(drop, self.num_classes, batch["class"]))
        return Cond(tokens=emb[:, None]) if self.place == "tokens" else Cond(vector=emb)


def merge(conds):
    """One Cond of many: tokens joined on their axis, concat on channels, vectors added."""
    conds = [cond for cond in conds if cond is not None]
    tokens = [c.tokens for c in conds if c.tokens is not None]
    vectors = [c.vector for c in conds if c.vector is not None]
    concats = [c.concat for c in conds if c.concat is not None]
    return Cond(
        tokens=jnp.concatenate(tokens, axis=1) if tokens else None,
        vector=sum(vectors[1:], vectors[0]) if vectors else None,
        concat=jnp.concatenate(concats, axis=-1) if concats else None,
        mask=_merge_masks([c for c in conds if c.tokens is not None]),
    )


def _merge_masks(conds):
    """Masks joined like the tokens; tokens without a mask are all seen."""
    if all(c.mask is None for c in conds):
        return None
    return jnp.concatenate(
        [jnp.ones(c.tokens.shape[:2], bool) if c.mask is None else c.mask for c in conds], axis=1
    )
