"""The samplers, each as a table of numbers: every one is a general linear method (Butcher 1966).

A method keeps a few arrays, its *state*: first the point where the network looks next, then what
it remembers (earlier predictions, a base point). A network call turns the state into the next by
one small matrix on (state, x_0 predicted, fresh noise z). So all of them run in the same loop
(`samplers.solve`), the network is traced once, and the length of a method is its network calls.
In the code a row of the matrix is written as its formula: `x, x_0, z` are unit vectors there.

A step goes from (alpha, sigma) to (alpha', sigma'). With s = sigma / alpha: q = s'/s, h = -log q.
q is 0 both from pure noise (s = inf) and onto clean data (s' = 0): across such a step nothing can
be extrapolated, and every method makes it by its first-order rule, in one call.
"""

import dataclasses

import numpy as np

from ldm_jax.base.registry import Registry
from ldm_jax.diffusion.grids import Grid
from ldm_jax.diffusion.process import posterior

SAMPLERS = Registry("sampler")  # (Grid, **its own options) -> Method


@dataclasses.dataclass(frozen=True)
class Method:
    """n network calls on a state of r arrays. calls: [(timestep, r rows of r + 2 numbers)]."""

    calls: list

    def __len__(self):
        """Network calls for an image, the NFE; guidance may double the batch of each."""
        return len(self.calls)

    @property
    def timesteps(self):
        """[n] int32, or float32 where the grid has fractions."""
        t = np.asarray([t for t, _ in self.calls])
        return t.astype(np.int32 if np.issubdtype(t.dtype, np.integer) else np.float32)

    @property
    def tables(self):
        """[n, r, r + 2] float64; the columns are the state, x_0 and z."""
        return np.asarray([rows for _, rows in self.calls])


@SAMPLERS.register("ddim")
def ddim(grid: Grid, *, eta: float = 0.0) -> Method:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12, 16); eta 0 is deterministic. S calls."""
    x, x_0, z = _symbols(1)
    calls = []
    for step in _steps(grid):
        std = eta * np.sqrt(step.posterior[2])
        eps = (x - step.alpha * x_0) / step.sigma
        # Rounding may leave -1e-17 where the variance fills all of sigma'^2.
        direction = np.sqrt(max(step.sigma_next**2 - std**2, 0.0))
        calls.append((step.t, [step.alpha_next * x_0 + direction * eps + std * z]))
    return Method(calls)


@SAMPLERS.register("euler_ancestral")
@SAMPLERS.register("ddpm")
def ddpm(grid: Grid) -> Method:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), over any grid. S calls.

    On the full grid these are the official `p_sample` steps; elsewhere the posterior of the grid's
    own neighbours, which equals DDIM with eta 1.

    It is k-diffusion's `euler_ancestral` too, Euler down to s_down and then noise up to s': its
    s_up^2 = s'^2 (s^2 - s'^2) / s^2 is the variance of the posterior in y = x / alpha.
    """
    x, x_0, z = _symbols(1)
    calls = []
    for step in _steps(grid):
        coef_x0, coef_xt, variance = step.posterior
        calls.append((step.t, [coef_x0 * x_0 + coef_xt * x + np.sqrt(variance) * z]))
    return Method(calls)


@SAMPLERS.register("consistency")
def consistency(grid: Grid) -> Method:
    """Predicts x_0 and noises it anew (Song et al. 2023, arXiv 2303.01469, algorithm 1). S calls.

    For students (stages/distil.py), whose prediction is a sample and not the mean of all samples.
    """
    _, x_0, z = _symbols(1)
    return Method(
        [(step.t, [step.alpha_next * x_0 + step.sigma_next * z]) for step in _steps(grid)]
    )


@SAMPLERS.register("euler")
def euler(grid: Grid) -> Method:
    """Euler's rule for dy/ds = (y - x_0) / s, y = x / alpha (Karras et al. 2022, eq. 1). S calls.

    Its step, y' = q y + (1 - q) x_0, is that of DDIM with eta 0: two names of one method.
    """
    return ddim(grid)


@SAMPLERS.register("heun")
def heun(grid: Grid) -> Method:
    """Heun's rule in s (Karras et al. 2022, algorithm 1). 2S - 1 calls: the last step has one."""
    x, start, first, x_0, _ = _symbols(3)
    calls = []
    for step in _steps(grid):
        calls.append((step.t, [step.keep * x + step.gain * x_0, x, x_0]))
        if step.q > 0 and step.t_next is not None:
            # The mean of the slopes at both ends, written in x_0.
            mean = first + (x_0 - first) / (2.0 * step.q)
            calls.append((step.t_next, [step.keep * start + step.gain * mean, start, first]))
    return Method(calls)


