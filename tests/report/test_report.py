"""The report on made-up cells: intervals, sentences, correlations, one page."""

import csv
import io
import json
import re

import pytest

from ldm_jax.reports import intervals
from ldm_jax.sweeps import conclusion, figures, page, results

AXES = {"f": ["1", "2", "4", "8", "32"], "bottleneck": ["kl"], "channels": []}
BUDGET = {"kind": "flops", "amount": 1000.0, "max_steps": 100}


def cell(f, accuracy, seed=0, psnr=20.0, png="gone.png", **measures):
    """100 steps of 10 FLOPs; half as good half-way, a little better with ten times the steps."""
    rows = [
        {"step": step, "sampling_steps": n, "num": 400, "samples_png": png,
         "images_per_second": 100.0 / n,
         "measures": {"class_accuracy": share * accuracy, **measures}}
        for step, n, share in ((50, 5, 0.5), (100, 5, 1.0), (100, 50, 1.01))
    ]  # fmt: skip
    first = {
        "name": f"f{f}", "flops": 500.0, "steps": 5, "train_seconds": 60.0, "encode_seconds": 5.0,
        "cache_bytes": 10, "measures": {"psnr_db": psnr, "ssim": 0.5},
    }  # fmt: skip
    return {
        "cell": f"f{f}_kl_c4_s{seed}", "f": f, "channels": 4, "seed": seed,
        "labels": {"f": str(f), "bottleneck": "kl", "channels": "4"},
        "parameters": 1000, "size": 32, "flops_per_step": 10.0, "steps": 100, "batch_size": 8,
        "curve": 5, "budget": BUDGET, "train_seconds": 90.0, "rows": rows,
        "first_stage": first if f > 1 else None,
    }  # fmt: skip


def say(*cells, key="class_accuracy"):
    return " ".join(conclusion.sentences(cells, key, AXES))


def test_an_interior_optimum_is_named_with_its_margin_and_its_certainty():
    said = say(cell(1, 0.3), cell(4, 0.8), cell(8, 0.6), cell(32, 0.2))
    assert said.startswith("Under equal training FLOPs (1e+03 for each denoiser), f = 4 does best")
    assert "0.8 [0.758" in said and "The next is f = 8 with 0.6" in said
    assert re.search(r"a difference of 0\.2 \[0\.13.*, 0\.26.*\], shown \(p < 0\.0001\)", said)
    assert "corrected for the 6 pairs of variants" in said
    assert "Pixels (f = 1) reach 0.3" in said
    assert "interior, both ends of the range do worse: against f = 1 a difference of 0.5 [" in said
    assert "One seed was trained" in said


def test_what_is_not_interior_and_what_is_not_settled_is_said_as_plainly():
    said = say(cell(1, 0.81), cell(4, 0.8), cell(8, 0.6))
    assert "f = 1 does best" in said and "not shown (p = 1)" in said
    assert "not interior: the best f is the smallest that was tried" in said
    unsure = say(cell(1, 0.80), cell(4, 0.81), cell(8, 0.6))
    assert "that both ends of the range do worse is not shown" in unsure
    assert "largest" in say(cell(1, 0.2), cell(4, 0.3), cell(8, 0.9))
    assert "cannot tell" in say(cell(1, 0.2), cell(4, 0.3))
    assert "f = 4, 8 tie for the best" in say(cell(1, 0.2), cell(4, 0.3), cell(8, 0.3))
    assert "Nothing else was finished" in say(cell(4, 0.3))


def test_smaller_distances_win_and_without_intervals_nothing_is_sure():
    cells = [cell(f, 0.5, fid=fid) for f, fid in ((1, 30.0), (4, 10.0), (8, 20.0))]
    assert results.keys(cells)[0] == "fid"
    said = say(*cells, key="fid")
    assert "f = 4 does best: FID 10." in said and "of unknown error" in said
    with_error = [cell(f, 0.5, fid=fid, fid_std=2.0) for f, fid in ((1, 30.0), (4, 10.0))]
    assert "FID 10 [6.08, 13.92]" in say(*with_error, key="fid")


