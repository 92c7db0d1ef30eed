"""What seeds say about the values of axes: intervals, corrections, verdicts on made-up cells."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ldm_jax.reports.intervals import Value
from ldm_jax.sweeps import conclusion, inference, variants

AXES = {
    "f": ["4"],
    "bottleneck": ["kl"],
    "channels": [],
    "prediction": ["v", "eps"],
    "density": ["uniform", "normal"],
}
FIXED = {"f": "4", "bottleneck": "kl", "channels": "2"}


def cell(prediction, density, seed, fid):
    labels = FIXED | {"prediction": prediction, "density": density}
    measures = {"fid": fid, "fid_std": 0.01}
    row = {"step": 9, "sampling_steps": 5, "num": 100, "measures": measures}
    return {
        "cell": f"f4_kl_c2_{prediction}_{density}_s{seed}",
        "labels": labels,
        "seed": seed,
        "steps": 9,
        "curve": 5,
        "rows": [row],
        "budget": {"kind": "steps", "amount": 9},
        "first_stage": {"name": "shared"},
    }


def sweep(worth, pairs, seeds=3):
    """Cells whose seeds differ by much, and whose values differ by `worth` with little noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(pairs), seeds))
    return [
        cell(*pair, seed, 30 + 10 * seed + sum(worth.get(v, 0) for v in pair) + noise[i, seed])
        for i, pair in enumerate(pairs)
        for seed in range(seeds)
    ]


GRID = [*itertools.product(AXES["prediction"], AXES["density"])]
STAR = GRID[:-1]


def test_an_interval_over_seeds_is_students():
    numbers = [0.91, 0.93, 0.98, 0.95]
    interval = stats.t.interval(0.95, 3, np.mean(numbers), stats.sem(numbers))
    mean = inference.mean([Value(x) for x in numbers])
    assert mean == pytest.approx((np.mean(numbers), *interval))
    pairs = {seed: [(Value(x), Value(0.9 + seed / 100))] for seed, x in enumerate(numbers)}
    found, paired = inference.difference(pairs), stats.ttest_rel(numbers, [0.9, 0.91, 0.92, 0.93])
    assert found.p == pytest.approx(paired.pvalue) and found.seeds == 4
    assert found.value[1:] == pytest.approx(tuple(paired.confidence_interval(0.95)))


def test_seeds_that_agree_by_chance_do_not_beat_the_error_of_their_samples():
    same = [Value(0.9, 0.88, 0.92)] * 2
    assert inference.mean(same).high == pytest.approx(0.9 + 0.02 / math.sqrt(2))
    assert inference.difference({0: [(same[0], Value(0.8, 0.6, 1.0))]}).p > 0.3
    assert inference.difference({0: [(Value(1.0), Value(2.0))]}).p is None


def test_holms_correction():
    assert inference.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert inference.holm([0.5, None]) == [1.0, None] and inference.holm([]) == []


@pytest.mark.parametrize("pairs", [GRID, STAR], ids=["grid", "star"])
def test_a_true_difference_is_found_at_equal_seeds_and_none_is_made_up(pairs):
    cells = sweep({"eps": 5.0}, pairs)
    eps, normal = variants.effects(variants.of(cells, "fid"), AXES, "fid")
    assert (eps.axis, eps.label, eps.baseline, eps.verdict) == ("prediction", "eps", "v", "worse")
    assert eps.difference.value.value == pytest.approx(5, abs=0.3) and eps.p < 0.01
    assert (normal.label, normal.verdict) == ("normal", "none")
    said = " ".join(conclusion.sentences(cells, "fid", AXES))
    assert "prediction = eps is worse than v, by +" in said
    assert "density = normal: no difference from uniform is shown" in said
    assert "corrected for 2 comparisons (Holm)" in said and "share a first stage" in said
    star = "the baseline f4_kl_c2_v_uniform reaches FID 40"
    assert (star in said) == (pairs is STAR)
    assert ("averaged over the other axes" in said) == (pairs is GRID)


def test_a_smaller_distance_is_better():
    found = variants.of(sweep({"eps": -5.0}, STAR), "fid")
    assert variants.effects(found, AXES, "fid")[0].verdict == "better"


def test_of_many_equal_variants_hardly_any_seems_to_differ():
    axes = {"f": ["4"], "x": [str(i) for i in range(21)]}
    random, wrong = np.random.default_rng(1), 0
    for _ in range(40):
        found = [
            variants.Variant({"f": "4", "x": x}, x, {s: Value(random.normal()) for s in range(3)})
            for x in axes["x"]
        ]
        wrong += any(e.verdict != "none" for e in variants.effects(found, axes, "fid"))
    assert wrong <= 6  # of 40 sweeps; uncorrected, nearly all would find something


def test_cells_that_are_missing_leave_comparisons_out():
    cells = [c for c in sweep({}, STAR) if c["labels"]["density"] == "uniform"]
    [eps] = variants.effects(variants.of(cells, "fid"), AXES, "fid")
    assert eps.label == "eps"
    alone = conclusion.sentences(cells[:1], "fid", AXES)
    assert "f4_kl_c2_v_uniform reaches FID" in alone[0] and "Nothing else" in alone[1]
