"""The axes of a sweep: what varies, the values of each by label, and which combinations are cells.

A value is a dict {key: what it is set to} over a tree of two configs, `first_stage` and `ldm`. The
downsampling factor, the bottleneck and the channels of the latents are axes like others; the values
of f set both configs as a whole.
"""

import itertools
import re
from typing import Annotated, Literal, NamedTuple

from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, values
from ldm_jax.base.values import Above0, Group, Natural, Positive, Positives

STAGES = ("first_stage", "ldm")
LABEL = re.compile(r"[A-Za-z0-9.+-]+")
# Keys that the sweep sets itself, and the key of the sweep's config that says how.
OWN = {
    "ldm.seed": "seeds",
    "ldm.steps": "budget",
    "ldm.checkpoints": "points",
    "ldm.first_stage": "first_stages",
    "ldm.latents.cache": "encode",
    "first_stage.seed": "seed_first_stages",
}
NAMES = {"f": "f", "bottleneck": "bottlenecks", "channels": "channels", "seed": "seeds"}
PIXELS = "pixels"  # label of what only changes first stages, where there is none


class Budget(Group):
    kind: Literal["flops", "steps", "seconds"]
    amount: Above0
    max_steps: Positive


class Plateau(Group):
    doublings: Natural
    gain_db: Above0


class Sampling(Group):
    num: Positive
    batch_size: Positive
    steps: Positives
    curve: Positive
    flags: tuple[str, ...]


class Encode(Group):
    batch_size: Positive
    shard_size: Positive


class Sweep(Group):
    """The keys of a sweep; configs/sweeps/base.py says what they mean, and their defaults."""

    f: Positives
    bottlenecks: tuple[str, ...]
    channels: tuple[Positive, ...]
    design: Literal["grid", "star"]
    seeds: Annotated[tuple, values.Several(values.of(values.Seed), least=1)]
    seed_first_stages: bool
    data: dict
    parameters: Natural
    tolerance: Above0
    plateau: Plateau
    budget: Budget
    points: Positive
    spacing: Literal["even", "doubling"]
    sampling: Sampling
    evaluate: dict
    encode: Encode
    first_stages: dict
    ldms: dict


class Axis(NamedTuple):
    """values: {label: {key: value}}, the baseline first; none is what the recipe has."""

    name: str
    values: dict[str, dict]


def load(spec: str, overrides: dict[str, str]) -> ConfigDict:
    """The config of a sweep; `axes` among the overrides is read by `parse`, others as usual.

    The plugins of its recipes are imported.
    """
    overrides = dict(overrides)
    text = overrides.pop("axes", None)
    sweep = config_lib.load(spec, overrides, "--sweep")
    for stage in ("first_stages", "ldms"):
        for name, recipe in sweep.get(stage, {}).items():
            config_lib.import_plugins(recipe.get("plugins", ()), f"config.{stage}.{name}.plugins")
    if text is not None:
        with sweep.unlocked():
            sweep.axes = tuple(parse(text, dict(sweep.axes)).items())
    return sweep


def of(sweep: ConfigDict) -> list[Axis]:
    """All axes of a sweep's config, in the order of names. Wrong ones are a UsageError.

    config.axes holds pairs (name, values), as a ConfigDict would sort its keys. The values are
    {label: {key: value}}, or for an axis that is named by its key a tuple.
    """
    first_stages = {f: sweep.first_stages[f"f{f}"] if f > 1 else None for f in sweep.f}
    f = {str(f): {"first_stage": first_stages[f], "ldm": sweep.ldms[f"f{f}"]} for f in sweep.f}
    bottlenecks = {name: {"first_stage.model.bottleneck": name} for name in sweep.bottlenecks}
    sizes = ("z_channels", "latent_channels")
    channels = {str(c): {f"first_stage.model.{key}": c for key in sizes} for c in sweep.channels}
    axes = [Axis("bottleneck", bottlenecks), Axis("channels", channels)]
    axes += [_read(name, values) for name, values in sweep.axes]
    for one, other in itertools.combinations(axes, 2):
        if both := _overlap(one, other):
            raise errors.UsageError(
                f"config.axes: {one.name} and {other.name} both set {both}: make them one axis."
            )
    return [Axis("f", f), *axes]


