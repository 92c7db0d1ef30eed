"""The variants of a sweep with their measured values, and what each value of an axis is worth."""

from typing import NamedTuple

from ldm_jax.reports import intervals
from ldm_jax.sweeps import inference, results

SURE = 0.05  # corrected p below which a difference counts as shown


class Variant(NamedTuple):
    """A label of each axis.

    values: of one measure at the end of training, {seed: Value}. share: whether that lies between 0
    and 1.
    """

    labels: dict[str, str]
    name: str
    values: dict[int, intervals.Value]
    share: bool = False

    @property
    def mean(self) -> intervals.Value:
        found = inference.mean([*self.values.values()])
        if not self.share or found.low is None:
            return found
        return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))

    @property
    def f(self) -> int:
        return int(self.labels["f"])


class Effect(NamedTuple):
    """One value of an axis against the axis' baseline, all other axes being equal.

    p: corrected for the number of effects. verdict: better, worse, or none where no difference is
    shown.
    """

    axis: str
    label: str
    baseline: str
    difference: inference.Difference
    p: float | None
    verdict: str


def of(cells, key: str) -> list[Variant]:
    """The variants of finished cells, in the order in which they come. key: of the measure."""
    found, share = {}, key in intervals.SHARES
    for cell in cells:
        row = results.final(cell)
        name = results.variant(cell)
        variant = found.setdefault(name, Variant(cell["labels"], name, {}, share))
        variant.values[cell["seed"]] = intervals.measure(row["measures"], key, row["num"])
    return [*found.values()]


def varied(axes: dict) -> list[str]:
    """The axes that have more than one value. axes: {axis: labels}, the baseline first."""
    return [axis for axis, labels in axes.items() if len(labels) > 1]


def compare(one: Variant, other: Variant) -> inference.Difference | None:
    """The difference of `one` from `other` at the seeds that both have; None if there is none."""
    common = one.values.keys() & other.values.keys()
    pairs = {seed: [(one.values[seed], other.values[seed])] for seed in sorted(common)}
    return inference.difference(pairs) if pairs else None


def effects(found: list[Variant], axes: dict, key: str) -> list[Effect]:
    """Every value of every axis but f against its baseline, averaged over the other axes.

    A pair of variants counts that differ in this axis alone. axes: {axis: labels}.
    """
    by_labels, larger = {_key(v.labels): v for v in found}, results.MEASURES[key][1]
    measured = []
    for axis in varied(axes):
        baseline, *others = axes[axis]
        for label in others if axis != "f" else ():
            pairs = {}
            for variant in (v for v in found if v.labels[axis] == label):
                partner = by_labels.get(_key(variant.labels | {axis: baseline}))
                for seed in variant.values.keys() & partner.values.keys() if partner else ():
                    own = variant.values[seed], partner.values[seed]
                    pairs.setdefault(seed, []).append(own)
            if pairs:
                measured.append((axis, label, baseline, inference.difference(pairs)))
    ps = inference.holm([difference.p for *_, difference in measured])
    return [Effect(*one, p, _verdict(one[-1], p, larger)) for one, p in zip(measured, ps)]


def centre(found: list[Variant], axes: dict) -> Variant | None:
    """The variant that has the baseline of every axis, if it is finished."""
    return next((v for v in found if _baseline(axes).items() <= v.labels.items()), None)


def is_star(found: list[Variant], axes: dict) -> bool:
    """Whether no variant leaves the baseline in more than one axis."""
    middle = _baseline(axes).items()
    return all(sum(v.labels[axis] != label for axis, label in middle) <= 1 for v in found)


def _baseline(axes: dict) -> dict[str, str]:
    return {axis: axes[axis][0] for axis in varied(axes)}


def _key(labels: dict):
    return tuple(sorted(labels.items()))


def _verdict(difference, p, larger: bool) -> str:
    if p is None or p >= SURE:
        return "none"
    return "better" if (difference.value.value > 0) == larger else "worse"
