"""How a measure of samples falls with the FLOPs that the denoiser trains: a law, and forecasts.

    loss(C) = floor + scale * (C / unit) ** -exponent,    floor, scale >= 0

Floor and scale are a variant's own, the exponent is that of the whole sweep: each variant alone has
too few points to tell a small floor from a small exponent. The loss is a distance as it is, and one
minus a share. Power laws with a floor are how losses of neural networks fall with compute (Henighan
et al. 2020, arXiv 2010.14701, Eq. 1.1).
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.base import errors
from ldm_jax.reports import intervals
from ldm_jax.sweeps import results

LAWFUL = [key for key, (_, larger) in results.MEASURES.items() if not larger]
LAWFUL += ["class_accuracy", "precision", "recall"]  # shares
EXPONENTS = np.geomspace(0.05, 1.5, 40)
LEAST = 3  # budgets that a law is fitted to
HELD_OUT = 4  # the largest budget is predicted from those that are at least so many times smaller
DRAWS = 200  # of the bootstrap
FAR = 16  # a forecast further beyond the largest budget is called uncertain


FORMULA = (
    "Fitted to all points: loss = floor + scale * (FLOPs / {unit:.3g}) ^ -{exponent:.2g}, where "
    "the loss is a distance as it is, or one minus a share. Chances are of a bootstrap over seeds "
    "and the errors of samples."
)
CHECKED = ("measured", "predicted", "predicted at least", "predicted at most", "last point before")


class Point(NamedTuple):
    """A measured loss. error: its standard error as far as the samples make it, or None."""

    variant: str
    seed: int
    flops: float
    loss: float
    error: float | None


class Law(NamedTuple):
    """terms: {variant: (floor, scale)}; unit: the FLOPs at which floor + scale is reached."""

    exponent: float
    terms: dict[str, tuple[float, float]]
    unit: float

    def at(self, variant: str, flops: float) -> float:
        floor, scale = self.terms[variant]
        return floor + scale * (flops / self.unit) ** -self.exponent


class Check(NamedTuple):
    """Losses at the largest budget: measured, predicted from cheaper points, and the last of them.

    The last one is the simple rival of a prediction: that nothing more is won.
    """

    measured: float
    predicted: intervals.Value
    latest: float


class Forecast(NamedTuple):
    """loss: predicted, with an interval of 95 %. probability: that no other variant does better."""

    loss: intervals.Value
    probability: float


def points(cells, key: str) -> list[Point]:
    """The losses of all cells at all points of their training; none of what follows no such law.

    Seeds of a variant have the FLOPs of the first of them: versions of JAX count a little more or
    less, and their points are the same.
    """
    found, costs = [], {}
    for cell in cells if key in LAWFUL else ():
        own = costs.setdefault(results.variant(cell), cell)
        for row in cell["rows"]:
            if row["sampling_steps"] == cell["curve"]:
                value = intervals.measure(row["measures"], key, row["num"])
                loss = 1 - value.value if results.MEASURES[key][1] else value.value
                flops = results.flops(own, row["step"])
                name = results.variant(cell)
                found.append(Point(name, cell["seed"], flops, loss, value.error))
    return found


def fit(measured: list[Point]) -> Law:
    """The law with the smallest relative errors, in the sense of least squares."""
    unit = max(p.flops for p in measured)
    each = _by_variant(measured)
    solved = [{name: _terms(own, unit, e) for name, own in each.items()} for e in EXPONENTS]
    best = min(range(len(solved)), key=lambda i: sum(miss for *_, miss in solved[i].values()))
    terms = {name: (floor, scale) for name, (floor, scale, _) in solved[best].items()}
    return Law(float(EXPONENTS[best]), terms, unit)


def draws(measured: list[Point], rounds: int = DRAWS) -> list[Law]:
    """Laws of resampled measurements: seeds with replacement, losses within their own error.

    Few seeds drawn anew differ less than other seeds would. What they differ by is stretched, so
    that the mean over seeds has Student's interval, as everywhere else in the report.
    """
    random, laws = np.random.default_rng(0), []
    each = [_stretched(own) for own in _by_variant(measured).values()]
    for _ in range(rounds):
        drawn = []
        for own in each:
            seeds = sorted({p.seed for p in own})
            for seed in random.choice(seeds, len(seeds)):
                drawn += [p for p in own if p.seed == seed]
        noise = random.normal(size=len(drawn))
        drawn = [p._replace(loss=p.loss + n * (p.error or 0)) for p, n in zip(drawn, noise)]
        laws.append(fit(drawn))
    return laws


def forecast(law: Law, drawn: list[Law], flops: dict[str, float]) -> dict[str, Forecast]:
    """The loss of each variant whose denoiser trains for `flops`, and the chance that it is best.

    drawn: laws of the bootstrap.
    """
    table = np.array([[one.at(name, c) for name, c in flops.items()] for one in drawn])
    wins = np.bincount(table.argmin(1), minlength=len(flops)) / len(drawn)
    low, high = np.quantile(table, (0.025, 0.975), axis=0)
    rows = zip(flops.items(), low, high, wins)
    value = lambda name, c, low, high: intervals.Value(law.at(name, c), float(low), float(high))
    return {n: Forecast(value(n, c, low, high), float(p)) for (n, c), low, high, p in rows}


def enough(measured: list[Point]) -> bool:
    """Whether every variant has as many budgets as a law needs."""
    each = _by_variant(measured).values()
    return bool(each) and all(len({p.flops for p in own}) >= LEAST for own in each)


def check(measured: list[Point]) -> dict[str, Check]:
    """The law of the cheaper points against what was measured at the largest budget.

    {} where a variant has fewer than two budgets that are cheap enough.
    """
    most = max(p.flops for p in measured)
    cheap, each = [p for p in measured if p.flops * HELD_OUT < 1.1 * most], _by_variant(measured)
    if any(len({p.flops for p in cheap if p.variant == name}) < 2 for name in each):
        return {}
    last = {name: max(p.flops for p in own) for name, own in each.items()}
    found = forecast(fit(cheap), draws(cheap), last)
    at = lambda points, flops: float(np.mean([p.loss for p in points if p.flops == flops]))
    checked = {}
    for name, own in each.items():
        before = [p for p in cheap if p.variant == name]
        latest = at(before, max(p.flops for p in before))
        checked[name] = Check(at(own, last[name]), found[name].loss, latest)
    return checked


def winners(measured: list[Point]) -> list[tuple[float, dict[str, Forecast]]]:
    """(a budget of the denoiser, each variant there by the law of all points), growing budgets.

    The largest budget that every variant has, and all that are a whole power of two smaller within
    the range that every variant has.
    """
    each = _by_variant(measured).values()
    least = max(min(p.flops for p in own) for own in each)
    most = min(max(p.flops for p in own) for own in each)
    law, drawn = fit(measured), draws(measured)
    halvings = int(np.log2(most / least) + 1e-6)
    names = _by_variant(measured)
    found = [most / 2**k for k in range(halvings, -1, -1)]
    return [(flops, forecast(law, drawn, dict.fromkeys(names, flops))) for flops in found]


def summary(cells, key: str) -> dict | None:
    """The law of a sweep's cells, its check and its winners, for JSON; None without a law."""
    measured = points(cells, key)
    if not enough(measured):
        return None
    law = fit(measured)
    checked = {}
    for name, own in check(measured).items():
        loss = lambda value: quality(intervals.Value(value), key).value
        predicted = quality(own.predicted, key)
        numbers = loss(own.measured), *predicted, loss(own.latest)
        checked[name] = dict(zip(CHECKED, numbers))
    return {
        "exponent": law.exponent,
        "unit": law.unit,
        "terms": {name: {"floor": a, "scale": b} for name, (a, b) in law.terms.items()},
        "held_out": checked,
        "winners": [
            {
                "flops": flops,
                "predicted": {n: quality(one.loss, key)._asdict() for n, one in each.items()},
                "best_with": {name: one.probability for name, one in each.items()},
            }
            for flops, each in winners(measured)
        ],
    }


