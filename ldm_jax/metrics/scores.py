"""Scores of image pairs, per image. Images: [b, h, w, c] floats in [-1, 1]; nothing is rounded.

To score what a PNG would hold, round the images to uint8 and back first.
"""

import jax.numpy as jnp
import numpy as np

from ldm_jax.base.errors import UsageError


def psnr(a, b):
    """Peak signal-to-noise ratio in dB, [b]: the peak is 2, the range of [-1, 1].

    At most 100 dB, which equal images have.
    """
    _check(a, b)
    error = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean((1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error / 4.0, 1e-10))


def ssim(a, b, window=11, deviation=1.5):
    """Structural similarity, [b] (Wang et al. 2004, eq. 13 and its Gaussian window).

    On the scale 0..255 with K = (0.01, 0.03), over each colour channel by itself, averaged over
    channels and over the positions where the whole window fits.
    """
    _check(a, b)
    if min(a.shape[1:3]) < window:
        raise UsageError(f"ssim needs images of at least {window} px; got {a.shape[1:3]}.")
    a, b = (127.5 * (x.astype(jnp.float32) + 1.0) for x in (a, b))
    taps = np.exp(-0.5 * ((np.arange(window) - window // 2) / deviation) ** 2)
    taps = taps / taps.sum()

    mean_a, mean_b = _blur(a, taps), _blur(b, taps)
    var_a = _blur(a * a, taps) - mean_a**2
    var_b = _blur(b * b, taps) - mean_b**2
    covariance = _blur(a * b, taps) - mean_a * mean_b
    c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c_1) / (mean_a**2 + mean_b**2 + c_1)
    structure = (2 * covariance + c_2) / (var_a + var_b + c_2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(x, taps):
    """A separable window, where it fits whole; shifted sums are float32 on every accelerator."""
    height, width = x.shape[1] - len(taps) + 1, x.shape[2] - len(taps) + 1
    x = sum(tap * x[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * x[:, :, i : i + width] for i, tap in enumerate(taps))


def _check(a, b):
    if a.shape != b.shape or a.ndim != 4:
        raise UsageError(f"Scores need two [b, h, w, c] of one shape; got {a.shape}, {b.shape}.")
