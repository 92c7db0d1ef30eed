"""The forward process and what a network predicts of it: the only place that knows eps, x_0 and v.

Everything is variance preserving: x_t = alpha_t x_0 + sigma_t eps, alpha^2 + sigma^2 = 1. Timesteps
are integers `t: [b]` in 0..T-1, where t = 0 is one step of noise, not none; alpha and sigma, and so
the conversions, also take fractions (float `t`), which some time grids visit.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry
from ldm_jax.diffusion import schedules
from ldm_jax.diffusion.loss_weights import WEIGHTS

PREDICTIONS = Registry("prediction")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network predicts, as a linear function of (x_0, eps)."""

    target: Callable  # (x_0, eps, alpha, sigma) -> pred
    to_x0: Callable  # (pred, x_t, alpha, sigma) -> x_0
    gain: Callable  # (alpha, sigma) -> (d x_0 / d pred)^2 at fixed x_t
    terminal: bool = True  # whether it still tells x_0 where alpha = 0


PREDICTIONS.register("eps")(
    Prediction(
        target=lambda x_0, eps, alpha, sigma: eps,
        to_x0=lambda eps, x_t, alpha, sigma: (x_t - sigma * eps) / alpha,
        gain=lambda alpha, sigma: (sigma / alpha) ** 2,
        terminal=False,
    )
)
PREDICTIONS.register("x0")(
    Prediction(
        target=lambda x_0, eps, alpha, sigma: x_0,
        to_x0=lambda x_0, x_t, alpha, sigma: x_0,
        gain=lambda alpha, sigma: np.ones_like(alpha),
    )
)
PREDICTIONS.register("v")(  # Salimans & Ho 2022 (arXiv 2202.00512), sec. 4 and appendix D
    Prediction(
        target=lambda x_0, eps, alpha, sigma: alpha * eps - sigma * x_0,
        to_x0=lambda v, x_t, alpha, sigma: alpha * x_t - sigma * v,
        gain=lambda alpha, sigma: sigma**2,
    )
)


def make_process(
    schedule="scaled_linear",
    timesteps=1000,
    beta_start=0.0015,
    beta_end=0.0195,
    prediction="eps",
    zero_terminal_snr=False,
):
    """The forward process by its names and numbers; bad ones are a UsageError here, not later."""
    process = Process(schedule, timesteps, beta_start, beta_end, prediction, zero_terminal_snr)
    process.alpha_bar  # noqa: B018  (checks the schedule and its numbers)
    tells_x0_of_noise = PREDICTIONS.get(prediction).terminal
    if zero_terminal_snr and not tells_x0_of_noise:
        raise UsageError(
            f"prediction={prediction!r} cannot be used with zero_terminal_snr=True: at the last "
            "timestep x_t is pure noise and its eps says nothing of x_0; use prediction='v'."
        )
    return process


@dataclasses.dataclass(frozen=True)
class Process:
    """A value: equal and hashed by its six fields, so it can be a static argument of `jit`.

    Tables are float64 numpy, computed once; what enters a computation is cast to float32.
    """

    schedule: str
    timesteps: int
    beta_start: float
    beta_end: float
    prediction: str
    zero_terminal_snr: bool

    def corrupt(self, x_0, t, eps):
        """q(x_t | x_0) with a given eps (Ho et al. 2020, eq. 4). x_0, eps: [b, ...]; t: [b]."""
        alpha, sigma = self._coefficients(t, x_0)
        return alpha * x_0 + sigma * eps

    def target(self, x_0, eps, t):
        """What the network should say at x_t = corrupt(x_0, t, eps). x_0, eps: [b, ...]; t: [b]."""
        return self._predicted.target(x_0, eps, *self._coefficients(t, x_0))

    def to_x0(self, pred, x_t, t):
        """The x_0 that a network's output implies at x_t. pred, x_t: [b, ...]; t: [b]."""
        return self._predicted.to_x0(pred, x_t, *self._coefficients(t, x_t))

    def to_eps(self, x_0, x_t, t):
        """The eps that takes x_0 to x_t. x_0, x_t: [b, ...]; t: [b]."""
        alpha, sigma = self._coefficients(t, x_t)
        return (x_t - alpha * x_0) / sigma

    def alpha(self, t):
        """sqrt(alpha_bar_t), float32, in the shape of t."""
        if jnp.issubdtype(t.dtype, jnp.floating):
            return jnp.sqrt(jax.nn.sigmoid(self._log_snr_between(t)))
        return _lookup(np.sqrt(self.alpha_bar), t)

    def sigma(self, t):
        """sqrt(1 - alpha_bar_t), float32, in the shape of t."""
        if jnp.issubdtype(t.dtype, jnp.floating):
            return jnp.sqrt(jax.nn.sigmoid(-self._log_snr_between(t)))
        return _lookup(np.sqrt(1.0 - self.alpha_bar), t)

    def log_snr(self, t):
        """log(alpha^2 / sigma^2), float32, in the shape of t; -inf at a terminal SNR of zero."""
        with np.errstate(divide="ignore"):
            return _lookup(np.log(self.snr), t)

    def weight(self, t, kind="uniform", **options):
        """The loss weight of `WEIGHTS[kind]` for the squared error of this prediction, [b]."""
        return _lookup(WEIGHTS.get(kind)(self, **options), t)

    @functools.cached_property
    def alpha_bar(self):
        """float64 [T], falling."""
        return schedules.alpha_bar(
            self.schedule, self.timesteps, self.beta_start, self.beta_end, self.zero_terminal_snr
        )

    @functools.cached_property
    def snr(self):
        """alpha^2 / sigma^2, float64 [T]."""
        return self.alpha_bar / (1.0 - self.alpha_bar)

    @functools.cached_property
    def gain(self):
        """(d x_0 / d prediction)^2 at fixed x_t, float64 [T]."""
        return self._predicted.gain(np.sqrt(self.alpha_bar), np.sqrt(1.0 - self.alpha_bar))

    @functools.cached_property
    def posterior(self):
        """`posterior` of every step t -> t - 1, the last one to clean data; three float64 [T]."""
        return posterior(self.alpha_bar, np.concatenate([[1.0], self.alpha_bar[:-1]]))

    @property
    def _predicted(self):
        return PREDICTIONS.get(self.prediction)

    def _log_snr_between(self, t):
        """`log_snr` on straight lines between the integers; a terminal -inf counts as -80."""
        with np.errstate(divide="ignore"):
            table = np.maximum(np.log(self.snr), -80.0)
        return jnp.interp(t, np.arange(len(table), dtype=np.float32), jnp.float32(table))

    def _coefficients(self, t, x):
        shape = t.shape + (1,) * (x.ndim - t.ndim)
        return self.alpha(t).reshape(shape), self.sigma(t).reshape(shape)


def posterior(alpha_bar, alpha_bar_prev):
    """q(x_prev | x_t, x_0) = N(coef_x0 x_0 + coef_xt x_t, variance) (Ho et al. 2020, eq. 6-7).

    float64 arrays of one shape, for neighbours on any time grid. The variance is the paper's
    beta-tilde, the official code's default (`v_posterior=0`).
    """
    ratio = alpha_bar / alpha_bar_prev
    coef_x0 = (1.0 - ratio) * np.sqrt(alpha_bar_prev) / (1.0 - alpha_bar)
    coef_xt = (1.0 - alpha_bar_prev) * np.sqrt(ratio) / (1.0 - alpha_bar)
    variance = (1.0 - ratio) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    return coef_x0, coef_xt, variance


def _lookup(table, t):
    return jnp.asarray(table, jnp.float32)[t]
