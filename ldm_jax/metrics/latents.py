"""What a first stage's latents are like: their channels, their spectrum, the use of the codebook.

Measures that need no second stage. Latents z: [b, h, w, c], unscaled.
"""

import dataclasses

import numpy as np

from ldm_jax.metrics.frechet import Moments
from ldm_jax.models.bottleneck import noise_share


@dataclasses.dataclass(frozen=True)
class Latents:
    """A stream of latents.

    channels: Moments over all positions; power: [h, w], the sum of |FFT|^2 about each map's mean,
    over images and channels; noise: [c], the posterior's variance, summed over all positions.
    """

    channels: Moments
    power: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, z, noise=0.0):
        """noise: the posterior's variance, like z; 0 where there is none."""
        z = np.asarray(z, np.float64)
        centred = z - z.mean((1, 2), keepdims=True)
        power = np.square(np.abs(np.fft.fft2(centred, axes=(1, 2)))).sum((0, 3))
        noise = np.broadcast_to(noise, z.shape).sum((0, 1, 2), dtype=np.float64)
        return cls(Moments.of(z.reshape(-1, z.shape[-1])), power, noise)

    def merge(self, other):
        channels, power = self.channels.merge(other.channels), self.power + other.power
        return Latents(channels, power, self.noise + other.noise)

    def summary(self, cut=0.5) -> dict:
        """Mean, std and share of noise of each channel, and the largest correlation of two; the
        share of the power above `cut` (see `share_above`), and its radial profile.
        """
        covariance = self.channels.covariance
        std = np.sqrt(np.diag(covariance))
        scale = np.maximum(np.outer(std, std), np.finfo(np.float64).tiny)
        between = np.abs(covariance / scale)[~np.eye(len(std), dtype=bool)]
        return {
            "latent_mean": self.channels.mean.tolist(),
            "latent_std": std.tolist(),
            "latent_noise": noise_share(self.noise / self.channels.count, std**2).tolist(),
            "latent_correlation": float(between.max(initial=0.0)),
            "latent_high_frequency": share_above(self.power, cut),
            "latent_spectrum": radial_profile(self.power).tolist(),
        }


def share_above(power, cut=0.5) -> float:
    """Share of the power at radial frequencies above `cut` of Nyquist's. power: [h, w] of fft2.

    Natural images have little there; latents with much are harder to denoise (Skorokhodov et al.
    2025, arXiv 2502.14831). White noise has 1 - pi/4 * cut^2 of it.
    """
    total = power.sum()
    return float(power[_radius(power.shape) > cut].sum() / total) if total > 0 else 0.0


def radial_profile(power, bins=16):
    """Mean power in rings of equal width up to Nyquist's frequency, normalised to sum 1. [bins]."""
    ring = np.minimum((_radius(power.shape) * bins).astype(int), bins)  # the corners are bin `bins`
    sums, counts = (np.bincount(ring.ravel(), w, bins + 1)[:bins] for w in (power.ravel(), None))
    profile = sums / np.maximum(counts, 1)
    return profile / max(profile.sum(), np.finfo(np.float64).tiny)


def codebook(counts) -> dict:
    """Perplexity of the code's distribution, and the share of entries ever used. counts: [k]."""
    p = np.asarray(counts, np.float64) / max(np.sum(counts), 1)
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    return {
        "codebook_perplexity": float(np.exp(entropy)),
        "codebook_usage": float(np.mean(p > 0)),
    }


def _radius(shape):
    """|frequency| in units of Nyquist's, [h, w]."""
    y, x = (np.fft.fftfreq(side) * 2 for side in shape)
    return np.hypot(y[:, None], x[None])
