"""Time grids: which timesteps a sampler visits, from noise to data.

`exact` is the default: S steps are S network calls for every S. `legacy` is the official code's.
"""

import dataclasses

import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry

GRIDS = Registry("time grid")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Timesteps in the order of their use (falling) and where the last step lands.

    `clean`: on alpha_bar = 1, data without noise. Otherwise on alpha_bar[0], as in the official
    DDIM, whose images keep sigma_0 (3.9 % for most LDMs) of the last predicted noise.
    """

    timesteps: tuple[int, ...]
    clean: bool = True

    def __len__(self):
        return len(self.timesteps)

    def alpha_bars(self, process):
        """(alpha_bar, alpha_bar_prev) of every step, float64 `[steps]` each."""
        if self.timesteps[0] >= process.timesteps:
            raise UsageError(
                f"The grid starts at timestep {self.timesteps[0]}, but the process has only "
                f"0..{process.timesteps - 1}."
            )
        table = process.alpha_bar[np.asarray(self.timesteps)]
        last = 1.0 if self.clean else process.alpha_bar[0]
        return table, np.append(table[1:], last)


@GRIDS.register("exact")
def exact(timesteps: int, steps: int) -> Grid:
    """`steps` equal strides down from T-1: entry i of the rising list is floor((i+1) T / S) - 1.

    Strides of at least 1 make all of them distinct; the top is always T-1, where sampling really
    starts (Lin et al. 2023, sec. 3.3), and the last step lands on clean data.
    """
    _check(timesteps, steps)
    return Grid(tuple((i + 1) * timesteps // steps - 1 for i in reversed(range(steps))))


@GRIDS.register("trailing")
def trailing(timesteps: int, steps: int) -> Grid:
    """diffusers' "trailing": as `exact`, but rounded to the nearest timestep."""
    _check(timesteps, steps)
    rising = np.round(timesteps - np.arange(steps) * (timesteps / steps)) - 1
    return Grid(tuple(int(t) for t in rising))


@GRIDS.register("linspace")
def linspace(timesteps: int, steps: int) -> Grid:
    """diffusers' "linspace": both 0 and T-1 are visited (Lin et al. 2023, table 2)."""
    _check(timesteps, steps)
    if steps == 1:
        raise UsageError("Time grid 'linspace' needs steps >= 2; 'exact' works with 1.")
    return Grid(tuple(int(t) for t in np.linspace(0, timesteps - 1, steps).round()[::-1]))


@GRIDS.register("legacy")
def legacy(timesteps: int, steps: int) -> Grid:
    """The official "uniform" DDIM grid: 1, 1+c, 1+2c, ... with c = floor(T / S).

    It has ceil(T / c) entries, not always `steps` (30 gives 31, 400 gives 500), never visits T-1,
    and where T-1 is a multiple of c it runs past the table: the official code crashes there.
    """
    _check(timesteps, steps)
    falling = _legacy_timesteps(timesteps, steps)
    if falling[0] >= timesteps:
        near = [
            _nearest_workable(timesteps, counts)
            for counts in (range(steps - 1, 0, -1), range(steps + 1, timesteps + 1))
        ]
        near = " and ".join(str(count) for count in near if count)
        raise UsageError(
            f"steps={steps} does not work with time grid 'legacy': it would visit timestep "
            f"{falling[0]} of 0..{timesteps - 1}. Nearest that work: {near or 'none'}; "
            "time grid 'exact' works with any."
        )
    return Grid(falling, clean=False)


def _legacy_timesteps(timesteps, steps):
    return tuple(t + 1 for t in reversed(range(0, timesteps, timesteps // steps)))


def _nearest_workable(timesteps, counts):
    return next((s for s in counts if _legacy_timesteps(timesteps, s)[0] < timesteps), None)


def _check(timesteps, steps):
    if not 1 <= steps <= timesteps:
        raise UsageError(f"steps={steps} must lie in 1..{timesteps}, the timesteps of the process.")
