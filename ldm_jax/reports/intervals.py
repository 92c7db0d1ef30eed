"""A measured value with its 95 % interval."""

import math
from typing import NamedTuple

SHARES = ("class_accuracy",)  # shares of independent samples, which have a binomial error
# Their `_std` is the spread between subsets of one set of samples, not the error of their mean.
SPREADS = ("kid", "kid_mobilenet", "inception_score")
Z = 1.96  # half of a 95 % interval, in standard errors


class Value(NamedTuple):
    """A measured value; low, high: its 95 % interval, or None if it is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float | None:
        """Standard error."""
        return None if self.low is None else (self.high - self.low) / (2 * Z)

    def __str__(self):
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


def measure(measures: dict, key: str, num: int = 0) -> Value | None:
    """A measure with its interval: that of `evaluate`, or for shares of `num` samples Wilson's.

    measures: {name: value}, where NAME_low and NAME_high, or NAME_std, may tell the interval.
    """
    if key not in measures:
        return None
    value = measures[key]
    if f"{key}_low" in measures:
        return Value(value, measures[f"{key}_low"], measures[f"{key}_high"])
    if f"{key}_std" in measures and key not in SPREADS:
        margin = Z * measures[f"{key}_std"]
        return Value(value, value - margin, value + margin)
    if key in SHARES and num:
        scale = 1 + Z**2 / num
        middle = (value + Z**2 / (2 * num)) / scale
        margin = Z / scale * math.sqrt(value * (1 - value) / num + (Z / (2 * num)) ** 2)
        return Value(value, max(0.0, middle - margin), min(1.0, middle + margin))
    return Value(value)
