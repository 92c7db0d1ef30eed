"""The conclusion of a sweep in sentences: which f is best, by how much, with which confidence."""

import collections
import itertools
import math
import statistics
from typing import NamedTuple

from ldm_jax.sweeps import results

BUDGETS = {
    "flops": "training FLOPs ({amount:.3g} for each denoiser)",
    "steps": "training steps ({amount:,.0f} for each denoiser)",
    "seconds": "training time (about {amount:,.0f} s for each denoiser)",
}
SURE = ((0.99, "which is clear"), (0.9, "which is likely"), (0.0, "which settles nothing"))
OFF = 0.1  # a cell that misses its budget by more than this share is named in the conclusion


class Entry(NamedTuple):
    """One f with its best channels and bottleneck; value: the mean over its seeds."""

    f: int
    value: results.Value
    seeds: int


def entries(cells, key: str) -> list[Entry]:
    """The best variant of each f, by f."""
    best = max if results.MEASURES[key][1] else min
    variant = lambda cell: (cell["f"], cell["cell"].rpartition("_")[0])
    found = {}
    for (f, _), group in itertools.groupby(sorted(cells, key=variant), variant):
        rows = [results.final(cell) for cell in group]
        values = [results.measure(row["measures"], key, row["num"]) for row in rows]
        entry = Entry(f, mean(values), len(values))
        found[f] = best(found.get(f, entry), entry, key=lambda e: e.value.value)
    return [*found.values()]


def mean(values: list[results.Value]) -> results.Value:
    """The mean over seeds. Its error is the larger of the samples' and of the seeds' spread."""
    if len(values) == 1:
        return values[0]
    middle = statistics.fmean(v.value for v in values)
    spread = statistics.stdev(v.value for v in values) / math.sqrt(len(values))
    own = math.sqrt(sum((v.error or 0.0) ** 2 for v in values)) / len(values)
    margin = results.Z * max(spread, own)
    return results.Value(middle, middle - margin, middle + margin)


def sentences(found: list[Entry], key: str, budget: dict) -> list[str]:
    """The conclusion. found: by f, at least one."""
    label, larger = results.MEASURES[key]
    ranked = sorted(found, key=lambda e: e.value.value, reverse=larger)
    best, rest = ranked[0], ranked[1:]
    under = BUDGETS[budget["kind"]].format(**budget)
    tied = [str(e.f) for e in ranked if e.value.value == best.value.value]
    if len(tied) > 1:
        which = f"f = {', '.join(tied)} tie for the best {label}, {best.value}"
        return [f"Under equal {under}, {which}."]
    said = [f"Under equal {under}, f = {best.f} does best: {label} {best.value}."]
    if not rest:
        return [*said, "Nothing else was finished to compare it with."]
    said.append(f"The next is f = {rest[0].f} with {rest[0].value}: {_versus(best, rest[0])}.")
    for pixels in (entry for entry in rest[1:] if entry.f == 1):
        said.append(f"Pixels (f = 1) reach {pixels.value}: {_versus(best, pixels)}.")
    said.append(_shape(found, best))
    if min(e.seeds for e in found) == 1:
        said.append(
            "One seed was trained: the intervals hold the error of finitely many samples, not the "
            "spread between trainings."
        )
    return said


def off_budget(cells) -> list[str]:
    """A sentence for each cell that spent considerably less or more than its budget."""
    said = []
    for cell in cells:
        share = results.flops(cell, cell["steps"]) / cell["budget"]["amount"]
        if cell["budget"]["kind"] == "flops" and abs(share - 1) > OFF:
            said.append(
                f"{cell['cell']} spent {share:.0%} of the budget: max_steps cut it short, or its "
                "steps are so few that rounding them counts."
            )
    return said


def predictors(cells, key: str) -> dict[str, tuple[float, int]]:
    """{measure of first stages: (Spearman's rank correlation with the samples' quality, stages)}.

    The sign is such that 1 means: the better the first stage, the better the samples. A first stage
    that several seeds share counts once, with the mean of their samples' quality.
    """
    from scipy import stats

    found, (_, larger) = {}, results.MEASURES[key]
    for name, (_, up) in results.FIRST_STAGE.items():
        measures, qualities = {}, collections.defaultdict(list)
        for cell in cells:
            if name in (own := results.first_stage(cell)):
                stage = cell["first_stage"]["name"]
                measures.setdefault(stage, own[name] if up == larger else -own[name])
                qualities[stage].append(results.final(cell)["measures"][key])
        sides = [*measures.values()], [*map(statistics.fmean, qualities.values())]
        if len(measures) >= 3 and all(len(set(side)) > 1 for side in sides):
            rho = round(float(stats.spearmanr(*sides).statistic), 12)
            found[name] = (rho, len(measures))
    return found


def _shape(found, best) -> str:
    ends = found[0], found[-1]
    if len(found) < 3:
        return "Two values of f cannot tell whether the optimum lies between them."
    if best not in ends:
        gaps = "; ".join(f"against f = {end.f} {_versus(best, end)}" for end in ends)
        return f"The optimum is interior, both ends of the range do worse: {gaps}."
    side = "smallest" if best == ends[0] else "largest"
    return (
        f"The optimum is not interior: the best f is the {side} that was tried, so this sweep does "
        "not show the paper's trade-off."
    )


def _versus(best: Entry, other: Entry) -> str:
    gap = abs(best.value.value - other.value.value)
    errors = best.value.error, other.value.error
    if None in errors:
        return f"a difference of {gap:.3g}, of unknown error"
    total = math.hypot(*errors)
    chance = 0.5 * (1 + math.erf(gap / total / math.sqrt(2))) if total else 1.0
    words = next(words for least, words in SURE if chance >= least)
    return f"a difference of {gap:.3g}, {words} (probability {chance:.0%} that its sign is right)"
