"""The forward process: a noise schedule, what a network predicts of it, and which times it trains.

Only this module knows eps, x_0 and v. x_t = alpha_t x_0 + sigma_t eps, for any schedule. Timesteps
are integers `t: [b]` in 0..T-1, where t = 0 is one step of noise, not none; alpha and sigma, and so
the conversions, also take fractions (float `t`), which some time grids visit.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry
from ldm_jax.diffusion.loss_weights import WEIGHTS
from ldm_jax.diffusion.schedules import SCHEDULES

PREDICTIONS = Registry("prediction")
DENSITIES = Registry("time density")  # (process, **its own options) -> shares, float64 [timesteps]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network predicts, as a linear function of (x_0, eps).

    refuse: (alpha, sigma), the tables of a schedule -> why it cannot be predicted there, or None.
    """

    target: Callable  # (x_0, eps, alpha, sigma) -> pred
    to_x0: Callable  # (pred, x_t, alpha, sigma) -> x_0
    gain: Callable  # (alpha, sigma) -> (d x_0 / d pred)^2 at fixed x_t
    refuse: Callable = lambda alpha, sigma: None


_PURE_NOISE = "the last x_t is pure noise, so its eps says nothing of x_0; use 'v' or 'x0'"
_CHANGING_VARIANCE = "its formulas need alpha^2 + sigma^2 = 1; use 'x0'"

PREDICTIONS.register("eps")(
    Prediction(
        target=lambda x_0, eps, alpha, sigma: eps,
        to_x0=lambda eps, x_t, alpha, sigma: (x_t - sigma * eps) / alpha,
        gain=lambda alpha, sigma: (sigma / alpha) ** 2,
        refuse=lambda alpha, sigma: _PURE_NOISE if np.any(alpha == 0) else None,
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
        refuse=lambda alpha, sigma: (
            None if np.allclose(alpha**2 + sigma**2, 1.0) else _CHANGING_VARIANCE
        ),
    )
)
PREDICTIONS.register("flow")(  # the velocity of rectified flow (Liu et al. 2022, arXiv 2209.03003)
    Prediction(
        target=lambda x_0, eps, alpha, sigma: eps - x_0,
        to_x0=lambda u, x_t, alpha, sigma: (x_t - sigma * u) / (alpha + sigma),
        gain=lambda alpha, sigma: (sigma / (alpha + sigma)) ** 2,
    )
)


@DENSITIES.register("uniform")
def uniform(process):
    """Every timestep alike (Ho et al. 2020, algorithm 1)."""
    return np.ones(process.timesteps)


@DENSITIES.register("shifted")
def shifted(process, *, density_shift=1.0):
    """Uniform times u, moved to s u / (1 + (s - 1) u), for s = density_shift.

    s > 1 trains noisier levels, as larger latents want (Esser et al. 2024, arXiv 2403.03206, eq.
    23; they move the levels of rectified flow, whose times these are).
    """
    if not density_shift > 0:
        raise UsageError(f"density_shift={density_shift} must be above 0.")
    ends = np.arange(process.timesteps + 1) / process.timesteps
    return np.diff(ends / (density_shift - (density_shift - 1) * ends))


@DENSITIES.register("logit_normal")
def logit_normal(process, *, density_mean=0.0, density_std=1.0):
    """log(sigma / alpha) ~ N(density_mean, density_std^2), cut off where the schedule ends.

    On the levels of rectified flow that is the logit-normal time of Esser et al. 2024 (arXiv
    2403.03206, eq. 19). On any schedule it is the noise of EDM (Karras et al. 2022, table 1). Their
    P_mean is for data of deviation 0.5: density_mean = P_mean + log 2, density_std = P_std.
    """
    if not density_std > 0:
        raise UsageError(f"density_std={density_std} must be above 0.")
    with np.errstate(divide="ignore"):
        level = -0.5 * np.log(process.snr)
    finite = level[np.isfinite(level)]
    edges = np.interp(np.arange(len(finite) + 1) - 0.5, np.arange(len(finite)), finite)
    if len(finite) < len(level):  # pure noise takes all that is above
        edges = np.append(edges, np.inf)
    share = np.diff(scipy.special.ndtr((edges - density_mean) / density_std))
    if share.sum() < 0.5:
        raise UsageError(
            f"density_mean={density_mean}, density_std={density_std}: only {share.sum():.0%} of it "
            f"lies within the noise levels of schedule={process.schedule!r}, where "
            f"log(sigma / alpha) is {level[0]:.2f} to {level[-1]:.2f}."
        )
    return share


