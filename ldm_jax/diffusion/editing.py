"""Drawing from what is already there: wrappers of `denoise` and of the initial state."""

import jax.numpy as jnp


def keep(denoise, known, mask):
    """Inpainting: the network sees the whole state, but outside the hole x_0 is what is known.

    Every sampler then carries the known part along its own path, noised by its own x_T, so that
    hole and surroundings meet at the same noise level in every step (the idea of RePaint, Lugmayr
    et al. 2022, arXiv 2201.09865, sec. 4.1, without its resampling).

    denoise: (x [b, ...], t [b]) -> x_0; known: [b, h, w, c]; mask: [b, h, w, 1], 1 in the hole.
    """
    return lambda x, t: jnp.where(mask > 0, denoise(x, t), known)


def slerp(a, b, weight):
    """Along the great circle from a to b, each row by itself, so that noise keeps its length.

    a, b: [n, ...]; weight: [n] in [0, 1] (Shoemake 1985).
    """
    weight = weight.reshape(-1, *[1] * (a.ndim - 1))
    axes = tuple(range(1, a.ndim))
    norm = lambda x: jnp.sqrt(jnp.sum(x * x, axes, keepdims=True))
    cosine = jnp.sum(a * b, axes, keepdims=True) / jnp.maximum(norm(a) * norm(b), 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    straight = sine < 1e-4  # the same direction: a line is as good
    divide = jnp.where(straight, 1.0, sine)
    first = jnp.where(straight, 1.0 - weight, jnp.sin((1.0 - weight) * angle) / divide)
    second = jnp.where(straight, weight, jnp.sin(weight * angle) / divide)
    return first * a + second * b
