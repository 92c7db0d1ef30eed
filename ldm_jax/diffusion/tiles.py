"""Pictures larger than a network takes: it works tile by tile, and overlaps are blended.

Averaging the predictions of overlapping tiles in every step is MultiDiffusion (Bar-Tal et al. 2023,
arXiv 2302.08113, eq. 5-7) with weights that fall towards a tile's edges. Tiles go one after the
other, so memory is that of one tile beside the canvas.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Square tiles: `size` cells of a side, neighbours sharing at least `overlap` of them."""

    size: int
    overlap: int

    def __post_init__(self):
        if not 0 <= self.overlap < self.size:
            raise UsageError(
                f"Tiles of size {self.size} with an overlap of {self.overlap}: the overlap must be "
                "at least 0 and less than the size."
            )

    def starts(self, length: int) -> np.ndarray:
        """Where tiles begin along a side of `length`: evenly spread from end to end."""
        if self.size >= length:
            return np.zeros(1, int)
        count = -(-(length - self.overlap) // (self.size - self.overlap))
        return np.linspace(0, length - self.size, count).round().astype(int)

    def apply(self, fn, inputs, factor: int = 1):
        """fn over every tile, blended.

        Args:
          fn: (tree of [b, th, tw, c]) -> [b, th * factor, tw * factor, d], for tiles th, tw of at
            most `size`.
          inputs: a tree of [b, h, w, c].

        Returns:
          [b, h * factor, w * factor, d].
        """
        b, h, w = jax.tree.leaves(inputs)[0].shape[:3]
        th, tw = min(self.size, h), min(self.size, w)
        rows, columns = self.starts(h), self.starts(w)
        if len(rows) == len(columns) == 1:
            return fn(inputs)
        # The weights along each side, and what they add up to: known before anything runs.
        along = [self._ramp(side * factor, factor) for side in (th, tw)]
        totals = []
        for length, starts, ramp in zip((h, w), (rows, columns), along):
            cells = np.add.outer(starts * factor, np.arange(len(ramp)))
            spread = np.broadcast_to(ramp, cells.shape)
            totals.append(np.bincount(cells.ravel(), spread.ravel(), length * factor))
        weight = np.multiply.outer(*along).astype(np.float32)[..., None]
        total = np.multiply.outer(*totals).astype(np.float32)[..., None]

        def visit(canvas, start):
            cut = lambda x: jax.lax.dynamic_slice(x, (0, *start, 0), (b, th, tw, x.shape[-1]))
            out = fn(jax.tree.map(cut, inputs)) * weight
            at = (0, start[0] * factor, start[1] * factor, 0)
            old = jax.lax.dynamic_slice(canvas, at, out.shape)
            return jax.lax.dynamic_update_slice(canvas, old + out, at), None

        tile = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((b, th, tw, x.shape[-1]), x.dtype), inputs
        )
        depth = jax.eval_shape(fn, tile).shape[-1]
        canvas = jnp.zeros((b, h * factor, w * factor, depth), jnp.float32)
        starts = np.array([(i, j) for i in rows for j in columns], np.int32)
        return jax.lax.scan(visit, canvas, starts)[0] / total

    def _ramp(self, side, factor):
        """Rises over the overlap from an edge, falls towards the other; never zero."""
        width = self.overlap * factor + 1
        distance = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1))
        return np.minimum(distance / width, 1.0)