def make_process(
    schedule="scaled_linear", timesteps=1000, prediction="eps", density="uniform", **options
):
    """The forward process by its names and numbers; bad ones are a UsageError here, not later.

    options: of the schedule and of the time density.
    """
    process = Process(schedule, timesteps, prediction, density, tuple(sorted(options.items())))
    for option, value in options.items():
        if not SCHEDULES.takers(option) and not DENSITIES.takers(option):
            raise UsageError(f"{option}={value}: no schedule and no time density takes it.")
    process.shares  # noqa: B018 (refuses what does not fit)
    if reason := PREDICTIONS.get(prediction).refuse(*process.tables):
        own = SCHEDULES.taken(schedule, **process.options_of(SCHEDULES))
        given = "".join(f", {name}={value}" for name, value in own.items())
        raise UsageError(
            f"prediction={prediction!r} cannot be used with schedule={schedule!r}{given}: {reason}."
        )
    return process


@dataclasses.dataclass(frozen=True)
class Process:
    """A value: equal and hashed by its fields, so it can be a static argument of `jit`.

    Tables are float64 numpy, computed once; what enters a computation is cast to float32.
    """

    schedule: str
    timesteps: int
    prediction: str
    density: str = "uniform"
    options: tuple[tuple[str, Any], ...] = ()  # of the schedule and of the density

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

    def draw_times(self, key, shape):
        """Timesteps to train at, integers of this shape, from the process's time density."""
        if np.ptp(self.shares) == 0:
            return jax.random.randint(key, shape, 0, self.timesteps)
        until = jnp.asarray(np.cumsum(self.shares)[:-1], jnp.float32)
        return jnp.searchsorted(until, jax.random.uniform(key, shape), side="right")

    def alpha(self, t):
        """The factor of x_0 in x_t, float32, in the shape of t."""
        if jnp.issubdtype(t.dtype, jnp.floating):
            return self._radius_between(t) * jnp.sqrt(jax.nn.sigmoid(self._log_snr_between(t)))
        return _lookup(self.tables[0], t)

    def sigma(self, t):
        """The standard deviation of the noise in x_t, float32, in the shape of t."""
        if jnp.issubdtype(t.dtype, jnp.floating):
            return self._radius_between(t) * self.noise_share(t)
        return _lookup(self.tables[1], t)

    def noise_share(self, t):
        """sigma / sqrt(alpha^2 + sigma^2), 0 to 1, float32, in the shape of t."""
        if jnp.issubdtype(t.dtype, jnp.floating):
            return jnp.sqrt(jax.nn.sigmoid(-self._log_snr_between(t)))
        return _lookup(np.sqrt(self.noise / self.variance), t)

    def weight(self, t, kind="uniform", **options):
        """The loss weight of `WEIGHTS[kind]` for the squared error of this prediction, [b]."""
        return _lookup(self.weights(kind, **options), t)

    def weights(self, kind="uniform", **options):
        """The table that `weight` looks into, float64 [T]."""
        return WEIGHTS.call(kind, self, **options)

    def features(self, count: int):
        """Fourier features of the noise level, float64 [T, count], of mean square 1.

        sqrt(2) cos(2 pi (f log(sigma / alpha) / 4 + phi)), f normal and phi uniform, both drawn
        once and for all (Karras et al. 2024, arXiv 2312.02696, appendix B). Pure noise counts as a
        level of 10.
        """
        draw = np.random.default_rng(0)
        f, phi = draw.standard_normal(count), draw.uniform(size=count)
        with np.errstate(divide="ignore"):
            level = np.minimum(-0.5 * np.log(self.snr), 10.0) / 4
        return np.sqrt(2) * np.cos(2 * np.pi * (level[:, None] * f + phi))

    def options_of(self, registry) -> dict:
        """Those of the options that any entry of the registry takes."""
        return {name: value for name, value in self.options if registry.takers(name)}

    @functools.cached_property
    def shares(self):
        """How often training visits each timestep, float64 [T], of sum 1."""
        table = DENSITIES.call(self.density, self, **self.options_of(DENSITIES))
        fits = np.shape(table) == (self.timesteps,) and np.all(table >= 0)
        if not (fits and 0 < np.sum(table) < np.inf):
            raise UsageError(
                f"density={self.density!r} must give {self.timesteps} finite shares, none below 0 "
                "and one above."
            )
        return table / np.sum(table)

    @property
    def signal(self):
        """alpha^2, float64 [T]."""
        return self._variances[0]

    @property
    def noise(self):
        """sigma^2, float64 [T]."""
        return self._variances[1]

    @property
    def tables(self):
        """(alpha, sigma), float64 [T] each."""
        return np.sqrt(self.signal), np.sqrt(self.noise)

    @functools.cached_property
    def snr(self):
        """alpha^2 / sigma^2, float64 [T]."""
        return self.signal / self.noise

    @property
    def variance(self):
        """alpha^2 + sigma^2, of x_t for data of variance 1, float64 [T]."""
        return _variance(self.signal, self.noise)

    @functools.cached_property
    def gain(self):
        """(d x_0 / d prediction)^2 at fixed x_t, float64 [T]."""
        return self._predicted.gain(*self.tables)

    @functools.cached_property
    def posterior(self):
        """`posterior` of every step t -> t - 1, the last one to clean data; three float64 [T]."""
        before = np.concatenate([[1.0], self.signal[:-1]]), np.concatenate([[0.0], self.noise[:-1]])
        return posterior(self.signal, self.noise, *before)

    @functools.cached_property
    def _variances(self):
        if self.timesteps < 1:
            raise UsageError(f"timesteps={self.timesteps} must be at least 1.")
        return SCHEDULES.call(self.schedule, self.timesteps, **self.options_of(SCHEDULES))

    @property
    def _predicted(self):
        return PREDICTIONS.get(self.prediction)

    def _log_snr_between(self, t):
        """log(alpha^2 / sigma^2), straight between the integers; a terminal -inf counts as -80."""
        with np.errstate(divide="ignore"):
            return _interpolate(np.maximum(np.log(self.snr), -80.0), t)

    def _radius_between(self, t):
        """sqrt(alpha^2 + sigma^2), the variance being straight between the integers."""
        still = np.all(self.variance == 1)
        return 1.0 if still else jnp.sqrt(_interpolate(self.variance, t))

    def _coefficients(self, t, x):
        shape = t.shape + (1,) * (x.ndim - t.ndim)
        return self.alpha(t).reshape(shape), self.sigma(t).reshape(shape)


def posterior(signal, noise, signal_prev, noise_prev):
    """q(x_prev | x_t, x_0) = N(coef_x0 x_0 + coef_xt x_t, variance) (Ho et al. 2020, eq. 6-7).

    alpha^2 and sigma^2 of x_t and of x_prev, float64 arrays of one shape, for neighbours on any
    time grid. The variance is the paper's beta-tilde, the official code's `v_posterior=0`.
    """
    ratio = signal / signal_prev
    added = _variance(signal, noise) - ratio * _variance(signal_prev, noise_prev)
    coef_x0 = added * np.sqrt(signal_prev) / noise
    coef_xt = noise_prev * np.sqrt(ratio) / noise
    return coef_x0, coef_xt, added * noise_prev / noise


def _variance(signal, noise):
    # Exactly 1 where only rounding makes it something else.
    variance = np.asarray(signal) + noise
    return np.where(np.abs(variance - 1.0) < 1e-12, 1.0, variance)


def _lookup(table, t):
    return jnp.asarray(table, jnp.float32)[t]


def _interpolate(table, t):
    return jnp.interp(t, np.arange(len(table), dtype=np.float32), jnp.float32(table))
