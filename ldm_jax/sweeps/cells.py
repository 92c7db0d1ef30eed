"""The cells of a sweep, the names of the runs that they share, their widths and their lengths.

A sweep's config (configs/sweeps/) holds whole configs of both stages for every f. A cell is a
combination of f, bottleneck, latent channels and seed. First stages and latent caches are named
after a digest of all that they depend on, so cells with equal ones share them.
"""

import hashlib
import itertools
import operator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, tree
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import codecs, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.stages.codec import Codec

BUDGETS = ("flops", "steps", "seconds")
MAX_WIDTH = 4096  # channels
WARMUP = 0.1  # share of the steps that a warm-up may take at most


class Cell(NamedTuple):
    """One point of the sweep.

    first_stage: config of the first stage; None for pixels (f = 1).
    ldm: config of the second stage with its final width; its steps and the path of its first stage
      are set when it is trained, see work.py.
    codec: the first stage without weights; parameters: of the denoiser with its conditioners.
    """

    f: int
    bottleneck: str
    seed: int
    first_stage: ConfigDict | None
    ldm: ConfigDict
    codec: Codec
    parameters: int

    @property
    def variant(self) -> str:
        """The name without the seed: f4_kl_c4."""
        return f"f{self.f}_{self.bottleneck}_c{self.codec.channels}"

    @property
    def name(self) -> str:
        """Unique in a sweep: f4_kl_c4_s0."""
        return f"{self.variant}_s{self.seed}"

    @property
    def first_stage_name(self) -> str:
        return f"{self.variant}-{digest(self.first_stage)}"

    @property
    def cache_name(self) -> str:
        return f"{self.variant}-{digest(self.first_stage, self.ldm.data)}"

    def run_name(self, sweep) -> str:
        length = {"budget": sweep.budget.to_dict(), "points": sweep.points}
        return f"{self.name}-{digest(self.first_stage, self.ldm, length)}"