def lines(cells, key: str, total: float) -> list[str]:
    """What each variant is expected to reach for `total` training FLOPs of both its stages.

    Raises:
      UsageError: the cells have too few points, or a measure that follows no such law.
    """
    said, label = f"--forecast={total:g}", results.MEASURES[key][0]
    measured = points(cells, key)
    if not enough(measured):
        raise errors.UsageError(
            f"{said}: a law wants one of {', '.join(LAWFUL)} at {LEAST} points of training or "
            f"more, and these cells have {label} at {len(cells[0]['rows'])}: raise config.points."
        )
    first = {results.variant(c): (c["first_stage"] or {}).get("flops", 0.0) for c in cells}
    flops = {name: total - own for name, own in first.items() if total > own}
    if not flops:
        least = min(first, key=first.get)
        raise errors.UsageError(
            f"{said} does not pay for the first stage of {least}, the cheapest, which takes "
            f"{first[least]:.3g}."
        )
    most, wide = max(p.flops for p in measured), max([7, *map(len, first)])
    found = forecast(fit(measured), draws(measured), flops)
    rows = sorted(found.items(), key=lambda pair: pair[1].loss.value)
    reach = f"The largest budget of a denoiser that was measured is {most:.3g} FLOPs."
    if total > FAR * most:
        reach += f" {total:.3g} is {total / most:.0f} times as much, so this is little but a guess."
    if checked := check(measured):
        off = lambda field: np.mean(
            [abs(field(one) / one.measured - 1) for one in checked.values()]
        )
        reach += (
            f" Checked there: predicted from a {HELD_OUT}th of it, the losses were "
            f"{off(lambda one: one.predicted.value):.1%} off on average, and "
            f"{off(lambda one: one.latest):.1%} by taking those of that {HELD_OUT}th. The "
            "intervals above do not hold this error, which is the law's own."
        )
    return [
        f"{'variant':{wide}} {'first stage':>11} {'denoiser':>9} {'best with':>9}  {label}",
        *(
            f"{name:{wide}} {first[name]:11.3g} {flops[name]:9.3g} {one.probability:9.0%}  "
            f"{quality(one.loss, key)}"
            for name, one in rows
        ),
        *(f"{name:{wide}} {first[name]:11.3g} takes more" for name in first if name not in flops),
        reach,
    ]


