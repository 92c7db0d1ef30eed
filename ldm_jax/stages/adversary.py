"""The adversary of the first stage: its losses, and the weight that the autoencoder gives it."""

import jax
import jax.numpy as jnp

from ldm_jax.base import registry
from ldm_jax.models.shortcut import patches

DISCRIMINATOR_LOSSES = registry.Registry("discriminator loss")
# (discriminate, x, real, fake) -> scalar: what gives logits [b, ...] for images, images
# [b, h, w, 3], the logits of these and of their reconstructions.
DISCRIMINATOR_TERMS = registry.Registry("discriminator term")
WON = 0.98  # share of right answers above which a discriminator's gradients say little
ADVICE = (
    "the discriminator tells nearly all patches right, so the autoencoder learns little from it: "
    "lower its learning rate, or add a term that holds it (config.loss.disc_terms.r1=1)"
)


@DISCRIMINATOR_LOSSES.register("hinge")
def hinge(real, fake):
    """The hinge loss (Lim & Ye 2017). real, fake: logits -> scalar."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


@DISCRIMINATOR_LOSSES.register("vanilla")
def vanilla(real, fake):
    """The loss of the first GANs (Goodfellow et al. 2014), on logits -> scalar."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


@DISCRIMINATOR_TERMS.register("r1")
def r1(discriminate, x, real, fake):
    """Half the squared gradient at images of an image's mean logit (Mescheder et al. 2018, eq. 9).

    It costs a second backward pass through the discriminator.
    """
    mean = lambda x: jnp.sum(jnp.mean(discriminate(x), axis=(1, 2, 3)))
    return 0.5 * jnp.mean(jnp.sum(jax.grad(mean)(x) ** 2, axis=(1, 2, 3)))


@DISCRIMINATOR_TERMS.register("lecam")
def lecam(discriminate, x, real, fake):
    """Holds both kinds of logits near the other's mean (LeCam; Tseng et al. 2021, eq. 3).

    The means are those of this batch, where the paper averages over steps.
    """
    anchor = lambda logits: jax.lax.stop_gradient(jnp.mean(logits))
    return jnp.mean((real - anchor(fake)) ** 2) + jnp.mean((fake - anchor(real)) ** 2)


def accuracy(real, fake):
    """The share of logits on the right side of 0, a scalar; 0.5 by guessing."""
    return 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))


def adaptive_weight(nll, adversarial, x_hat, features, kernel, slope=1.0):
    """|grad nll| / (|grad adversarial| + 1e-4) at the decoder's last kernel.

    Esser et al. 2021 (VQ-GAN), eq. 7. Clipped to [0, 1e4], free of gradients. `nll` and
    `adversarial` map x_hat [b, h, w, 3] to a scalar; features: [b, h, w, c], what the last
    convolution reads; kernel: [3, 3, c, 3]. Only these are differentiated again. slope: of what
    turns the convolution's output into x_hat, like x_hat. Where the convolution makes patches of
    pixels (models.tiny), features and the kernel's output are theirs.
    """
    x_hat, features, kernel, slope = jax.lax.stop_gradient((x_hat, features, kernel, slope))
    how = dict(precision=jax.lax.Precision.HIGHEST, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    convolve = lambda k: jax.lax.conv_general_dilated(features, k, (1, 1), "SAME", **how)
    _, pull_back = jax.vjp(convolve, kernel.astype(features.dtype))
    side = x_hat.shape[1] // features.shape[1]
    # In the features' dtype, as the decoder's own gradient: the largest array of the network would
    # otherwise be copied to float32.
    image = lambda loss: patches(jax.grad(loss)(x_hat) * slope, side).astype(features.dtype)
    norm = lambda loss: jnp.linalg.norm(pull_back(image(loss))[0].astype(jnp.float32))
    weight = norm(nll) / (norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, 1e4))
