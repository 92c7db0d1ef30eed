"""Loss weights per timestep, as float64 tables for the squared error of a process's own prediction.

A weight on the error of x_0 becomes one on the error of the prediction through `process.gain`,
(d x_0 / d pred)^2.
"""

import numpy as np

from ldm_jax.base.registry import Registry

WEIGHTS = Registry("loss weight")  # (process, **its own options) -> float64 [timesteps]


@WEIGHTS.register("uniform")
def uniform(process):
    """1 everywhere: L_simple (Ho et al. 2020, eq. 14)."""
    return np.ones(process.timesteps)


@WEIGHTS.register("min_snr")
def min_snr(process, *, gamma=5.0):
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, arXiv 2303.09556, eq. 7).

    That is min(SNR, gamma) / SNR for eps and / (SNR + 1) for v. Under zero terminal SNR the last
    timestep, where sampling begins, has weight 0 and would not be trained: Diffuse.check refuses.
    """
    if process.prediction == "eps":  # the closed form of x_0's weight times gain, free of overflow
        return np.minimum(1.0, gamma / process.snr)
    return np.minimum(process.snr, gamma) * process.gain


@WEIGHTS.register("v")
def v(process, *, cap=400.0):
    """The squared error of v (Salimans & Ho 2022), whatever is predicted; at most `cap`."""
    return _as_error(process, process.variance / process.noise, cap)


@WEIGHTS.register("flow")
def flow(process, *, cap=400.0):
    """The squared error of eps - x_0 (Liu et al. 2022), whatever is predicted; at most `cap`."""
    alpha, sigma = process.tables
    return _as_error(process, ((alpha + sigma) / sigma) ** 2, cap)


def _as_error(process, of_x0, cap):
    """The weight that makes the prediction's error that of a quantity, at most `cap`.

    of_x0: (d quantity / d x_0)^2 at fixed x_t. The bound only matters where an error of x_0 at
    little noise, or of eps at little signal, would count without limit; 400 is that of dividing by
    sigma or alpha no smaller than 0.05.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.minimum(np.nan_to_num(of_x0 * process.gain, nan=cap, posinf=cap), cap)


@WEIGHTS.register("vlb")
def vlb(process):
    """The exact term of the variational bound (Ho et al. 2020, eq. 12), at any prediction.

    Index 0 has posterior variance 0 and is copied from index 1, as in the official eps weights.
    (The official x_0 weights have a slip of operator precedence: see `vlb_legacy`.)
    """
    coef_x0, _, variance = process.posterior
    table = coef_x0[1:] ** 2 / (2.0 * variance[1:]) * process.gain[1:]
    return np.concatenate([table[:1], table])


@WEIGHTS.register("vlb_legacy")
def vlb_legacy(process):
    """The official weights of the bound: those of `vlb` for eps, a slip for x_0.

    That is sqrt(alpha_bar) / 2 / (2 - alpha_bar), where division by 2 (1 - alpha_bar) was meant;
    index 0 is copied from index 1 here too.
    """
    if process.prediction != "x0":
        return vlb(process)
    table = 0.5 * np.sqrt(process.signal) / (2.0 - process.signal)
    return np.concatenate([table[1:2], table[1:]])
