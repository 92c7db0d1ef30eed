"""How a job draws: what its flags say, over what the run itself says, checked before it starts."""

import dataclasses
import pathlib
import re
from typing import Any

import jax

from ldm_jax.base import errors, platforms
from ldm_jax.base import record as record_lib
from ldm_jax.diffusion.process import make_process
from ldm_jax.runs import kinds, opened
from ldm_jax.stages.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Settings:
    """A second stage and how it draws; see `read`."""

    run: str
    config: Any
    sampling: Sampling
    size: tuple[int, int]
    ema: bool
    weaker: str

    def open(self, mesh=None):
        """The run (runs.opened); what it compiles is kept beside its weights."""
        platforms.cache_compilations(pathlib.Path(self.run) / "compilation_cache")
        return opened.load(self.run, ema=self.ema, mesh=mesh, weaker=self.weaker)


def read(run: str, changes: dict, size: str = "", ema: bool = True, weaker: str = "") -> Settings:
    """The settings of the second stage in `run`.

    Args:
      changes: {field of Sampling: value}, over the run's own sampling.
      size: see `read_size`.
      ema, weaker: see runs.opened.load.
    """
    config = record_lib.read(run)
    kinds.expect(config, "diffuse", f"--run={run}")
    sampling = Sampling(**config.sample).over(changes)
    sampling.grid(make_process(**config.process))
    return Settings(run, config, sampling, read_size(size, config), ema, weaker)


def read_size(text: str, config) -> tuple[int, int]:
    """ "64x96" -> (64, 96), "" -> the training size; both sides must suit the run's networks."""
    if not text:
        return (config.data.size,) * 2
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else sides * 2
    except ValueError as e:
        raise errors.UsageError(f"--size={text} must read HxW in pixels, e.g. 64x96.") from e
    factor, _ = kinds.of(config).divisor(config)
    if height < 1 or width < 1 or height % factor or width % factor:
        raise errors.UsageError(
            f"--size={text}: both sides must be positive multiples of {factor}."
        )
    return height, width


def read_worker(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8); "" -> what JAX says of this process, which is (0, 1) on a lone machine."""
    if not text:
        return jax.process_index(), jax.process_count()
    parsed = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parsed or int(parsed[1]) >= int(parsed[2]):
        raise errors.UsageError(f"--worker={text} must read K/N with 0 <= K < N, e.g. 0/4.")
    return int(parsed[1]), int(parsed[2])
