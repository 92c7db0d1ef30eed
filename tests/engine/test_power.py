"""Averages along power functions: their maths, and combinations of those that were kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.engine import optim, power


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.7219)])
def test_lengths_and_exponents_belong_together(length, exponent):
    assert power.exponent(length) == pytest.approx(exponent, abs=0.005)
    assert power.length(power.exponent(length)) == pytest.approx(length, rel=1e-9)


def test_a_length_is_the_standard_deviation_of_the_profile():
    for length in (0.02, 0.05, 0.2, power.LONGEST):
        g, s = power.exponent(length), (np.arange(200_000) + 0.5) / 200_000
        weights = (g + 1) * s**g / len(s)
        mean = np.sum(weights * s)
        assert np.sqrt(np.sum(weights * (s - mean) ** 2)) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("wrong", [0.0, -0.1, 0.3, 0.9999, float("nan")])
def test_what_is_no_length_is_refused(wrong):
    with pytest.raises(errors.UsageError, match=r"above 0 and at most 0\.289"):
        power.exponent(wrong)


def run(walk, length):
    """The averages after each step that training would keep; walk: [steps, n]."""
    update = optim.make({"lr": 0.1, "average": "power", "ema": length}, 10).average
    kept = [np.zeros_like(walk[0])]
    for step, weights in enumerate(walk):
        kept.append(np.asarray(update(kept[-1], weights, jnp.int32(step))))
    return np.stack(kept[1:])


@pytest.fixture(scope="module")
def walk():
    """Weights that start somewhere and walk at random, [256, 50]."""
    rng = np.random.default_rng(0)
    steps = 0.05 * rng.normal(size=(256, 50))
    return (rng.normal(size=50) + np.cumsum(steps, 0)).astype(np.float32)


def closed(walk, length):
    """The weighted sum that the average is defined as."""
    edges = (np.arange(len(walk) + 1) / len(walk)) ** (power.exponent(length) + 1)
    return np.diff(edges) @ walk.astype(np.float64)


def test_the_running_average_is_the_weighted_sum(walk):
    for length in (0.05, 0.25):
        np.testing.assert_allclose(run(walk, length)[-1], closed(walk, length), atol=2e-6)


def test_a_step_late_in_a_long_training_counts_as_much_as_it_should():
    g, t = power.exponent(0.05), 10_000_000
    assert float(power.share(g, jnp.float32(t))) == pytest.approx((g + 1) / t, rel=1e-5)
    assert float(power.share(g, jnp.float32(1))) == 1


@pytest.mark.parametrize("length", [0.02, 0.03, 0.05, 0.07, 0.10, 0.15, 0.25])
def test_what_snapshots_combine_to_is_the_average_kept_directly(walk, length):
    kept = {own: run(walk, own) for own in (0.05, 0.10)}
    each = [(step, own) for step in range(4, 257, 4) for own in kept]
    x, missed = power.coefficients(*zip(*each), 256, length)
    combined = sum(c * kept[own][step - 1] for c, (step, own) in zip(x, each))
    directly = closed(walk, length)
    error = np.linalg.norm(combined - directly)
    # Of what averaging changes at all, which is far less than the weights themselves.
    assert error < 0.01 * np.linalg.norm(directly - walk[-1])
    assert missed < power.TOLERANCE and np.sum(x) == pytest.approx(1)


def test_the_error_that_is_foretold_grows_outside_of_what_snapshots_reach():
    each = [(step, own) for step in range(1, 17) for own in (0.05, 0.10)]
    given = *zip(*each), 16
    low, high = power.reach(*given)
    missed = lambda length: power.coefficients(*given, length)[1]
    assert 0.01 < low < 0.05 and 0.10 < high < power.LONGEST
    assert missed(0.8 * low) > power.TOLERANCE > missed(1.1 * low)
    assert missed(0.9 * high) < power.TOLERANCE < missed(min(1.2 * high, power.LONGEST))
    assert missed(0.05) < 1e-6 and missed(0.10) < 1e-6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema": (0.05, 0.10)}, r"ema=\(0.05, 0.1\) with average='ema': it takes one number"),
        ({"average": "power"}, "needs its lengths: set ema=0.05,0.10"),
        ({"average": "power", "ema": ()}, "needs its lengths"),
        ({"average": "power", "ema": 0.9999}, "ema=0.9999 is no length"),
        ({"average": "power", "ema": (0.1, 0.05)}, "the shortest first.*: ema=0.05,0.1"),
        ({"average": "power", "ema": (0.05, 0.05)}, "each length once"),
        ({"average": "power", "ema": ("a", "b")}, "give a number, or several"),
    ],
)
def test_numbers_that_do_not_suit_their_average_are_refused(settings, words):
    with pytest.raises(errors.UsageError, match=words):
        optim.make({"lr": 0.1} | settings, 10)


def test_the_first_length_is_the_average_that_training_evaluates():
    own = optim.make({"lr": 0.1, "average": "power", "ema": (0.05, 0.10)}, 10)
    assert list(own.lengths) == ["0.05", "0.1"] and own.average is own.lengths["0.05"]
    one = optim.make({"lr": 0.1, "average": "power", "ema": 0.05}, 10)
    assert list(one.lengths) == ["0.05"]
    assert not optim.make({"lr": 0.1, "ema": (0.9,)}, 10).lengths
