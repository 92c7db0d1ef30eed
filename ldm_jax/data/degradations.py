"""Small images of large ones, for super-resolution: `(pixels, (h, w), rng) -> pixels`, uint8."""

import math

import numpy as np
from PIL import Image

from ldm_jax.base import registry
from ldm_jax.data import images

DEGRADATIONS = registry.Registry("degradation")
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)


@DEGRADATIONS.register("bicubic")
def bicubic(pixels: np.ndarray, size: tuple[int, int], rng) -> np.ndarray:
    """PIL's bicubic filter, which antialiases."""
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


@DEGRADATIONS.register("bsr_light")
def bsr_light(pixels: np.ndarray, size: tuple[int, int], rng) -> np.ndarray:
    """The official `bsrgan_light` (a mild BSRGAN: Zhang et al. 2021), which LDM-BSR trained on.

    In a random order: a blur, a random downscaling, the downscaling to `size`, noise of one or two
    levels, JPEG; then JPEG again. The downscaling to `size` comes after the random one. Filters
    antialias here (PIL), which cv2's do not.
    """
    factor = max(1, round(len(pixels) / size[0]))
    if factor == 4 and rng.random() < 0.25:
        pixels = _resize(pixels, [n // 2 for n in pixels.shape[:2]], rng)
        factor = 2

    def shrink(x):
        if rng.random() < 0.8:
            scale = rng.uniform(1, 2 * factor)
            return _resize(x, [max(1, int(n / scale)) for n in x.shape[:2]], rng)
        kernel = _gaussian(25, rng.uniform(0.1, 0.6 * factor) ** 2, shift=(factor - 1) / 2)
        return _convolve(x, kernel)[::factor, ::factor]

    steps = [
        lambda x: _blur(x, factor, rng),
        lambda x: _noise(x, rng),
        lambda x: _jpeg(x, rng) if rng.random() < 0.9 else x,
        shrink,
        lambda x: _resize(x, size, rng),
    ]
    order = list(rng.permutation(len(steps)))
    early, late = sorted((order.index(3), order.index(4)))
    order[early], order[late] = 3, 4
    for k in order:
        pixels = steps[k](pixels)
    return _jpeg(pixels, rng)


def _resize(pixels, size, rng):
    how = _FILTERS[rng.integers(len(_FILTERS))]
    return np.asarray(Image.fromarray(pixels).resize(tuple(size)[::-1], how))


def _blur(pixels, factor, rng):
    """Gaussians a quarter as wide as BSRGAN's: turned ellipses or circles."""
    if rng.random() < 0.5:
        variances = (4 + factor) / 4 * rng.random(2)
        kernel = _gaussian(int(rng.integers(5, 15)), *variances, rng.uniform(0, math.pi))
    else:
        kernel = _gaussian(int(rng.integers(5, 8)), ((2 + 0.2 * factor) / 4 * rng.random()) ** 2)
    return _convolve(pixels, kernel)


def _noise(pixels, rng):
    """Gaussian, of standard deviation 1 or 2 of 255: per channel, grey, or correlated."""
    level, kind = rng.integers(1, 3), rng.random()
    if kind < 0.4:
        noise = rng.normal(size=(*pixels.shape[:2], 1))
    elif kind < 0.6:
        mix = np.linalg.qr(rng.normal(size=(3, 3)))[0] * np.sqrt(rng.random(3))
        noise = rng.normal(size=pixels.shape) @ mix.T
    else:
        noise = rng.normal(size=pixels.shape)
    return _uint8(pixels + level * noise)


def _jpeg(pixels, rng):
    return images.decode(images.encode(pixels, "jpeg", quality=int(rng.integers(80, 96))), "JPEG")


def _convolve(pixels, kernel):
    """Mirrored beyond the edges; kernel [k, k] with a sum of 1."""
    from scipy import signal  # a third of a second to import

    low, high = (len(kernel) - 1) // 2, len(kernel) // 2
    # An image smaller than the kernel cannot be mirrored in one go.
    mode = "reflect" if min(pixels.shape[:2]) > high else "symmetric"
    wide = np.pad(pixels.astype(np.float64), ((low, high), (low, high), (0, 0)), mode)
    return _uint8(signal.fftconvolve(wide, kernel[..., None], mode="valid", axes=(0, 1)))


def _gaussian(side, first, second=None, turn=0.0, shift=0.0):
    """[side, side], of variances `first` and `second` (by default the same) in squared pixels.

    The axes of the variances are turned by `turn` radians; the centre is moved by `shift` pixels to
    the lower right.
    """
    second = first if second is None else second
    axis = np.arange(side) - (side - 1) / 2 - shift
    u = axis * math.cos(turn) + axis[:, None] * math.sin(turn)
    v = axis[:, None] * math.cos(turn) - axis * math.sin(turn)
    # A variance of nearly 0 keeps one pixel, and stays a number.
    kernel = np.exp(-0.5 * (u**2 / max(first, 1e-2) + v**2 / max(second, 1e-2)))
    return kernel / kernel.sum()


def _uint8(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
