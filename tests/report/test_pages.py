"""The page of a training and of several: everything that the files of a run tell, in one file."""

import json
import pathlib
import re

import pytest

from ldm_jax import cli, compare, report
from ldm_jax.base import config as config_lib
from ldm_jax.base import raster
from ldm_jax.reports import recipe
from ldm_jax.reports.history import History
from ldm_jax.runs import keys


def lines(file, *values):
    file.write_text("".join(json.dumps(value) + "\n" for value in values))


def make(folder, seed=0, loss=2.0, spec="debug:first_stage") -> pathlib.Path:
    """The files of a training that never was."""
    (folder / "images").mkdir(parents=True)
    config = config_lib.load(spec, {"seed": str(seed)})
    (folder / "config.json").write_text(config_lib.to_json(config))
    train = [{"step": s, "kl": loss / s, "autoencoder/lr": 0.1} for s in (1, 2, 3)]
    held_out = {"val/kl": 1.5, "val/rfid": 7.25, "val/rfid_low": 6.5, "val/rfid_high": 8.125}
    lines(folder / "metrics.jsonl", *train, *({"step": s} | held_out for s in (2, 3)))
    lines(folder / "timing.jsonl", {"step": 3, "images_per_second": 5.0})
    seconds = {"step": 8.0, "compile": 2.0}
    lines(folder / "goodput.jsonl", dict(begin=0, end=10, reached=3, seconds=seconds) | {"from": 0})
    for step in range(1, 21):
        raster.write_png(folder / "images" / f"samples_{step:08d}.png", raster_of(step))
    return folder


def raster_of(step):
    import numpy as np

    return np.full((2, 2, 3), step, np.uint8)


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run <1>", seed=3)


def called(command, *argv) -> int:
    return cli.run(
        command.__doc__, command.FLAGS, command.main, [*map(str, argv)], None, command.WORDS
    )


def read(file) -> str:
    """The page without what is inside its pictures; it asks for nothing outside of itself."""
    text = file.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    return re.sub(r'src="[^"]*"', "", text)


def test_the_page_of_a_run_tells_what_its_files_tell(run, capsys):
    lines(run / "rollbacks.jsonl", {"step": 1, "from": 2, "offset": 1, "reason": "loss <spike>"})
    lines(run / "bad_records_0000.jsonl", {"record": 4, "name": "cat.png"})
    (run / "init_from.json").write_text(json.dumps({"run": "runs/before", "digest": "abc"}))
    assert called(report, run) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    text = read(run / "report.html")
    assert "<td>rfid</td><td>7.25 [6.5, 8.125]</td>" in text and "<td>kl</td><td>1.5</td>" in text
    assert "80 % of 0:10 in 1 session(s)" in text and "at step 3 of " in text
    assert "rolled back to step 1 (loss &lt;spike&gt;)" in text and "the last cat.png" in text
    assert "run runs/before, digest abc" in text
    assert "debug:first_stage, the nearest recipe" in text
    assert "<td>seed</td><td>0</td><td>3</td>" in text and text.count("<td>seed</td>") == 1
    assert "run &lt;1&gt;" in text and "run <1>" not in text
    steps = [int(step) for step in re.findall(r"samples, step (\d+)</fig", text)]
    assert steps[0] == 1 and steps[-1] == 20 and len(steps) == 6


def test_the_nearest_recipe_is_the_one_of_the_fewest_differences():
    for spec in ("quickstart:ldm", "kl_f16:c8", "vq_f8_n256"):
        config = config_lib.load(spec, {"batch_size": "7"})
        name, rows = recipe.nearest(config)
        assert recipe.difference(config_lib.load(name), config) == rows and len(rows) == 1, spec


def test_options_that_a_recipe_leaves_out_are_no_differences():
    config = config_lib.load("tasks:layout")
    assert recipe.nearest(keys.complete(config)) == ("tasks:layout", [])


def test_a_figure_that_is_no_number_is_an_alarm(run):
    lines(run / "metrics.jsonl", {"step": 1, "kl": 1.0}, {"step": 2, "kl": float("nan")})
    assert any("kl is not finite at step 2" in said for said in History(run).alarms)
    assert called(report, run) == 0


def test_runs_beside_each_other_differ_in_what_differs(run, tmp_path, capsys):
    other, out = make(tmp_path / "other", seed=4, loss=3.0), tmp_path / "compare.html"
    assert called(compare, run, other, f"--out={out}") == 0
    text = read(out)
    assert "<td>seed</td><td>3</td><td>4</td>" in text and "<td>batch_size</td>" not in text
    assert text.count("7.25 [6.5, 8.125]") == 2


def test_what_cannot_be_shown_is_one_line_and_writes_nothing(run, tmp_path, refused):
    second, out = make(tmp_path / "ldm", spec="debug:ldm"), tmp_path / "page.html"
    assert "one kind" in refused(called(compare, run, second, f"--out={out}"))
    assert "once" in refused(called(compare, run, run, f"--out={out}"))
    assert "two runs" in refused(called(compare, run, f"--out={out}"))
    assert "is not a run" in refused(called(report, tmp_path / "no", f"--out={out}"))
    assert "did you mean" in refused(called(report, run, "--recipe=kl_f3", f"--out={out}"))
    assert "--run is missing" in refused(called(report))
    lines(run / "metrics.jsonl", {"kl": 1.0})
    assert "with step: " in refused(called(report, run, f"--out={out}"))
    (run / "metrics.jsonl").write_text("{]\n{}\n")
    assert "metrics.jsonl:1" in refused(called(report, run, f"--out={out}"))
    assert not out.exists() and not (tmp_path / "no").exists()
