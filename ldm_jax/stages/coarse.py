"""A denoiser of thumbnails, trained beside a denoiser whose loss has a term that asks for it.

It has that one's network, conditions and steps, and sees thumbnails (thumbnails.py) of half the
latents' size: those of the same x_t, with the thumbnail of the same target. Its prediction is
shared as "coarse". model: the second stage of the denoiser, a Diffuse.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.base import errors
from ldm_jax.nn import blocks
from ldm_jax.stages import api, thumbnails


def wanted(model) -> bool:
    """Whether a term of the model's loss names what it predicts."""
    return bool(model.loss) and "coarse" in thumbnails.named(model.loss.terms)


def player(model) -> api.Player:
    """The player "thumbnail", whose loss runs before the denoiser's."""
    network = model.denoiser.backbone.clone(out_channels=thumbnails.CHANNELS)
    own = dataclasses.replace(model, denoiser=model.denoiser.clone(backbone=network))
    height, width, _ = model.latent_shape(model.size, model.size)

    def init(key):
        return own.initial(key, (height // 2, width // 2, thumbnails.CHANNELS))["params"]

    def loss(params, frozen, batch, key, step, shared):
        z, t, eps, *given = own.draw_training(frozen, batch, key)
        small = lambda x: blocks.downsample_average(thumbnails.small(frozen, x))
        params, x_t = {"denoiser": params["thumbnail"]}, small(own.process.corrupt(z, t, eps))
        pred = own.predict_trained(params, x_t, t, *given, frozen)
        error = jnp.mean((pred - small(own.process.target(z, eps, t))) ** 2)
        return error, ({"thumbnail_error": error}, shared | {"coarse": pred})

    return api.Player("thumbnail", init, loss)


def check(model):
    """Raises UsageError where thumbnails do not fit the denoiser's network or conditions."""
    said, factor, size = "a term that asks for `coarse`", 2 * model.divisor, model.size
    if size % factor:
        raise errors.UsageError(
            f"{said} halves the latents once more: config.data.size={size} must divide by "
            f"{factor}; nearest: {max(round(size / factor), 1) * factor}."
        )

    def condition(key):
        own, fields = model.initial(key), model.example(1, size, size) | model.tell(1)
        frozen = {"conditioners": own.get("frozen")}
        return model.condition(own["params"], fields, jnp.zeros(1, bool), frozen)

    if jax.eval_shape(condition, jax.eval_shape(lambda: jax.random.key(0))).concat is not None:
        raise errors.UsageError(
            f"{said}: a condition that is laid beside the latents does not fit thumbnails of half "
            "their size; set its weight to 0."
        )