def quality(loss: intervals.Value, key: str) -> intervals.Value:
    """The measure whose loss is given."""
    if not results.MEASURES[key][1]:
        return loss
    value, low, high = loss
    return intervals.Value(1 - value, *((None, None) if low is None else (1 - high, 1 - low)))


def _by_variant(measured) -> dict[str, list[Point]]:
    found = {}
    for point in measured:
        found.setdefault(point.variant, []).append(point)
    return found


def _stretched(own: list[Point]) -> list[Point]:
    from scipy import stats

    n = len({p.seed for p in own})
    if n == 1:
        return own
    by = stats.t.ppf(0.975, n - 1) / intervals.Z * (n / (n - 1)) ** 0.5
    same = {p.flops: [q.loss for q in own if q.flops == p.flops] for p in own}
    middle = {flops: float(np.mean(losses)) for flops, losses in same.items()}
    return [p._replace(loss=middle[p.flops] + by * (p.loss - middle[p.flops])) for p in own]


def _terms(own: list[Point], unit: float, exponent: float) -> tuple[float, float, float]:
    """(floor, scale, sum of squared relative errors) of one variant."""
    from scipy import optimize

    losses = np.maximum([p.loss for p in own], 1e-6)
    powers = (np.array([p.flops for p in own]) / unit) ** -exponent
    sides = np.stack([np.ones_like(powers), powers], 1) / losses[:, None]
    (floor, scale), miss = optimize.nnls(sides, np.ones_like(losses))
    return float(floor), float(scale), float(miss**2)
