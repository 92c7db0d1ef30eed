"""Samplers on noise that is given, as recorded trajectories have it, in the place of keys'."""

from unittest import mock

import jax.numpy as jnp

from ldm_jax.diffusion import samplers


def solve(method, denoise, x_T, noise=None, **options):
    """`samplers.solve`; noise: [calls, b, ...], what each network call adds."""
    if noise is None:
        return samplers.solve(method, denoise, x_T, **options)
    assert noise.shape == (len(method), *x_T.shape)
    draw = lambda keys, index, shape: jnp.asarray(noise)[index]
    with mock.patch.object(samplers, "step_noise", draw):
        return samplers.solve(method, denoise, x_T, keys=(), **options)
