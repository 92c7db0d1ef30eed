"""The cells of a sweep, the names of the runs that they share, and their lengths.

A sweep's config (configs/sweeps/) holds whole configs of both stages for every f, and the axes that
change them (axes.py). A variant is a label of each axis; a cell is a variant and a seed. First
stages and latent caches are named after a digest of all that they depend on, so cells with equal
ones share them.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.data import images
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import codecs, conditions, keys, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.stages.codec import Codec
from ldm_jax.sweeps import axes as axes_lib
from ldm_jax.sweeps import widths

WARMUP = 0.1  # share of the steps that a warm-up may take at most
PREFIXES = {"f": "f", "channels": "c"}  # of labels that are numbers
UNTRAINED = "first_stage"  # stands in a denoiser's config for the run that is still to be trained


class Cell(NamedTuple):
    """One point of the sweep.

    labels: {axis: label}, with the bottleneck and the channels that the first stage really has.
    first_stage: config of the first stage; None for pixels (f = 1).
    ldm: config of the second stage with its final width; its steps and the path of its first stage
      are set when it is trained, see work.py.
    codec: the first stage without weights; parameters: of the denoiser with its conditioners.
    """

    labels: dict[str, str]
    seed: int
    first_stage: ConfigDict | None
    ldm: ConfigDict
    codec: Codec
    parameters: int

    @property
    def variant(self) -> str:
        """The name without the seed: f4_kl_c4, or f4_kl_c4_v_muon with further axes."""
        return variant_name(self.labels)

    @property
    def name(self) -> str:
        """Unique in a sweep: f4_kl_c4_s0."""
        return f"{self.variant}_s{self.seed}"

    @property
    def first_stage_name(self) -> str:
        return f"{self._codec_name}-{digest(self.first_stage)}"

    @property
    def cache_name(self) -> str:
        return f"{self._codec_name}-{digest(self.first_stage, self.ldm.data)}"

    def run_name(self, sweep) -> str:
        length = {"budget": sweep.budget.to_dict(), "points": sweep.points}
        if sweep.spacing != "even" or sweep.plateau.doublings:  # else as in earlier sweeps
            length |= {"spacing": sweep.spacing, "plateau": sweep.plateau.to_dict()}
        return f"{self.name}-{digest(self.first_stage, self.ldm, length)}"

    @property
    def _codec_name(self) -> str:
        return variant_name({axis: self.labels[axis] for axis in ("f", "bottleneck", "channels")})


def variant_name(labels: dict[str, str]) -> str:
    return "_".join(f"{PREFIXES.get(axis, '')}{label}" for axis, label in labels.items())


def digest(*configs) -> str:
    """8 hex digits over configs, some of which may be None."""
    text = "\n".join("" if c is None else config_lib.to_json(c) for c in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cells(sweep: ConfigDict) -> list[Cell]:
    """All cells, ordered by f, bottleneck, channels, further axes, seed.

    The seed is that of the second stage, and with `seed_first_stages` of the first one too.

    Raises:
      UsageError: for a wrong config, and for what training would refuse in any cell.
    """
    check(sweep)
    axes, found, seen = axes_lib.of(sweep), {}, []
    for labels in axes_lib.combinations(axes, sweep.design):
        variant = _variant(sweep, axes, labels)
        if variant.variant in found:  # what changes first stages alone says nothing about pixels
            continue
        configs = variant.first_stage, variant.ldm  # 1 and 1.0 are equal in them, not in a digest
        if twin := next((name for other, name in seen if other == configs), ""):
            raise errors.UsageError(
                f"config.axes: {twin} and {variant.variant} are the same, key by key: give "
                "labels that differ."
            )
        seen.append((configs, variant.variant))
        found[variant.variant] = [_seeded(variant, seed, sweep) for seed in sweep.seeds]
    return [cell for group in found.values() for cell in group]


def check(sweep: ConfigDict):
    """Raises UsageError for a wrong value of the sweep's own keys."""
    keys.check_group("config", sweep, axes_lib.Sweep)
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


