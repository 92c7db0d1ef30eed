"""How a job draws: what its flags say, over what the run itself says, checked before it starts."""

import dataclasses
import re
from typing import Any

import jax

from ldm_jax.base import errors, owner, platforms, terminal, values
from ldm_jax.base import record as record_lib
from ldm_jax.diffusion.process import make_process
from ldm_jax.engine import hosts
from ldm_jax.runs import adapters, conditions, keys, kinds, opened
from ldm_jax.stages.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What every job wants that draws by a second stage.

    The fields are flags of its command, which say what each means; sampling: those of
    stages.sampling.Sampling that were given.
    """

    run: str
    out: str
    num: int
    batch_size: int
    sampling: dict
    size: str = ""
    labels: str = ""
    seed: int = 0
    ema: bool | float = True
    weaker: str = ""
    decoder: str = ""
    adapters: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a job wants, the config of its second stage, and how that draws; see `read`."""

    wanted: Wanted
    config: Any
    sampling: Sampling
    size: tuple[int, int]

    def open(self, mesh=None):
        """The run (runs.opened); what it compiles is kept beside its weights."""
        wanted = self.wanted
        platforms.cache_compilations(record_lib.Record(wanted.run).compiled)
        others = {name: getattr(wanted, name) for name in ("weaker", "decoder", "adapters")}
        return opened.load(wanted.run, ema=wanted.ema, mesh=mesh, **others)


def read(wanted: Wanted, **changes) -> Settings:
    """The settings of a job; the run's own sampling gives way to the job's, that to `changes`."""
    config = keys.read(wanted.run)
    kinds.expect(config, "diffuse", f"--run={wanted.run}")
    if wanted.weaker:
        kinds.expect(keys.read(wanted.weaker), "diffuse", f"--weaker={wanted.weaker}")
    sampling = Sampling(**config.sample).over(wanted.sampling | changes)
    conditions.check_guidance(config, sampling.guidance, wanted.weaker)
    _check_guided(config, wanted, sampling.guidance)
    conditions.check_scale(config, sampling.conditioning_scale)
    sampling.grid(make_process(**config.process))
    adapters.check_drawn(wanted.run, config, wanted.ema, wanted.weaker, wanted.adapters)
    trained_here = bool(record_lib.Record(wanted.run).data)
    if trained_here and not wanted.weaker and (line := untrained_null(config, sampling.guidance)):
        terminal.warn(line)
    size = read_size(wanted.size, config)
    sampling.tiling(kinds.of(config).model(config), *size)  # refuses before any device is touched
    return Settings(wanted, config, sampling, size)


def _check_guided(config, wanted: Wanted, guidance: float):
    """Raises UsageError for flags of guidance where there is nothing to lead away from, or to."""
    if wanted.weaker and guidance == 1.0:
        raise errors.UsageError(
            f"--weaker={wanted.weaker} does nothing with guidance 1: give --guidance=SCALE."
        )
    alone = not config.conditioners and not wanted.weaker
    if alone and wanted.sampling.get("guidance", 1.0) != 1.0:
        raise errors.UsageError(
            f"--guidance={guidance:g}: this run has no condition to lead to: leave it out, or give "
            "--weaker=RUN to lead away from."
        )


def hint(model, size: tuple[int, int]) -> tuple | None:
    """The shape [h, w, c] of what a model's control follows; None without a control."""
    if conditions.HINT not in model.fields:
        return None
    return jax.eval_shape(lambda: model.example(1, *size))[conditions.HINT].shape[1:]


def untrained_null(config, guidance: float) -> str:
    """A warning where guidance leads away from a null condition that training never showed."""
    if guidance == 1.0 or conditions.told(config) or conditions.shows_null(config):
        return ""
    if not config.conditioners:
        return ""
    return (
        f"warning: guidance={guidance} leads away from the null condition, which this run never "
        "saw (config.loss.cond_dropout=0): draw with guidance 1, or away from a weaker run."
    )


def read_size(text: str, config) -> tuple[int, int]:
    """ "64x96" -> (64, 96), "" -> the training size; both sides must suit the run's networks."""
    if not text:
        return (config.data.size,) * 2
    try:
        sides = [values.whole(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else sides * 2
    except ValueError as e:
        raise errors.UsageError(f"--size={text} must read HxW in pixels, e.g. 64x96.") from e
    factor, _ = kinds.of(config).divisor(config)
    most = values.of(values.Side).most
    if not all(0 < side <= most and side % factor == 0 for side in (height, width)):
        raise errors.UsageError(
            f"--size={text}: both sides must be positive multiples of {factor}, at most {most}."
        )
    return height, width


def owned(out, worker: tuple[int, int]):
    """Holds the folder of a job for one of its workers; see base/owner.py."""
    return owner.of("--out", out, "{}/{}".format(*worker) if worker[1] > 1 else "")


def read_worker(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8); "" -> this process of a distributed program, (0, 1) of a lone one."""
    if not text:
        return hosts.index(), hosts.count()
    parsed = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if not parsed or int(parsed[1]) >= int(parsed[2]):
        raise errors.UsageError(f"--worker={text} must read K/N with 0 <= K < N, e.g. 0/4.")
    return int(parsed[1]), int(parsed[2])
