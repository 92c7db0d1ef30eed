"""Time grids: which noise levels a sampler visits, from noise to data.

`exact` is the default: S steps for every S from 1 to T. `legacy` is the official code's.
"""

import dataclasses

import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry

GRIDS = Registry("time grid")  # (process, steps, **its own options) -> Grid
CLEAN = 1.0, 0.0  # alpha^2, sigma^2 of data without noise
LCM_TIMESTEPS = 50  # timesteps that published latent consistency models know


@dataclasses.dataclass(frozen=True)
class Grid:
    """S steps between S + 1 noise levels; a value, so it can be a static argument of `jit`.

    timesteps: S of them, falling: what the network is told at the start of each step. Fractions
    lie between two trained levels (`Process.alpha`).
    signal, noise: alpha^2 and sigma^2 of the S + 1 levels; the last is where the last step lands:
    (1, 0), data without noise, for every grid but `legacy`.
    """

    timesteps: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]

    def __len__(self):
        return len(self.timesteps)

    def noised(self, x_0, eps):
        """x_0 at the grid's first level, where a sampler begins."""
        return np.float32(self.signal[0] ** 0.5) * x_0 + np.float32(self.noise[0] ** 0.5) * eps

    def pure(self, eps):
        """Noise as large as unit-variance data is at the grid's first level."""
        return np.float32(np.sqrt(self.signal[0] + self.noise[0])) * eps

    def last(self, steps: int) -> "Grid":
        """The last `steps` steps: what is left to do from a state that is not pure noise."""
        if not 1 <= steps <= len(self):
            raise UsageError(f"{steps} last steps of a grid of {len(self)}: needs 1..{len(self)}.")
        levels = slice(-steps - 1, None)
        return Grid(self.timesteps[-steps:], self.signal[levels], self.noise[levels])


