"""A first stage that starts from its data, and the rival that it is shown beside."""

import json
import pathlib

import pytest
from calling import call

from ldm_jax import convert, evaluate, train
from ldm_jax.base import config as config_lib
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import start

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["model.shortcut=linear", "steps.total=2", "steps.log=1", "steps.eval=2"]
FLAGS += ["steps.checkpoint=2", "loss.disc_weight=0.0", "eval.records=16"]


def run(workdir, *changes, variant="first_stage"):
    argv = [f"--config={ROOT}/configs/debug.py:{variant}", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*FLAGS, *changes)))


def read(file):
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start") / "run"
    assert run(workdir) == 0
    return workdir


def test_what_was_measured_is_recorded_and_measured_alike_again(workdir, tmp_path):
    begun = read(workdir / "start.json")
    assert 0 < begun["explained"] < 1 and begun["images"] == start.IMAGES
    assert run(tmp_path / "again") == 0
    assert read(tmp_path / "again" / "start.json") == begun
    first, again = ((path / "metrics.jsonl").read_bytes() for path in (workdir, tmp_path / "again"))
    assert first == again


def test_larger_patches_are_fitted_on_more_images():
    """Their components are those of other images too where patches are several for each number."""
    config = config_lib.load(f"{ROOT}/configs/debug.py:first_stage")
    config.data.count = 2_000
    source = data_lib.open_source(config.data)
    count = lambda f: len(start.images(config, source, f))
    assert config.data.size == 16 and count(2) == start.IMAGES
    # 16 x 16 pixels are one patch of 768 numbers: there are not eight times as many images.
    assert count(16) == len(data_lib.training(config, source)) == 1_500


def test_a_run_that_goes_on_measures_nothing(workdir, monkeypatch):
    monkeypatch.setattr(start, "images", lambda *_: pytest.fail("the images were read again"))
    argv = ["steps.total=4"], f"--allow_config_change={'steps.total'}"
    flags = [f"--config.{flag}" for flag in (*FLAGS, *argv[0])]
    config = f"--config={ROOT}/configs/debug.py:first_stage"
    assert call(train, config, f"--workdir={workdir}", *flags, argv[1]) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    rivals = {line["val/components_psnr_db"] for line in lines if "val/psnr_db" in line}
    assert len(rivals) == 1 and 5 < rivals.pop() < 60


def test_evaluate_shows_both_over_all_held_out_records(workdir, tmp_path):
    assert call(evaluate, f"--run={workdir}", f"--out={tmp_path}") == 0
    summary = read(tmp_path / "summary.json")
    assert {"psnr_db", "components_psnr_db"} <= set(summary["protocol"]["figures"])


@pytest.mark.slow
def test_a_codebook_starts_from_the_data_too(tmp_path):
    assert run(tmp_path / "run", variant="vq") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert lines[0]["usage"] > 0.9
    assert any("val/kmeans_psnr_db" in line for line in lines)


def test_an_unknown_path_is_refused_and_diffusers_has_none(workdir, tmp_path, refused):
    assert "did you mean 'linear'" in refused(run(tmp_path / "run", "model.shortcut=linaer"))
    argv = ["export", f"--run={workdir}", f"--out={tmp_path}/exported"]
    assert "shortcut" in refused(convert.run(argv))
