"""What seeds say: means and differences with their intervals, and p-values of several comparisons.

Seeds are few, so intervals are Student's t. Where seeds happen to agree better than samples of this
number can, the error of the samples counts instead: the larger interval and the larger p hold.
"""

import math
import statistics
from typing import NamedTuple

from ldm_jax.reports.intervals import Value, Z

LEVEL = 0.95  # of intervals


class Difference(NamedTuple):
    """value: the difference with its interval; p: two-sided, of none being there, None if unknown.

    seeds: how many it was measured on.
    """

    value: Value
    p: float | None
    seeds: int


def mean(values: list[Value]) -> Value:
    """The mean over seeds."""
    if len(values) == 1:
        return values[0]
    return _estimate([v.value for v in values], [v.error for v in values]).value


def difference(pairs: dict[int, list[tuple[Value, Value]]]) -> Difference:
    """Of the first from the second of each pair; the pairs of each seed are averaged first.

    pairs: {seed: [(value, reference), ...]}. Both sides of a pair share their seed, so the spread
    that counts is that of their differences.
    """
    gaps = [statistics.fmean(a.value - b.value for a, b in own) for own in pairs.values()]
    return _estimate(gaps, [_error_of_mean(own) for own in pairs.values()])


def holm(ps: list[float | None]) -> list[float | None]:
    """p-values that count how many comparisons there are (Holm 1979); None stays and counts."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=ps.__getitem__)
    adjusted, largest = list(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def _estimate(numbers: list[float], errors: list[float | None]) -> Difference:
    """The mean of one number per seed. errors: of the samples that each was measured on."""
    from scipy import stats

    n, middle = len(numbers), statistics.fmean(numbers)
    own = None if None in errors else math.sqrt(sum(e**2 for e in errors)) / n
    margins, ps = [], []
    if own is not None:
        margins.append(Z * own)
        ps.append(2 * stats.norm.sf(abs(middle) / own) if own else float(middle == 0))
    if n > 1:
        spread = statistics.stdev(numbers) / math.sqrt(n)
        margins.append(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * spread)
        ps.append(2 * stats.t.sf(abs(middle) / spread, n - 1) if spread else float(middle == 0))
    if not margins:
        return Difference(Value(middle), None, n)
    margin = float(max(margins))
    return Difference(Value(middle, middle - margin, middle + margin), float(max(ps)), n)


def _error_of_mean(pairs) -> float | None:
    errors = [value.error for pair in pairs for value in pair]
    return None if None in errors else math.sqrt(sum(e**2 for e in errors)) / len(pairs)