def test_what_the_intervals_leave_out_is_said():
    spread = [cell(4, accuracy, seed) for seed, accuracy in enumerate((0.5, 0.7, 0.9))]
    said = say(*spread, *(cell(8, 0.6, seed) for seed in range(3)))
    assert "One seed" not in said and "All seeds of a variant share a first stage" in said
    assert "One seed of f8_kl_c4, f1_kl_c4 was trained" in say(*spread, cell(8, 0.6), cell(1, 0.3))
    for one in spread:
        one["first_stage"]["name"] += str(one["seed"])
    assert "share a first stage" not in say(*spread, *(cell(1, 0.6, seed) for seed in range(3)))


def test_a_budget_that_was_not_spent_is_said():
    short = cell(32, 0.5) | {"steps": 50}
    assert conclusion.off_budget([cell(4, 0.5)]) == []
    assert "f32_kl_c4_s0 spent 50%" in conclusion.off_budget([short])[0]


def test_rank_correlation_is_one_where_the_orders_agree():
    cells = [cell(1, 0.9), cell(2, 0.3, psnr=30), cell(4, 0.5, psnr=25), cell(8, 0.7, psnr=20)]
    assert conclusion.predictors(cells, "class_accuracy") == {"psnr_db": (-1.0, 3)}
    assert conclusion.predictors(cells[:2], "class_accuracy") == {}


def test_latents_of_equal_size_stand_above_one_another():
    assert figures.sizes([cell(4, 0.5), cell(8, 0.6)], "class_accuracy") is None
    wide = cell(8, 0.7) | {"channels": 16, "cell": "f8_kl_c16_s0"}
    wide["labels"] = wide["labels"] | {"channels": "16"}
    cells = [cell(4, 0.5), cell(4, 0.7, seed=1), cell(8, 0.6), wide]
    [axes] = figures.sizes(cells, "class_accuracy").axes
    lines = {one.get_label(): one.lines[0].get_xydata().tolist() for one in axes.containers}
    assert lines["f4_kl"] == [[256, pytest.approx(0.6)]]
    assert lines["f8_kl"] == [[64, 0.6], [256, 0.7]], "16 x 4 x 4 numbers, as many as 4 x 8 x 8"


def test_wilsons_interval():
    value = intervals.measure({"class_accuracy": 0.5}, "class_accuracy", 100)
    assert (value.low, value.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert intervals.measure({"class_accuracy": 0.0}, "class_accuracy", 100).high > 0.03
    assert intervals.measure({}, "fid", 100) is None


def test_the_spread_of_subsets_is_not_taken_for_an_error():
    assert intervals.measure({"kid": 1.0, "kid_std": 1e-16}, "kid", 100) == (1.0, None, None)


def test_the_page_needs_nothing_beside_it(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    cells = [cell(1, 0.3), cell(4, 0.8, png=str(tmp_path / "grid.png")), cell(8, 0.6)]
    summary = page.write(tmp_path, cells, AXES)
    text = (tmp_path / "index.html").read_text()
    assert "f = 4 does best" in text and "no longer there" in text
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 3 + 2 + 1 + 1 and all(s.startswith("data:image/png") for s in sources)
    assert "http" not in text and "<link" not in text and "<script" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == 9 and rows[3]["cell"] == "f4_kl_c4_s0" and rows[3]["flops"] == "500.0"
    assert rows[3]["class_accuracy"] == "0.4" and rows[0]["first_stage_psnr_db"] == ""
    assert summary["measure"] == "class_accuracy" and summary["values"]["f4_kl_c4_s0"] == 0.8
    kept = json.loads((tmp_path / "cells.json").read_text())
    assert str(tmp_path) not in str(kept)
    again = page.write(tmp_path / "again", kept["cells"], kept["axes"])
    assert again == json.loads(json.dumps(summary))
