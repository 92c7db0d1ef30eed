"""Sampling: the one `lax.scan` that runs any method of `methods.SAMPLERS` from x_T to x_0.

A sampler sees only `denoise(x [b, ...], t [b]) -> x_0 [b, ...]`; guidance, clipping and everything
else that changes a prediction is a wrapper of that function (`guidance`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion.methods import SAMPLERS, Method

__all__ = ["SAMPLERS", "Method", "image_keys", "initial_noise", "solve", "step_noise"]

_INITIAL = 2**32 - 1  # a fold that no call's index reaches


def solve(method: Method, denoise, x_T, *, keys=None, trace=False, seen=None):
    """Follows `method` down from x_T to x_0, [b, ...] float32.

    Args:
      denoise: (x [b, ...], t [b]) -> x_0 [b, ...]; traced once, whatever the method.
      x_T: [b, ...], at the first level of the method's grid.
      keys: [b] typed PRNG keys, one per image, so that an image depends on its own key and never on
        the batch that it is sampled in (threefry; for `rbg` keys draw by the batch under vmap).
        Methods that draw no noise need none.
      trace: return (x_0, {"x": [calls, b, ...], "x_0": [calls, b, ...]}): where the method is
        after each network call, and what was predicted in it.
      seen: (index of a network call, x_0 [b, ...] predicted in it) -> None, called on the host
        while the program runs, in no order that is promised. It must not wait for the device.
    """
    tables = method.tables
    noisy = bool(np.any(tables[..., -1]))
    if noisy and keys is None:
        raise UsageError("This sampler draws noise: give keys, one PRNG key an image.")
    visits = {
        "t": method.timesteps,
        "index": np.arange(len(method), dtype=np.uint32),
        "table": tables.astype(np.float32),
    }

    def visit(state, now):
        x = state[0]
        x_0 = denoise(x, jnp.full(x.shape[:1], now["t"])).astype(x.dtype)
        if seen is not None:
            jax.debug.callback(seen, now["index"], x_0)
        z = step_noise(keys, now["index"], x.shape[1:]) if noisy else jnp.zeros_like(x)
        # A sum and no matrix product: products lose digits on accelerators.
        table = now["table"].reshape(now["table"].shape + (1,) * x.ndim)
        state = jnp.sum(table * jnp.concatenate([state, x_0[None], z[None]]), axis=1)
        return state, {"x": state[0], "x_0": x_0} if trace else None

    start = jnp.zeros((tables.shape[1], *x_T.shape), jnp.float32).at[0].set(x_T)
    state, path = jax.lax.scan(visit, start, visits)
    return (state[0], path) if trace else state[0]


def image_keys(seed, indices):
    """A PRNG key for each image of a job by its index [b]."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)


def initial_noise(keys, shape):
    """x_T ~ N(0, 1), `[b, *shape]`, each image from its own key, independent of its step noise."""
    return step_noise(keys, _INITIAL, shape)


def step_noise(keys, index, shape):
    """The noise of network call `index` (0 is the first), `[b, *shape]`, from each image's key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)