@SAMPLERS.register("plms")
def plms(grid: Grid) -> Method:
    """Pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778), the official form. S + 1 calls.

    The first step is a pseudo improved Euler step with an extra call; then Adams-Bashforth of
    order 2, 3, 4, 4, ... on eps, every step being DDIM's with the combined eps.
    """
    x, e1, e2, e3, x_0, _ = _symbols(4)
    calls = []
    for i, step in enumerate(_steps(grid)):
        eps = (x - step.alpha * x_0) / step.sigma
        if step.q == 0:
            calls.append((step.t, [step.keep * x + step.gain * x_0, eps, e1, e2]))
        elif i == 0 and step.t_next is not None:
            start = e2  # free as yet: it holds the start of the step between the two calls
            eps_end = (x - step.alpha_next * x_0) / step.sigma_next
            calls.append((step.t, [step.along(x, eps), eps, x, e3]))
            calls.append((step.t_next, [step.along(start, (e1 + eps_end) / 2), e1, e2, e3]))
        else:
            combined = np.asarray(_ADAMS_BASHFORTH[min(i, 3)]) @ [eps, e1, e2, e3]
            calls.append((step.t, [step.along(x, combined), eps, e1, e2]))
    return Method(calls)


@SAMPLERS.register("dpmpp_2m")
def dpmpp_2m(grid: Grid) -> Method:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). S calls."""
    return _dpmpp(grid, 0.0)


@SAMPLERS.register("dpmpp_2m_sde")
def dpmpp_2m_sde(grid: Grid) -> Method:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, sec. 5, midpoint form). S calls."""
    return _dpmpp(grid, 1.0)


def _dpmpp(grid, eta):
    x, last, x_0, z = _symbols(2)
    calls, before = [], None
    for step in _steps(grid):
        x_0_mid = x_0 + step.midpoint(before) * (x_0 - last)
        drift = step.keep * step.q**eta * x + step.alpha_next * (1 - step.q ** (1 + eta)) * x_0_mid
        std = step.sigma_next * np.sqrt(1 - step.q ** (2 * eta))
        calls.append((step.t, [drift + std * z, x_0]))
        before = step
    return Method(calls)


@SAMPLERS.register("unipc")
def unipc(grid: Grid) -> Method:
    """UniPC of order 2 with B(h) = e^h - 1, "bh2" (Zhao et al. 2023, arXiv 2302.04867). S calls.

    The predictor is DPM-Solver++(2M)'s step. The next call's prediction first corrects the point
    that it was made at, by the same step once more with that prediction in it.
    """
    x, base, m1, m2, x_0, _ = _symbols(4)
    calls, before, earlier = [], None, None
    for step in _steps(grid):
        corrected = x
        if before is not None and before.q > 0:
            here, back = before.correction(earlier)
            x_0_mean = m1 + here * (x_0 - m1) + back * (m2 - m1)
            corrected = before.keep * base + before.gain * x_0_mean
        x_0_mid = x_0 + step.midpoint(before) * (x_0 - m1)
        calls.append((step.t, [step.keep * corrected + step.gain * x_0_mid, corrected, x_0, m1]))
        before, earlier = step, before
    return Method(calls)


_ADAMS_BASHFORTH = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class _Step:
    """A step between two neighbours of a grid.

    t_next: the timestep at its end, None where the grid ends. keep, gain: the first-order step is
    x' = keep x + gain x_0.
    """

    def __init__(self, t, t_next, level, level_next):
        self.t, self.t_next = t, t_next
        self.alpha, self.sigma = np.sqrt(level)
        self.alpha_next, self.sigma_next = np.sqrt(level_next)
        self.posterior = posterior(*level, *level_next)
        self.keep = self.sigma_next / self.sigma
        self.gain = self.alpha_next - self.alpha * self.keep
        self.q = self.keep * self.alpha / self.alpha_next
        with np.errstate(divide="ignore"):
            self.h = -np.log(self.q)

    def along(self, x, eps):
        """The point at this step's end, for a given eps."""
        return self.alpha_next * (x - self.sigma * eps) / self.alpha + self.sigma_next * eps

    def midpoint(self, before):
        """The change of x_0 up to the middle of this step, as a multiple of its last change."""
        return 0.0 if before is None or self.q == 0 else 0.5 * self.h / before.h

    def correction(self, before):
        """Weights of (x_0 at the end, x_0 one step before) beside x_0 at the start: eq. 8-9.

        From the conditions R rho = b of order 2 (of order 1 on the first step).
        """
        if before is None:
            return 0.5, 0.0
        ratio, first = -before.h / self.h, np.expm1(-self.h)
        phi_2 = first / -self.h - 1.0
        phi_3 = phi_2 / -self.h - 0.5
        back = (2.0 * phi_3 - phi_2) / first / (ratio - 1.0)
        return phi_2 / first - back, back / ratio


def _steps(grid):
    t_next = (*grid.timesteps[1:], None)
    levels = np.stack([grid.signal, grid.noise], axis=1)
    return [_Step(*step) for step in zip(grid.timesteps, t_next, levels, levels[1:])]


def _symbols(states):
    """Unit vectors that stand for the `states` arrays of a state, x_0 and z."""
    return np.eye(states + 2)
