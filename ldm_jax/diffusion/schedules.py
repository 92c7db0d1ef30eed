"""Noise schedules: how much signal and how much noise x_t holds at each timestep.

A schedule is (timesteps, **its own options) -> (alpha^2, sigma^2), float64 [timesteps] each, for
x_t = alpha_t x_0 + sigma_t eps: the variances of signal and noise, of which betas give the first
without rounding. Index 0 is one step of noise, not none: sigma > 0 everywhere, and alpha / sigma
falls. Any such process will do. All below but `straight` preserve the variance, alpha^2 + sigma^2
= 1. Those that come from betas have their true names: the official code calls `scaled_linear`
"linear" and `linear` "sqrt_linear", which only the converter of its checkpoints knows.
"""

import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry

SCHEDULES = Registry("schedule")


def from_betas(name):
    """Registers (beta_start, beta_end, timesteps) -> betas [timesteps] as the schedule `name`."""

    def decorate(make_betas):
        @SCHEDULES.register(name)
        def schedule(
            timesteps, *, beta_start=0.0015, beta_end=0.0195, zero_terminal_snr=False
        ) -> tuple[np.ndarray, np.ndarray]:
            if not 0 < beta_start <= beta_end < 1:
                raise UsageError(
                    f"beta_start={beta_start}, beta_end={beta_end}: needs "
                    "0 < beta_start <= beta_end < 1."
                )
            table = np.cumprod(1.0 - make_betas(beta_start, beta_end, timesteps))
            table = rescale_to_zero_terminal_snr(table) if zero_terminal_snr else table
            return table, 1.0 - table

        schedule.__doc__ = make_betas.__doc__
        return make_betas

    return decorate


def alpha_bar(schedule: str, timesteps: int = 1000, **options) -> np.ndarray:
    """alpha^2 of a schedule, float64 [timesteps]: of one from betas the products of 1 - beta."""
    return SCHEDULES.call(schedule, timesteps, **options)[0]


def rescale_to_zero_terminal_snr(table: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that its last entry is 0 and its first stays.

    Lin et al. 2023 (arXiv 2305.08891), algorithm 1: then the last timestep is pure noise in
    training too, as it is at the start of sampling.
    """
    if len(table) < 2:
        raise UsageError("zero_terminal_snr=True needs timesteps >= 2.")
    alpha = np.sqrt(table)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


@from_betas("linear")
def linear(beta_start, beta_end, timesteps):
    """Betas on a line (Ho et al. 2020, sec. 4)."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)


@from_betas("scaled_linear")
def scaled_linear(beta_start, beta_end, timesteps):
    """Square roots of betas on a line (Rombach et al. 2022): the schedule of every official LDM."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=np.float64) ** 2


@from_betas("sqrt")
def sqrt(beta_start, beta_end, timesteps):
    """Betas are square roots of a line (in the official code; no model of the zoo uses it)."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64) ** 0.5


@from_betas("cosine")
def cosine(beta_start, beta_end, timesteps, offset=8e-3):
    """alpha_bar is a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    It fixes its own ends; the betas that are given are ignored, as converted configs hold some.
    """
    del beta_start, beta_end
    time = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    curve = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1.0 - curve[1:] / curve[:-1], 0.0, 0.999)


@SCHEDULES.register("straight")
def straight(timesteps):
    """x_t = (1 - u) x_0 + u eps (Liu et al. 2022, arXiv 2209.03003); u = (t + 1) / T, so up to 1.

    Rectified flow as it is published, for networks that were trained on it elsewhere. Beside
    prediction `flow` it is the objective of SiT, SD3 and Flux.
    """
    u = np.arange(1, timesteps + 1, dtype=np.float64) / timesteps
    return (1 - u) ** 2, u**2


@SCHEDULES.register("rectified")
def rectified(timesteps):
    """The noise levels of `straight` at a variance of 1: x_t divided by sqrt((1 - u)^2 + u^2).

    The same process to every sampler, with inputs that a network likes and with which `v` works.
    """
    signal, noise = straight(timesteps)
    return signal / (signal + noise), noise / (signal + noise)
