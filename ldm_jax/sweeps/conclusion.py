"""The conclusion of a sweep in sentences: what is better, by how much, whether that is shown."""

import collections
import math
import statistics

from ldm_jax.reports import intervals
from ldm_jax.sweeps import results
from ldm_jax.sweeps import variants as variants_lib
from ldm_jax.sweeps.variants import Effect, Variant

BUDGETS = {
    "flops": "training FLOPs ({amount:.3g} for each denoiser)",
    "steps": "training steps ({amount:,.0f} for each denoiser)",
    "seconds": "training time (about {amount:,.0f} s for each denoiser)",
}
OFF = 0.1  # a cell that misses its budget by more than this share is named in the conclusion


def sentences(cells, key: str, axes: dict) -> list[str]:
    """The conclusion. cells: at least one; axes: {axis: labels}, the baseline first."""
    found, budget = variants_lib.of(cells, key), cells[0]["budget"]
    under = f"Under equal {BUDGETS[budget['kind']].format(**budget)}"
    if len(found) == 1:
        reached = f"{results.MEASURES[key][0]} {found[0].mean}"
        said = [f"{under}, {found[0].name} reaches {reached}."]
        said.append("Nothing else was finished to compare it with.")
        return said + _seeds(cells, found)
    said = _of_f(found, key, under) if len({v.f for v in found}) > 1 else []
    if effects := variants_lib.effects(found, axes, key):
        said += _of_axes(found, effects, key, axes, under)
    return said + _seeds(cells, found)


def off_budget(cells) -> list[str]:
    """Sentences about the cells that spent considerably less or more than their budget."""
    spent = collections.defaultdict(list)
    for cell in cells:
        share = results.flops(cell, cell["steps"]) / cell["budget"]["amount"]
        if cell["budget"]["kind"] == "flops" and abs(share - 1) > OFF:
            spent[f"{share:.0%}"].append(cell["cell"])
    return [
        f"{', '.join(names)} spent {share} of the budget: max_steps cut it short, or its steps are "
        "so few that rounding them counts."
        for share, names in spent.items()
    ]


