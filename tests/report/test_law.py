"""The law of a sweep: it finds what made-up cells follow, forecasts, and knows its limits."""

import re

import numpy as np
import pytest
from test_report import AXES, cell

from ldm_jax.base import errors
from ldm_jax.sweeps import law, page

UNIT = 1000.0  # the FLOPs of 100 steps
TRUE = {"f1": (50.0, 200.0), "f4": (80.0, 40.0), "f8": (120.0, 10.0)}  # floor, scale


def distance(name, flops):
    floor, scale = TRUE[name]
    return floor + scale * (flops / UNIT) ** -0.4


def cells(error=2.0, shape=distance, steps=(6, 12, 25, 50, 100), seeds=3):
    """Cells whose distances follow `shape` but for seeds and samples, each with that error."""
    random, found = np.random.default_rng(0), []
    for name in TRUE:
        for seed in range(seeds):
            one = cell(int(name[1:]), 0.5, seed)
            one["rows"] = [
                one["rows"][0]
                | {
                    "step": step,
                    "measures": {
                        "fid": shape(name, 10.0 * step) + random.normal(0, error),
                        "fid_std": error,
                    },
                }
                for step in steps
            ]
            found.append(one)
    return found


def named(found):
    return {name.split("_")[0]: value for name, value in found.items()}


def test_the_law_that_made_the_points_is_found():
    found = law.fit(law.points(cells(error=0.0), "fid"))
    assert found.exponent == pytest.approx(0.4, rel=0.05)
    for name, terms in named(found.terms).items():
        assert terms == pytest.approx(TRUE[name], rel=0.15)
        assert found.at(f"{name}_kl_c4", 10 * UNIT) == pytest.approx(distance(name, 1e4), rel=0.03)


def test_a_held_out_budget_is_within_its_interval_and_nearer_than_the_rival():
    checked = named(law.check(law.points(cells(), "fid")))
    for name, own in checked.items():
        assert own.predicted.low < own.measured < own.predicted.high
        truth = distance(name, UNIT)
        if name != "f8":  # hardly falls any more
            assert abs(own.predicted.value - truth) < abs(own.latest - truth)


def test_seeds_that_were_counted_a_little_differently_are_of_one_point():
    found = cells()
    same = law.check(law.points(found, "fid"))
    for one in found:
        one["flops_per_step"] += 1e-6 * one["seed"]
    assert law.check(law.points(found, "fid")) == same


def test_the_winner_moves_with_the_budget_and_chances_are_honest():
    first, *_, last = law.winners(law.points(cells(), "fid"))
    assert named(first[1])["f8"].probability > 0.9 and first[0] == pytest.approx(UNIT / 16)
    assert named(last[1])["f4"].probability > 0.3  # 120 against 130
    level = law.winners(law.points(cells(shape=lambda name, flops: 90.0), "fid"))[-1][1]
    assert all(0.02 < one.probability < 0.9 for one in level.values())
    assert sum(one.probability for one in level.values()) == pytest.approx(1)


def test_shares_fall_as_what_they_lack():
    shares = cells(error=0.0, shape=lambda name, flops: 1 - distance(name, flops) / 1000)
    for one in shares:
        for row in one["rows"]:
            row["measures"] = {"recall": row["measures"]["fid"]}
    summary = law.summary(shares, "recall")
    assert summary["exponent"] == pytest.approx(0.4, rel=0.05)
    last = named(summary["winners"][-1]["predicted"])["f4"]
    assert last["value"] == pytest.approx(1 - distance("f4", UNIT) / 1000, abs=1e-3)


def test_a_forecast_pays_for_both_stages():
    head, *rows, reach = law.lines(cells(), "fid", 400 * UNIT)
    assert [row.split("_")[0] for row in rows] == ["f1", "f4", "f8"] and "best with" in head
    assert law.lines(cells(), "fid", 2000.0)[2].split()[1:3] == ["500", "1.5e+03"]
    assert "400 times as much, so this is little but a guess" in reach
    assert re.search(r"a 4th of it, the losses were [0-2]\.\d% off on average, and \d+\.\d%", reach)
    alone = law.lines(cells(), "fid", 400.0)  # less than a first stage
    assert alone[1].startswith("f1") and "takes more" in alone[2]


def test_what_has_no_law_says_so(tmp_path):
    few = cells(steps=(50, 100))
    assert law.summary(few, "fid") is None and law.summary(cells(), "inception_score") is None
    with pytest.raises(errors.UsageError, match=r"--forecast=1000: a law wants .* at 2: raise"):
        law.lines(few, "fid", 1000.0)
    dear = [one for one in cells() if one["f"] > 1]
    with pytest.raises(errors.UsageError, match="does not pay for the first stage of f4_kl_c4"):
        law.lines(dear, "fid", 400.0)
    full = cells()
    for one in full:
        one["steps"] = 100
    summary = page.write(tmp_path, full, AXES)
    assert summary["law"]["held_out"] and "Held out" in (tmp_path / "index.html").read_text()
