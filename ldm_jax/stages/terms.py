"""Terms that a recipe may add to the first stage's loss: `config.loss.terms = dict(NAME=weight)`.

A term is a function (x, x_hat, step) -> scalar: images [b, h, w, 3], their reconstructions, the
optimizer step. After these it may name any of

    z           the latents [b, h/f, w/f, c] that x_hat was decoded from
    decode      latents -> images, as in this step
    distance    (images, reconstructions) -> the reconstruction term of the loss
    key         a random key
"""

import inspect

import jax
import jax.numpy as jnp

from ldm_jax.base import registry
from ldm_jax.nn import blocks

TERMS = registry.Registry("loss term")


def value(name: str, x, x_hat, step, **more):
    """The value of the term `name`. more: what it may name, of which it gets what it names."""
    term = TERMS.get(name)
    named = list(inspect.signature(term).parameters)[3:]
    return term(x, x_hat, step, **{key: more[key] for key in named if key in more})


@TERMS.register("halved")
def halved(x, x_hat, step, z, decode, distance):
    """Latents of half the resolution decode to images of half the resolution.

    Scale equivariance (Skorokhodov et al. 2025, arXiv 2502.14831, sec. 4): it takes high
    frequencies from the latents that images do not have, and denoisers learn such latents sooner.
    """
    return distance(blocks.downsample_average(x), decode(blocks.downsample_average(z)))


@TERMS.register("turned")
def turned(x, x_hat, step, z, decode, distance, key):
    """Latents turned by 90, 180 or 270 degrees decode to images turned alike.

    The rotations of EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509, eq. 6), whose other half,
    scaling, is `halved`. Images are square.
    """
    ways = [lambda a, k=k: jnp.rot90(a, k, axes=(1, 2)) for k in (1, 2, 3)]
    way = jax.random.randint(key, (), 0, len(ways))
    turn = lambda a: jax.lax.switch(way, ways, a)
    return distance(turn(x), decode(turn(z)))
