"""How fast samplers converge where the best denoiser is known: the tables of docs/samplers.md.

    python tests/diffusion/convergence.py

The data is one number, drawn from two Gaussians, so E[x_0 | x_t] has a closed form, and the
probability flow, which keeps the order of points on a line, takes each quantile of one noise level
to the same quantile of the other: the exact solution, without integrating anything.
"""

import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import grids, samplers
from ldm_jax.diffusion.process import make_process

WEIGHTS, MEANS, DEVIATIONS = np.array([0.4, 0.6]), np.array([-1.0, 0.8]), np.array([0.3, 0.5])
RANKS = (np.arange(256) + 0.5) / 256
STOCHASTIC = ("ddpm", "euler_ancestral", "dpmpp_2m_sde")
STEPS = (16, 32, 64, 128)
# All that follow the mean of the data; `consistency` is for students, whose x_0 is a sample.
SOLVERS = [name for name in samplers.SAMPLERS.names() if name != "consistency"]


def order(name) -> tuple[float, list]:
    """(slope, errors): error ~ steps^-slope, between two levels on a grid even in log SNR.

    Deterministic samplers: rms error of the points that they reach. Stochastic ones: the distance
    (Wasserstein-2) of the distribution that they reach, for one Gaussian, where it is exact.
    """
    error = _weak_error if name in STOCHASTIC else _strong_error
    errors = [error(samplers.SAMPLERS.call(name, even_grid(steps))) for steps in STEPS]
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0], errors


def even_grid(steps, first=-2.0, last=2.0):
    """Levels even in log(alpha / sigma), which takes the place of the timestep."""
    levels = np.linspace(first, last, steps + 1)
    signal = levels_to_alpha_bar(levels)
    return grids.Grid(tuple(levels[:-1].tolist()), tuple(signal.tolist()), tuple(1.0 - signal))


def levels_to_alpha_bar(level):
    return 1.0 / (1.0 + np.exp(-2.0 * level))


def distance(name, spacing, calls, images=1 << 13) -> float:
    """Wasserstein-2 distance between the data and what at most `calls` calls draw, official LDM.

    In numpy, without compiling: the tables are all there is to a method.
    """
    process, rng = make_process(), np.random.default_rng(0)
    ranks = (np.arange(images) + 0.5) / images
    method = max(_affordable(name, spacing, process, calls), key=len)
    table_t, log_s = np.arange(process.timesteps), -0.5 * np.log(process.snr)
    state = np.zeros((method.tables.shape[1], images))
    state[0] = rng.permutation(quantiles(process.signal[-1], ranks))
    for t, table in method.calls:
        s = np.exp(np.interp(t, table_t, log_s))
        x_0 = best_x0(state[0], 1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2), np)
        state = table @ np.stack([*state, x_0, rng.normal(size=images)])
    return float(np.sqrt(np.mean((np.sort(state[0]) - quantiles(1.0, ranks)) ** 2)))


def best_x0(x, alpha, sigma, xp=jnp):
    """E[x_0 | x_t] of the mixture; x, alpha, sigma broadcast."""
    x, alpha, sigma = (xp.asarray(a)[..., None] for a in (x, alpha, sigma))
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    residual = x - alpha * MEANS
    logits = xp.log(WEIGHTS) - 0.5 * xp.log(variance) - 0.5 * residual**2 / variance
    share = xp.exp(logits - logits.max(-1, keepdims=True))
    each = MEANS + alpha * DEVIATIONS**2 / variance * residual
    return xp.sum(share * each, axis=-1) / xp.sum(share, axis=-1)


def quantiles(alpha_bar, ranks):
    """Of x_t at one noise level, by bisection of its distribution function."""
    means, scales = np.sqrt(alpha_bar) * MEANS, np.sqrt(alpha_bar * DEVIATIONS**2 + 1 - alpha_bar)
    low, high = np.full(len(ranks), -8.0), np.full(len(ranks), 8.0)
    for _ in range(60):
        middle = (low + high) / 2
        z = (middle[:, None] - means) / (scales * math.sqrt(2.0))
        below = (WEIGHTS * 0.5 * (1.0 + _ERF(z))).sum(1) < ranks
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


_ERF = np.vectorize(math.erf)


def _strong_error(method):
    start, end = (levels_to_alpha_bar(level) for level in (-2.0, 2.0))

    def denoise(x, level):
        return best_x0(x, jnp.sqrt(jax.nn.sigmoid(2 * level)), jnp.sqrt(jax.nn.sigmoid(-2 * level)))

    x = samplers.solve(method, denoise, quantiles(start, RANKS))
    return float(np.sqrt(np.mean((np.asarray(x) - quantiles(end, RANKS)) ** 2)))


def _weak_error(method, mean=0.7, deviation=0.5):
    """Mean and variance through the method's tables: with one Gaussian everything is affine."""

    def moments(alpha_bar):
        return np.sqrt(alpha_bar) * mean, np.sqrt(alpha_bar * deviation**2 + 1.0 - alpha_bar)

    start, end = (moments(levels_to_alpha_bar(level)) for level in (-2.0, 2.0))
    states = method.tables.shape[1]
    mu, covariance = np.eye(states)[0] * start[0], np.zeros((states, states))
    covariance[0, 0] = start[1] ** 2
    for level, table in method.calls:
        table = np.asarray(table)
        alpha_bar = levels_to_alpha_bar(level)
        gain = np.sqrt(alpha_bar) * deviation**2 / moments(alpha_bar)[1] ** 2
        linear = table[:, :states] + np.outer(table[:, -2], gain * np.eye(states)[0])
        mu = linear @ mu + table[:, -2] * mean * (1.0 - gain * np.sqrt(alpha_bar))
        covariance = linear @ covariance @ linear.T + np.outer(table[:, -1], table[:, -1])
    return float(np.hypot(mu[0] - end[0], np.sqrt(covariance[0, 0]) - end[1]))


def _affordable(name, spacing, process, calls):
    for steps in range(1, calls + 1):
        try:
            method = samplers.SAMPLERS.call(name, grids.GRIDS.call(spacing, process, steps))
        except UsageError:
            continue
        if len(method) <= calls:
            yield method


def main():
    print("| sampler | order | " + " | ".join(f"S={steps}" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 2) + "|")
    for name in SOLVERS:
        slope, errors = order(name)
        print(f"| {name} | {slope:.2f} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")
    columns = [(s, calls) for s in ("exact", "karras") for calls in (5, 10, 20, 50)]
    print("\n| sampler | " + " | ".join(f"{s} {calls}" for s, calls in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in SOLVERS:
        print(f"| {name} | " + " | ".join(f"{distance(name, *c):.3f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