def predictors(cells, key: str) -> dict[str, tuple[float, int]]:
    """{measure of first stages: (Spearman's rank correlation with the samples' quality, stages)}.

    The sign is such that 1 means: the better the first stage, the better the samples. A first stage
    that several cells share counts once, with the mean of their samples' quality.
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


def probability(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _of_f(found: list[Variant], key: str, under: str) -> list[str]:
    """Which f is best, each by its best variant; ends of the range, pixels."""
    label, larger = results.MEASURES[key]
    ranked = sorted(found, key=lambda v: v.mean.value, reverse=larger)
    each = {}
    for variant in ranked:
        each.setdefault(variant.f, variant)
    best, *rest = each.values()
    tied = [str(v.f) for v in each.values() if v.mean.value == best.mean.value]
    if len(tied) > 1:
        return [f"{under}, f = {', '.join(tied)} tie for the best {label}, {best.mean}."]
    choices = math.comb(len(found), 2)
    versus = lambda other: _versus(best, other, choices)
    said = [f"{under}, f = {best.f} does best: {label} {best.mean}."]
    said.append(f"The next is f = {rest[0].f} with {rest[0].mean}: {versus(rest[0])[1]}.")
    for pixels in (v for v in rest[1:] if v.f == 1):
        said.append(f"Pixels (f = 1) reach {pixels.mean}: {versus(pixels)[1]}.")
    said.append(_shape([*each.values()], best, versus))
    if choices > 1:
        said.append(
            f"The best was picked afterwards: these p are corrected for the {choices} pairs of "
            "variants that could have been compared (Bonferroni)."
        )
    if len(found) > len(each):
        names = ", ".join(v.name for v in sorted(each.values(), key=lambda v: v.f))
        said.append(f"Each f is judged by the best of its variants: {names}.")
    return said


def _shape(each: list[Variant], best: Variant, versus) -> str:
    ends = [pick(each, key=lambda v: v.f) for pick in (min, max)]
    if len(each) < 3:
        return "Two values of f cannot tell whether the optimum lies between them."
    if best in ends:
        side = "smallest" if best == ends[0] else "largest"
        return (
            f"The optimum is not interior: the best f is the {side} that was tried, so this sweep "
            "does not show the paper's trade-off."
        )
    compared = [versus(end) for end in ends]
    gaps = "; ".join(f"against f = {end.f} {words}" for end, (_, words) in zip(ends, compared))
    if all(shown for shown, _ in compared):
        return f"The optimum is interior, both ends of the range do worse: {gaps}."
    return f"The best f is interior, but that both ends of the range do worse is not shown: {gaps}."


def _versus(best: Variant, other: Variant, choices: int) -> tuple[bool, str]:
    """(whether the difference is shown, the words for it). choices: comparisons to correct for."""
    found = variants_lib.compare(best, other)
    if found is None:
        return False, "they have no seed in common"
    gap = found.value._replace(value=abs(found.value.value))
    if found.p is None:
        return False, f"a difference of {gap.value:.3g}, of unknown error"
    if found.value.value < 0:
        gap = intervals.Value(gap.value, -found.value.high, -found.value.low)
    p = min(1.0, choices * found.p)
    shown = p < variants_lib.SURE
    return shown, f"a difference of {gap}, {'shown' if shown else 'not shown'} ({probability(p)})"


def _of_axes(found, effects: list[Effect], key: str, axes: dict, under: str) -> list[str]:
    """Every value of every axis against the baseline."""
    label, larger = results.MEASURES[key]
    said, star = [], variants_lib.is_star(found, axes)
    if star and (middle := variants_lib.centre(found, axes)):
        said.append(f"{under}, the baseline {middle.name} reaches {label} {middle.mean}.")
    elif not star:
        best = (max if larger else min)(found, key=lambda v: v.mean.value)
        said.append(
            f"{under}, the best of the {len(found)} variants is {best.name} with {label} "
            f"{best.mean}; it was picked afterwards, so other seeds should do a little worse."
        )
        said.append("Below, every value of an axis is averaged over the other axes.")
    said += map(_effect, effects)
    count = len(effects)
    counted = f", and p is corrected for {count} comparisons (Holm)" if count > 1 else ""
    said.append(
        f"Each comparison is made seed by seed; its interval is of 95 %{counted}. That no "
        "difference is shown does not mean that there is none: the interval says how large it can "
        "be."
    )
    return said


def _effect(effect: Effect) -> str:
    gap, axis = effect.difference.value, f"{effect.axis} = {effect.label}"
    if effect.p is None:
        return f"{axis} differs from {effect.baseline} by {gap.value:+.3g}, of unknown error."
    numbers = f"{gap.value:+.3g} [{gap.low:+.3g}, {gap.high:+.3g}] ({probability(effect.p)})"
    if effect.verdict == "none":
        return f"{axis}: no difference from {effect.baseline} is shown, {numbers}."
    return f"{axis} is {effect.verdict} than {effect.baseline}, by {numbers}."


def _seeds(cells, found: list[Variant]) -> list[str]:
    """What the intervals do not hold."""
    once = [v.name for v in found if len(v.values) == 1]
    if once:
        of = "" if len(once) == len(found) else f" of {', '.join(once)}"
        return [
            f"One seed{of} was trained: the intervals hold the error of finitely many samples, not "
            "the spread between trainings."
        ]
    stages = collections.defaultdict(set)
    for cell in cells:
        if cell["first_stage"]:
            stages[results.variant(cell)].add(cell["first_stage"]["name"])
    if any(len(names) == 1 for names in stages.values()):
        return [
            "All seeds of a variant share a first stage: the intervals do not hold the spread "
            "between first stages."
        ]
    return []
