"""Path regularisation: what a denoiser predicts has to be right at low resolution, too.

StyleNeRF (Gu et al. 2022, arXiv 2110.08985, sec. 3.3) holds subsampled pixels of its upsampled path
to those rendered directly. Latents have no pixels, but a linear map A of each of their positions to
a pixel of the decoded picture, fitted by least squares, makes a *thumbnail* of them, and of all
that is linear in them: A x_t is a thumbnail noised by the thumbnail of the same noise.

A term of `config.loss.terms` is a function (error) -> [b]: of prediction minus target,
[b, h, w, c], in units of the network's output. After it, it may name any of

    pred    the prediction, [b, h, w, c]
    small   A: [b, h, w, c] -> [b, h, w, 3], of variance 1 for latents
    coarse  what a denoiser of thumbnails predicts of them (coarse.py), [b, h/2, w/2, 3]
    sigma   [b], the noise in x_t
    left    the share of the training that is still to come, 1 to 0

`frozen["thumbnail"]` is A, [c, 3].
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, registry
from ldm_jax.nn import blocks
from ldm_jax.stages import scaling

TERMS = registry.Registry("denoiser's loss term")
CHANNELS = 3
NOISY = 0.9  # sigma above which a thumbnail says nearly all that x_t does


def mean_square(x):
    """Over h, w, c; [b]."""
    return jnp.mean(x**2, axis=(1, 2, 3))


@TERMS.register("thumbnail")
def thumbnail(error, small):
    """The error of the prediction's thumbnail.

    It is linear in the prediction, so that the best one stays the best: it weighs directions anew.
    """
    return mean_square(small(error))


@TERMS.register("coarse")
def coarse(error, pred, small, coarse, sigma, left):
    """How far the prediction's thumbnail is from what a denoiser of thumbnails predicts.

    That is the mean over all that has this noised thumbnail, a target of less noise, but deaf to
    what x_t says besides. So it counts where sigma > 0.9 alone, and fades while training goes on.
    """
    early = jnp.where(sigma > NOISY, left, 0.0)
    return early * mean_square(blocks.downsample_average(small(pred)) - coarse)


def weighty(weights: dict) -> dict:
    """The terms whose weight is not 0."""
    return {name: weight for name, weight in sorted(weights.items()) if weight}


def named(weights: dict) -> set:
    """What the terms of these weights name."""
    own = (inspect.signature(TERMS.get(name)).parameters for name in weighty(weights))
    return {name for parameters in own for name in [*parameters][1:]}


def total(weights: dict, error, **more) -> tuple:
    """(the weighted sum of the terms, [b], {"term_NAME": mean without its weight})."""
    found, metrics = jnp.zeros(len(error)), {}
    for name, weight in weighty(weights).items():
        own = {key: more[key] for key in named({name: weight})}
        value = TERMS.get(name)(error, **own)
        metrics[f"term_{name}"] = jnp.mean(value)
        found += weight * value
    return found, metrics


def small(frozen, x):
    """Thumbnails of latents, or of what is linear in them; [b, h, w, c] -> [b, h, w, 3]."""
    return jnp.matmul(x, frozen["thumbnail"], precision="highest")


def measure(codec, params, batches, arrays, key) -> list:
    """A as lists, over all given batches, for latents that are scaled by `arrays`.

    Pictures are decoded latents, so that a latent cache will do. batches: as scaling.measure.
    """

    @jax.jit
    def both(params, batch, key):
        latents = codec.encode_batch(params, batch, key)
        pictures = codec.decode(params, latents)
        b, h, w, c = latents.shape
        pixels = pictures.reshape(b, h, codec.f, w, codec.f, -1).mean((2, 4))
        return scaling.scaled(arrays, latents).reshape(-1, c), pixels.reshape(b * h * w, -1)

    rows = []
    for i, batch in enumerate(batches):
        rows.append(jax.device_get(both(params, batch, jax.random.fold_in(key, i))))
    z, pixels = (np.concatenate(one).astype("float64") for one in zip(*rows, strict=True))
    z, pixels = z - z.mean(0), pixels - pixels.mean(0)
    kernel = np.linalg.lstsq(z, pixels, rcond=None)[0]
    if not (deviation := np.std(z @ kernel)) > 0:
        raise errors.UsageError(
            "config.loss.terms: the latents say nothing linear of their pictures, so they have no "
            "thumbnails; check the first stage, or set the terms to 0."
        )
    return (kernel / deviation).tolist()
