"""Noise schedules: tables of beta_t, in float64, under their true names.

The official code calls `scaled_linear` "linear" and `linear` "sqrt_linear"; only the converter of
its checkpoints knows those names.
"""

import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry

SCHEDULES = Registry("schedule")


def alpha_bar(
    schedule: str,
    timesteps: int = 1000,
    beta_start: float = 0.0015,
    beta_end: float = 0.0195,
    zero_terminal_snr: bool = False,
) -> np.ndarray:
    """The cumulative product of 1 - beta, float64 `[timesteps]`; index 0 is one noising step."""
    if timesteps < 1:
        raise UsageError(f"timesteps={timesteps} must be at least 1.")
    if not 0 < beta_start <= beta_end < 1:
        raise UsageError(
            f"beta_start={beta_start}, beta_end={beta_end}: needs 0 < beta_start <= beta_end < 1."
        )
    betas = SCHEDULES.get(schedule)(beta_start, beta_end, timesteps)
    table = np.cumprod(1.0 - betas)
    return rescale_to_zero_terminal_snr(table) if zero_terminal_snr else table


def rescale_to_zero_terminal_snr(table: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that its last entry is 0 and its first stays.

    Lin et al. 2023 (arXiv 2305.08891), algorithm 1: then the last timestep is pure noise in
    training too, as it is at the start of sampling.
    """
    if len(table) < 2:
        raise UsageError("zero_terminal_snr=True needs timesteps >= 2.")
    alpha = np.sqrt(table)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


@SCHEDULES.register("linear")
def linear(beta_start, beta_end, timesteps):
    """Betas on a line (Ho et al. 2020, sec. 4)."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)


@SCHEDULES.register("scaled_linear")
def scaled_linear(beta_start, beta_end, timesteps):
    """Square roots of betas on a line (Rombach et al. 2022): the schedule of every official LDM."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=np.float64) ** 2


@SCHEDULES.register("sqrt")
def sqrt(beta_start, beta_end, timesteps):
    """Betas are square roots of a line (in the official code; no model of the zoo uses it)."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64) ** 0.5


@SCHEDULES.register("cosine")
def cosine(beta_start, beta_end, timesteps, offset=8e-3):
    """alpha_bar is a squared cosine (Nichol & Dhariwal 2021, eq. 17), which fixes its own ends."""
    del beta_start, beta_end
    time = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    curve = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1.0 - curve[1:] / curve[:-1], 0.0, 0.999)
