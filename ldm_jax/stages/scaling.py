"""How the denoiser sees latents: of variance 1, z = scale * latent (Rombach et al. 2022, app. G).

With a number per channel in the place of one for all, z = scale * (latent - shift): every channel
then has mean 0 and deviation 1. `frozen` holds {"scale": scalar} or {"scale": [c], "shift": [c]},
and where thumbnails.py needs it "thumbnail", latents.json the same as numbers.
"""

import jax
import numpy as np

from ldm_jax.base import errors
from ldm_jax.models.bottleneck import noise_share
from ldm_jax.stages.codec import Codec


def scaled(frozen, latents):
    """The autoencoder's latents [..., c] as the denoiser sees them."""
    centred = latents - frozen["shift"] if "shift" in frozen else latents
    return centred * frozen["scale"]


def unscaled(frozen, z):
    """The inverse of `scaled`."""
    latents = z / frozen["scale"]
    return latents + frozen["shift"] if "shift" in frozen else latents


def arrays(latents: dict) -> dict:
    """What latents.json says, as `frozen` holds it."""
    keys = ("scale", "shift", "thumbnail")
    return {key: np.float32(latents[key]) for key in keys if key in latents}


def of_moments(mean, std) -> dict:
    """What latents.json says of latents with this mean and deviation of every channel."""
    return {"scale": [1 / float(s) for s in std], "shift": [float(m) for m in mean]}


def measure(codec: Codec, params, batches, key, per_channel: bool = False) -> dict:
    """Scale and moments of a data set's latents, sampled as in training, over all given batches.

    batches: iterable of {"image": [b, h, w, 3]}, or of cached `moments` alike. The scale is 1 / std
    about the pooled mean of everything (the official code takes one batch on one process), or
    `per_channel`, where a shift stands beside it; `mean` and `std` are per channel, and so is
    `noise`, the share of the variance that is the posterior's.
    """

    @jax.jit
    def encode(params, batch, key):
        moments = codec.batch_moments(params, batch)
        return codec.latents(moments, key), codec.bottleneck.variance(moments)

    count, total, squares, noise = 0, 0.0, 0.0, 0.0
    for i, batch in enumerate(batches):
        z, variance = jax.device_get(encode(params, batch, jax.random.fold_in(key, i)))
        z, variance = z.astype("float64"), variance.astype("float64")
        count += z.size // z.shape[-1]
        total += z.sum((0, 1, 2))
        squares += (z**2).sum((0, 1, 2))
        noise += variance.sum((0, 1, 2))
    if not count:
        raise errors.UsageError("No images to measure the latents' scale on.")
    mean = total / count
    std = (squares / count - mean**2).clip(0) ** 0.5
    pooled = (squares.mean() / count - mean.mean() ** 2) ** 0.5
    if not np.all((std if per_channel else pooled) > 0):
        raise errors.UsageError(
            "The latents are constant or not finite, so they have no scale; check the first stage "
            "and the data."
        )
    how = of_moments(mean, std) if per_channel else {"scale": float(1 / pooled)}
    share = noise_share(noise / count, (std**2 - noise / count).clip(0))
    return how | {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "noise": share.tolist(),
        "latents": int(count),
    }