def combinations(axes: list[Axis], design: str) -> list[dict[str, str]]:
    """{axis: label} of every variant: of all labels, or those that leave the baseline in one axis.

    design: grid or star.
    """
    varied = {axis.name: [*axis.values] for axis in axes if axis.values}
    if design == "grid":
        return [dict(zip(varied, labels)) for labels in itertools.product(*varied.values())]
    centre = {name: labels[0] for name, labels in varied.items()}
    return [centre, *(centre | {name: own} for name in varied for own in varied[name][1:])]


def apply(axes: list[Axis], labels: dict[str, str], data: dict) -> dict:
    """{"first_stage": config or None, "ldm": config} of a variant, both unlocked.

    data: keys of config.data that both stages take in the place of their own.
    """
    tree = dict.fromkeys(STAGES)
    for axis in axes:
        for key, value in axis.values.get(labels.get(axis.name), {}).items():
            stage, _, rest = key.partition(".")
            if not rest:
                tree[stage] = ConfigDict(value.to_dict()) if value else None
                for name, common in data.items() if value else ():
                    config_lib.assign(tree[stage], f"data.{name}", common, stage)
            elif tree[stage]:
                with errors.of("config.axes"):
                    config_lib.assign(tree[stage], rest, value, stage)
    return tree


def only_first_stage(axis: Axis) -> bool:
    """Whether an axis says nothing about pixels."""
    return all(key.startswith("first_stage.") for value in axis.values.values() for key in value)


def parse(text: str, preset: dict) -> dict:
    """The value of `config.axes` from the text of a flag.

    "latents; optimizer=muon,adamw; ldm.process.prediction=eps,v" takes the axis `latents` of the
    preset, chooses labels of another one of it, and adds an axis of a key. The first is the
    baseline.
    """
    found = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, rest = map(str.strip, part.partition("="))
        words = [word.strip() for word in re.split(r",(?![^(\[]*[)\]])", rest)] if equals else []
        if name not in preset:
            if not name.startswith(tuple(f"{stage}." for stage in STAGES)) or not all(words):
                raise errors.UsageError(
                    f"config.axes: {part!r} is neither an axis of the preset "
                    f"({', '.join(preset) or 'it has none'}) nor a key with values, such as "
                    f"ldm.process.prediction=eps,v{errors.nearest(name, preset)}"
                )
            found[name] = tuple(words)
            continue
        known = _read(name, preset[name]).values
        for word in words:
            if word not in known:
                raise errors.UsageError(
                    f"config.axes: {name} has no value {word!r}{errors.nearest(word, known)} "
                    f"(there are {', '.join(known)})."
                )
        found[name] = {word: known[word] for word in words or known}
    return found


def _read(name: str, values) -> Axis:
    """The axis of a pair in config.axes, see `of`."""
    said = f"config.axes: {name}"
    if name in NAMES:
        raise errors.UsageError(f"{said} is an axis already: set config.{NAMES[name]}.")
    if not isinstance(values, dict):
        values = {_label(value): {name: value} for value in values}
    if not values:
        raise errors.UsageError(f"{said} has no values.")
    for label, changes in values.items():
        if not LABEL.fullmatch(label):
            raise errors.UsageError(
                f"{said}: label {label!r} is part of names: use letters, digits, '.', '+' and '-'."
            )
        for key in changes:
            stage, _, rest = key.partition(".")
            if stage not in STAGES or not rest:
                hint = errors.nearest(stage, STAGES)
                raise errors.UsageError(
                    f"{said}: key {key!r} must begin with ldm. or first_stage.{hint}"
                )
            for own, by in OWN.items():
                if _within(key, own):
                    raise errors.UsageError(f"{said}: {key} is set by config.{by} of the sweep.")
    return Axis(name, values)


def _label(value) -> str:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    text = "-".join(map(str, parts)) or "none"
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-") or "none"


def _overlap(one: Axis, other: Axis) -> str:
    """A key that both axes set, or an empty string."""
    keys = [[k for changes in a.values.values() for k in changes] for a in (one, other)]
    return next((a for a, b in itertools.product(*keys) if _within(a, b) or _within(b, a)), "")


def _within(key: str, group: str) -> bool:
    return f"{key}.".startswith(f"{group}.")
