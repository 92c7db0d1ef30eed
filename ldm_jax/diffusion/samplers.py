"""Samplers: pure functions from x_T to x_0, one `lax.scan` each, that see only `denoise`.

    sampler(denoise, x_T, *, process, grid, keys, eta=0.0, temperature=1.0) -> x_0

denoise: (x [b, ...], t [b]) -> x_0 [b, ...]; x_T: [b, ...] float32; keys: [b] typed PRNG keys, one
per image, so that an image depends on its own key and never on the batch that it is sampled in
(None where no noise is drawn; threefry, for `rbg` keys draw by the batch under vmap). `noise`
[steps, b, ...] replaces the drawn noise; with `trace` the result is (x_0, {"x": [steps, b, ...],
"x_0": [steps, b, ...]}): the state after each step and the prediction made in it.
Coefficients are float64 on the host; eta and temperature are Python numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry
from ldm_jax.diffusion.process import posterior

SAMPLERS = Registry("sampler")

_INITIAL = 2**32 - 1  # a fold that no step index reaches


@SAMPLERS.register("ddim")
def ddim(
    denoise, x_T, *, process, grid, keys=None, eta=0.0, temperature=1.0, noise=None, trace=False
):
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12, 16); eta 0 is deterministic."""
    alpha_bar, alpha_bar_prev = grid.alpha_bars(process)
    std = eta * np.sqrt(posterior(alpha_bar, alpha_bar_prev)[2])
    # Rounding may leave -1e-17 where the variance fills all of 1 - alpha_bar_prev.
    direction = np.sqrt(np.maximum(1.0 - alpha_bar_prev - std**2, 0.0))
    steps = {
        "alpha": np.sqrt(alpha_bar),
        "sigma": np.sqrt(1.0 - alpha_bar),
        "alpha_prev": np.sqrt(alpha_bar_prev),
        "direction": direction,
        "std": std * temperature,
    }

    def step(x_t, x_0, s, z):
        eps = (x_t - s["alpha"] * x_0) / s["sigma"]
        return s["alpha_prev"] * x_0 + s["direction"] * eps + s["std"] * z

    return _scan(step, denoise, x_T, grid, steps, keys, noise, trace)


@SAMPLERS.register("ddpm")
def ddpm(
    denoise, x_T, *, process, grid, keys=None, eta=1.0, temperature=1.0, noise=None, trace=False
):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), over any grid; eta has no meaning here.

    On the full grid these are the official `p_sample` steps; elsewhere the posterior of the grid's
    own neighbours, which equals DDIM with eta 1.
    """
    del eta
    coef_x0, coef_xt, variance = posterior(*grid.alpha_bars(process))
    steps = {"coef_x0": coef_x0, "coef_xt": coef_xt, "std": np.sqrt(variance) * temperature}

    def step(x_t, x_0, s, z):
        return s["coef_x0"] * x_0 + s["coef_xt"] * x_t + s["std"] * z

    return _scan(step, denoise, x_T, grid, steps, keys, noise, trace)


def initial_noise(keys, shape):
    """x_T ~ N(0, 1), `[b, *shape]`, each image from its own key, independent of its step noise."""
    return _normal(keys, _INITIAL, shape)


def step_noise(keys, index, shape):
    """The noise of step `index` (0 is the first one made), `[b, *shape]`, from each image's key."""
    return _normal(keys, index, shape)


def _scan(step, denoise, x_T, grid, steps, keys, noise, trace):
    """Runs one-step updates `step(x_t, x_0, coefficients, z) -> x_prev` down the grid."""
    steps = {name: np.asarray(table, np.float32) for name, table in steps.items()}
    draws = noise is None and bool(np.any(steps["std"]))
    if draws and keys is None:
        raise UsageError("This sampler draws noise (eta > 0): give keys, one PRNG key an image.")
    if noise is not None and noise.shape != (len(grid), *x_T.shape):
        raise UsageError(f"noise {noise.shape} must have shape {(len(grid), *x_T.shape)}.")
    visits = {
        "t": np.asarray(grid.timesteps, np.int32),
        "index": np.arange(len(grid), dtype=np.uint32),
        "coefficients": steps,
        "noise": noise,
    }

    def body(x_t, visit):
        t = jnp.full(x_t.shape[:1], visit["t"])
        x_0 = denoise(x_t, t).astype(x_t.dtype)
        if draws:
            z = step_noise(keys, visit["index"], x_t.shape[1:])
        else:
            z = 0.0 if noise is None else visit["noise"]
        x_prev = step(x_t, x_0, visit["coefficients"], z)
        return x_prev, {"x": x_prev, "x_0": x_0} if trace else None

    x_0, states = jax.lax.scan(body, jnp.asarray(x_T, jnp.float32), visits)
    return (x_0, states) if trace else x_0


def _normal(keys, index, shape):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)
