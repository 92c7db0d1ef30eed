"""How other evaluators resize, each as two matrices: rows and columns are resized separately.

What a FID means depends on it (Parmar et al. 2022, arXiv 2104.11222).
"""

import functools

import jax.numpy as jnp
import numpy as np

from ldm_jax.base.registry import Registry

RESIZES = Registry("resize")


def resize(images, kind: str, side: int):
    """[b, h, w, c] of 0..255 -> float32 [b, side, side, c], by a name of RESIZES, within 0..255."""
    images = images.astype(jnp.float32)
    rows, columns = (matrix(kind, n, side) for n in images.shape[1:3])
    images = jnp.einsum("xw,bhwc->bhxc", columns, images, precision="highest")
    return jnp.einsum("yh,bhxc->byxc", rows, images, precision="highest").clip(0.0, 255.0)


def pillow(images, height: int, width: int):
    """Pillow's bicubic of 8-bit images, exactly: uint8 [b, h, w, c] -> [b, height, width, c].

    It adds whole numbers of 2^-22, and rounds after the columns as after the rows. "pil_bicubic"
    does not round, as clean-fid resizes floats. Columns come first, whatever the shape, as up to
    Pillow 12; later ones begin with the rows of some tall images.
    """
    rows, columns = (_whole(*sizes) for sizes in zip(images.shape[1:3], (height, width)))
    rounded = lambda sums: ((sums + 2 ** (_BITS - 1)) >> _BITS).clip(0, 255)
    images = rounded(jnp.einsum("xw,bhwc->bhxc", columns, images.astype(jnp.int32)))
    return rounded(jnp.einsum("yh,bhxc->byxc", rows, images)).astype(jnp.uint8)


_BITS = 22  # of Pillow's fractions


@functools.lru_cache
def _whole(old: int, new: int) -> np.ndarray:
    """pil_bicubic's weights as int32 in units of 2^-_BITS, rounded as Pillow does."""
    scaled = pil_bicubic(old, new) * 2**_BITS
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


@functools.lru_cache
def matrix(kind: str, old: int, new: int) -> np.ndarray:
    """The weights [new, old] of old pixels in new ones, float32; every row sums to 1."""
    return RESIZES.get(kind)(old, new).astype(np.float32)


@RESIZES.register("tf1_bilinear")
def tf1_bilinear(old, new):
    """TensorFlow 1's: no half-pixel offset, no antialiasing; FID as first published, ADM."""
    at = np.arange(new, dtype=np.float32) * np.float32(old / new)  # float32 there as well
    low = at.astype(int)
    weights, rows = np.zeros((new, old)), np.arange(new)
    weights[rows, low] += 1.0 - (at - low)
    weights[rows, np.minimum(low + 1, old - 1)] += at - low
    return weights


@RESIZES.register("pil_bicubic")
def pil_bicubic(old, new):
    """Pillow's on float pixels, antialiased: what clean-fid calls clean. a = -1/2, Keys 1981."""
    stretch = max(old / new, 1.0)
    x = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1.0, -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