def digest(*configs) -> str:
    """8 hex digits over configs, some of which may be None."""
    text = "\n".join("" if c is None else config_lib.to_json(c) for c in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cells(sweep: ConfigDict) -> list[Cell]:
    """All cells, ordered by f, bottleneck, channels, seed. A wrong config is a UsageError.

    The seed is that of the second stage: cells that differ in the seed alone share a first stage.
    """
    check(sweep)
    found = {}
    axes = itertools.product(sweep.f, sweep.bottlenecks, sweep.channels or (0,), sweep.seeds)
    for f, bottleneck, channels, seed in axes:
        if f == 1:  # pixel diffusion has no bottleneck and no latent channels
            bottleneck, channels = "pixels", 0
        cell = _cell(sweep, f, bottleneck, channels, seed)
        found.setdefault(cell.name, cell)
    return list(found.values())


def check(sweep: ConfigDict):
    """Raises UsageError for a wrong value of the sweep's own keys."""
    if sweep.budget.kind not in BUDGETS:
        hint = errors.nearest(sweep.budget.kind, BUDGETS)
        raise errors.UsageError(
            f"config.budget.kind={sweep.budget.kind!r}: use one of {', '.join(BUDGETS)}{hint}"
        )
    for key in ("budget.amount", "budget.max_steps", "points", "sampling.num"):
        if not (value := operator.attrgetter(key)(sweep)) > 0:
            raise errors.UsageError(f"config.{key}={value} must be above 0.")
    if sweep.sampling.curve not in sweep.sampling.steps:
        raise errors.UsageError(
            f"config.sampling.curve={sweep.sampling.curve} must be one of config.sampling.steps="
            f"{tuple(sweep.sampling.steps)}."
        )
    wanted = [("ldms", f) for f in sweep.f] + [("first_stages", f) for f in sweep.f if f > 1]
    for group, f in wanted:
        if f"f{f}" not in sweep[group]:
            known = ", ".join(sweep[group])
            raise errors.UsageError(
                f"config.f: {f} has no config in config.{group} (there are {known})."
            )


def _cell(sweep, f, bottleneck, channels, seed) -> Cell:
    first, codec = None, Codec(None)
    if f > 1:
        first = unlocked(sweep.first_stages[f"f{f}"])
        first.model.bottleneck = bottleneck
        if channels:
            first.model.update(z_channels=channels, latent_channels=channels)
        codec = kinds.of(first).codec(first)
        if codec.f != f:
            raise errors.UsageError(
                f"config.first_stages.f{f}.model.mult={tuple(first.model.mult)} has f={codec.f}."
            )
    ldm = unlocked(sweep.ldms[f"f{f}"])
    ldm.update(seed=seed, first_stage=codecs.IDENTITY)
    ldm = data_lib.resolve(ldm, data_lib.open_source(ldm.data))
    lowest = f * backbone(ldm, codec).divisor
    check_lib.divides(ldm.data.size, lowest, f"f={f} times what {ldm.model.name} divides by")
    if sweep.parameters:
        ldm = solve_width(ldm, codec, sweep.parameters, sweep.tolerance)
    return Cell(f, bottleneck, seed, first, ldm, codec, parameters(ldm, codec))


def parameters(ldm: ConfigDict, codec: Codec) -> int:
    """Scalars of the denoiser and its conditioners."""
    model = kinds.of(ldm).model(ldm, codec)
    return tree.count(jax.eval_shape(model.init, jax.random.key(0)))


def solve_width(ldm: ConfigDict, codec: Codec, target: int, tolerance: float) -> ConfigDict:
    """The config with the width whose parameters come nearest to `target`.

    Raises:
      UsageError: no width, in steps that its groups and heads allow, comes within `tolerance`.
    """
    unit = backbone(ldm, codec).width_unit
    of_width = lambda k: with_width(ldm, codec, k * unit)
    count = lambda k: parameters(of_width(k), codec)
    # All channels are multiples of the width, so the number of parameters is a quadratic function
    # of it, which three points determine.
    quadratic = np.polynomial.Polynomial.fit((1, 2, 3), [count(k) for k in (1, 2, 3)], 2)
    widths = np.arange(1, MAX_WIDTH // unit + 1)
    best = int(widths[np.argmin(np.abs(quadratic(widths) - target))])
    off = count(best) / target - 1
    if abs(off) > tolerance:
        raise errors.UsageError(
            f"config.parameters={target}: the nearest width of this {ldm.model.name} is "
            f"{best * unit}, {off:+.0%} off, in steps of {unit}: change another of its sizes, or "
            "raise config.tolerance."
        )
    return of_width(best)


def with_width(ldm: ConfigDict, codec: Codec, width: int) -> ConfigDict:
    """A copy of another width, with vectors as wide as that backbone adds them."""
    ldm = unlocked(ldm)
    ldm.model.width = width
    for conditioner in ldm.conditioners.values():
        if conditioner.get("place") == "vector":
            conditioner.width = backbone(ldm, codec).vector_width
    return ldm


def backbone(ldm: ConfigDict, codec: Codec):
    return kinds.of(ldm).model(ldm, codec).denoiser.backbone


def dated(ldm: ConfigDict, steps: int, points: int) -> ConfigDict:
    """A copy that trains about `steps` steps and keeps `points` checkpoints, evenly spaced."""
    ldm = unlocked(ldm)
    part = max(1, steps // points)
    pieces = -(-part // ldm.steps.checkpoint)
    checkpoint = max(1, round(part / pieces))
    part = checkpoint * pieces
    log = min(ldm.steps.log, part)
    ldm.steps.update(total=part * points, eval=part, checkpoint=checkpoint, log=log)
    ldm.checkpoints.keep_every = part
    for player in ldm.optim.values():
        player.warmup = min(player.warmup, int(WARMUP * ldm.steps.total))
    return ldm


def steps(budget, flops_per_step: float, seconds_per_step: float | None = None) -> int:
    """Steps that a budget {"kind", "amount", "max_steps"} pays for, at least one.

    seconds_per_step: as measured, for budgets of seconds.
    """
    cost = {"flops": flops_per_step, "steps": 1, "seconds": seconds_per_step}[budget["kind"]]
    return int(min(budget["max_steps"], max(1, budget["amount"] / cost)))


def unlocked(config: ConfigDict) -> ConfigDict:
    """A copy that is not locked."""
    return ConfigDict(config.to_dict())