def _variant(sweep, axes, labels) -> Cell:
    """The cell of a variant before it has its seed, with all that training would refuse refused."""
    first, ldm = axes_lib.apply(axes, labels, sweep.data).values()
    codec = kinds.of(first).codec(first) if first else Codec(None)
    if (f := int(labels["f"])) != codec.f:
        raise errors.UsageError(
            f"config.first_stages.f{f}.model.mult={tuple(first.model.mult)} has f={codec.f}."
        )
    labels = _final(labels, axes, codec)
    if first:
        with errors.of(f"{variant_name(labels)}: first_stage"):
            source = data_lib.open_source(first.data)
            check_lib.check(data_lib.resolve(first, source), source)
    with errors.of(f"{variant_name(labels)}: ldm"):
        ldm.first_stage = UNTRAINED if first else codecs.IDENTITY
        source = data_lib.open_source(ldm.data)
        ldm = data_lib.resolve(ldm, source)
        widths.fit_vectors(ldm, codec)
        if sweep.parameters:
            ldm = widths.solve(ldm, codec, sweep.parameters, sweep.tolerance)
        check_lib.check(ldm, source, codec)
        if first:
            _check_cached(ldm, source, codec)
    return Cell(labels, 0, first, ldm, codec, widths.parameters(ldm, codec))


def _check_cached(ldm, source, codec):
    """Raises UsageError for a condition made of pixels, which a latent cache does not keep."""
    try:
        record = {key: value for key, value in source[0].items() if key != "image"}
    except images.BadRecord:
        return  # training would take another; the first batch will tell
    for maker in conditions.make(ldm, source, codec=codec).makers:
        try:
            record = maker(record, np.random.default_rng(0))
        except KeyError as e:
            raise errors.UsageError(
                f"a condition is made of data field {e}, which the latent caches of a sweep do not "
                f"hold (they have {', '.join(record)}): take it out."
            ) from e


def _final(labels, axes, codec) -> dict[str, str]:
    """Labels that are true of this first stage, in the order of names."""
    said = {axis.name: labels.get(axis.name, "") for axis in axes}
    if codec.model is None:
        stages = (axis.name for axis in axes if axis.values and axes_lib.only_first_stage(axis))
        said |= dict.fromkeys(stages, axes_lib.PIXELS)
    said["bottleneck"] = codec.model.bottleneck if codec.model else axes_lib.PIXELS
    return said | {"channels": str(codec.channels)}


def _seeded(variant: Cell, seed: int, sweep) -> Cell:
    first, ldm = variant.first_stage, unlocked(variant.ldm)
    ldm.seed = seed
    if first and sweep.seed_first_stages:
        first = unlocked(first)
        first.seed = seed
    return variant._replace(seed=seed, first_stage=first, ldm=ldm)


def dated(ldm: ConfigDict, steps: int, points: int, spacing: str = "even") -> ConfigDict:
    """A copy that trains about `steps` steps and keeps the checkpoints that `judged` names."""
    ldm = unlocked(ldm)
    parts = points if spacing == "even" else 2 ** (points - 1)
    part = max(1, steps // parts)
    pieces = -(-part // ldm.steps.checkpoint)
    checkpoint = max(1, round(part / pieces))
    part = checkpoint * pieces
    log = min(ldm.steps.log, part)
    ldm.steps.update(total=part * parts, eval=part, checkpoint=checkpoint, log=log)
    ldm.checkpoints.keep_every = part
    for player in ldm.optim.values():
        player.warmup = min(player.warmup, int(WARMUP * ldm.steps.total))
    return ldm


def judged(ldm: ConfigDict, points: int, spacing: str) -> list[int]:
    """The steps of a `dated` config at which its samples are judged, the last one included.

    spacing: even, or doubling, where every point has had twice the steps of the one before.
    """
    part = ldm.checkpoints.keep_every
    return [part * (k + 1 if spacing == "even" else 2**k) for k in range(points)]


def steps(budget, flops_per_step: float, seconds_per_step: float | None = None) -> int:
    """Steps that a budget {"kind", "amount", "max_steps"} pays for, at least one.

    seconds_per_step: as measured, for budgets of seconds.
    """
    cost = {"flops": flops_per_step, "steps": 1, "seconds": seconds_per_step}[budget["kind"]]
    return int(min(budget["max_steps"], max(1, budget["amount"] / cost)))


def unlocked(config: ConfigDict) -> ConfigDict:
    """A copy that is not locked."""
    return ConfigDict(config.to_dict())