@GRIDS.register("exact")
def exact(process, steps: int) -> Grid:
    """`steps` equal strides down from T-1: entry i of the rising list is floor((i+1) T / S) - 1.

    Strides of at least 1 make all of them distinct; the top is always T-1, where sampling really
    starts (Lin et al. 2023, sec. 3.3).
    """
    _check(process, steps)
    return _grid(process, [(i + 1) * process.timesteps // steps - 1 for i in range(steps)])


@GRIDS.register("trailing")
def trailing(process, steps: int) -> Grid:
    """diffusers' "trailing": as `exact`, but rounded to the nearest timestep."""
    _check(process, steps)
    total = process.timesteps
    return _grid(process, np.round(total - np.arange(steps) * (total / steps))[::-1] - 1)


@GRIDS.register("linspace")
def linspace(process, steps: int) -> Grid:
    """diffusers' "linspace": both 0 and T-1 are visited (Lin et al. 2023, table 2)."""
    _check(process, steps)
    if steps == 1:
        raise UsageError("Time grid 'linspace' needs steps >= 2; 'exact' works with 1.")
    return _grid(process, np.linspace(0, process.timesteps - 1, steps).round())


@GRIDS.register("leading")
def leading(process, steps: int, *, offset: int = 0) -> Grid:
    """diffusers' "leading": 0, c, 2c, ... with c = floor(T / S), all plus `offset`.

    Never visits T-1 (but for steps = T): the first noise is taken for a lower level than it has.
    """
    _check(process, steps)
    return _grid(process, np.arange(steps) * (process.timesteps // steps) + offset)


@GRIDS.register("lcm")
def lcm(process, steps: int) -> Grid:
    """Some of the 50 timesteps that published latent consistency models know: 19, 39, ..., 999.

    Entry i is 999 - 20 floor(50 i / S), as diffusers' LCMScheduler visits them (Luo et al. 2023,
    arXiv 2310.04378, sec. 4.3). Students of ours know every timestep and need no such grid.
    """
    _check(process, steps)
    if steps > LCM_TIMESTEPS or process.timesteps < LCM_TIMESTEPS:
        raise UsageError(
            f"steps={steps}: time grid 'lcm' has {LCM_TIMESTEPS} of {process.timesteps} timesteps: "
            f"give 1..{LCM_TIMESTEPS}; time grid 'exact' works with any."
        )
    stride = process.timesteps // LCM_TIMESTEPS
    falling = [LCM_TIMESTEPS - LCM_TIMESTEPS * i // steps for i in range(steps)]
    return _grid(process, [stride * n - 1 for n in falling[::-1]])


@GRIDS.register("karras")
def karras(process, steps: int, *, last: int = 0, rho: float = 7.0) -> Grid:
    """Levels equally spaced in s^(1/rho), s = sigma / alpha (Karras et al. 2022, eq. 5).

    From T-1 down to timestep `last`. The network is told the fraction of a timestep at which
    log s is right. Where T-1 has no signal (s infinite) the ramp begins at T-2, after it.
    """
    _check(process, steps)
    if not rho > 0:
        raise UsageError(f"rho={rho} must be above 0.")
    terminal = int(process.signal[-1] == 0.0)
    log_s = -0.5 * np.log(process.snr[: process.timesteps - terminal])
    ends = np.exp(log_s[[-1, last]] / rho)
    ramp = rho * np.log(np.linspace(*ends, steps - terminal))
    return _between(process, terminal, np.interp(ramp, log_s, np.arange(len(log_s))), ramp)


@GRIDS.register("shifted")
def shifted(process, steps: int, *, shift: float = 1.0) -> Grid:
    """The times u of `exact`, moved to s u / (1 + (s - 1) u), for s = shift.

    s > 1 spends more steps on noisier levels, as large latents want (Esser et al. 2024, arXiv
    2403.03206, eq. 23). Both ends stay. The network is told fractions of timesteps.
    """
    if not 1 <= shift < np.inf:
        raise UsageError(f"shift={shift} must be at least 1.")
    u = (np.array(exact(process, steps).timesteps) + 1) / process.timesteps
    return _moved(process, u, shift)


@GRIDS.register("flow_match")
def flow_match(process, steps: int, *, shift: float = 1.0) -> Grid:
    """diffusers' FlowMatchEulerDiscreteScheduler: its times of rectified flow, moved as `shifted`.

    They are equally spaced from 1 down to the first timestep's, where that is moved once already,
    as it comes from its table of training.
    """
    if not 0 < shift < np.inf:
        raise UsageError(f"shift={shift} must be above 0.")
    _check(process, steps)
    least = _later(1 / process.timesteps, shift)
    return _moved(process, np.linspace(1.0, least, steps), shift)


def _later(u, shift):
    return shift * u / (1 + (shift - 1) * u)


def _moved(process, u, shift):
    """The grid of falling times u from 1 on, of timestep u T - 1, moved by `shift`."""
    terminal = int(process.signal[-1] == 0.0)
    timesteps = np.maximum(_later(u[terminal:], shift) * process.timesteps - 1, 0.0)
    log_s = -0.5 * np.log(process.snr[: process.timesteps - terminal])
    if terminal and np.any(timesteps > len(log_s) - 1):
        raise UsageError(f"shift={shift} leaves no level between pure noise and its first step.")
    return _between(
        process, terminal, timesteps, np.interp(timesteps, np.arange(len(log_s)), log_s)
    )


@GRIDS.register("legacy")
def legacy(process, steps: int) -> Grid:
    """The official "uniform" DDIM grid: 1, 1+c, 1+2c, ... with c = floor(T / S).

    It has ceil(T / c) entries, not always `steps` (30 gives 31, 400 gives 500), never visits T-1,
    and where T-1 is a multiple of c it runs past the table: the official code crashes there. It
    lands on timestep 0: images keep sigma_0 (3.9 % for most LDMs) of the last predicted noise.
    """
    _check(process, steps)
    total = process.timesteps
    timesteps = lambda steps: range(1, total + 1, total // steps)
    workable = [n for n in range(1, total + 1) if timesteps(n)[-1] < total]
    if steps not in workable:
        near = [n for n in workable if n < steps][-1:] + [n for n in workable if n > steps][:1]
        raise UsageError(
            f"steps={steps} does not work with time grid 'legacy': it would visit timestep "
            f"{timesteps(steps)[-1]} of 0..{total - 1}. Nearest that work: "
            f"{' and '.join(map(str, near)) or 'none'}; time grid 'exact' works with any."
        )
    return _grid(process, timesteps(steps), (process.signal[0], process.noise[0]))


def _grid(process, rising, end=CLEAN):
    falling = [int(t) for t in rising][::-1]
    signal, noise = (*process.signal[falling], end[0]), (*process.noise[falling], end[1])
    return Grid(tuple(falling), _floats(signal), _floats(noise))


def _between(process, terminal, timesteps, log_s):
    """T-1 where it is `terminal`, then fractions of timesteps, of log(sigma / alpha) log_s."""
    share = 1.0 / (1.0 + np.exp(2.0 * log_s))  # of the variance that is signal
    variance = np.interp(timesteps, np.arange(process.timesteps), process.variance)
    top = [process.timesteps - 1] * terminal
    signal = (*process.signal[top], *(variance * share), CLEAN[0])
    noise = (*process.noise[top], *(variance * (1.0 - share)), CLEAN[1])
    return Grid((*map(float, top), *timesteps.tolist()), _floats(signal), _floats(noise))


def _floats(levels):
    return tuple(map(float, levels))


def _check(process, steps):
    if not 1 <= steps <= process.timesteps:
        raise UsageError(
            f"steps={steps} must lie in 1..{process.timesteps}, the timesteps of the process."
        )
