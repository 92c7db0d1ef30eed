"""A run that keeps averages of two lengths, drawn, measured and opened at others by commands."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import evaluate, sample, train
from ldm_jax.base import disk, record
from ldm_jax.engine import checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "steps.total=8"]
FLAGS += ["steps.log=4", "steps.eval=8", "steps.checkpoint=8", "eval.records=16"]
FLAGS += ["latents.batches=1", "checkpoints.snapshots=4", "optim.denoiser.lr=0.01"]
POWER = ["optim.denoiser.average=power", "optim.denoiser.ema=0.05,0.10"]
DRAWN = ["--num=8", "--batch_size=8", "--steps=2"]


def call_train(workdir, *flags) -> int:
    argv = [f"--config={ROOT}/configs/debug.py:ldm", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*FLAGS, *flags)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lengths") / "run"
    assert call_train(workdir, *POWER) == 0
    return workdir


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def flat(ema, run):
    """The denoiser's weights as one vector."""
    leaves = jax.tree.leaves(ldm_jax.load(run, ema=ema).weights["params"])
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_any_length_lies_between_and_beyond_those_that_were_kept(run):
    assert checkpoint.finished(run, "averages") == [2, 4, 6, 8]
    short, middle, long = (flat(ema, run) for ema in (0.05, 0.07, 0.10))
    np.testing.assert_array_equal(short, flat(True, run))
    raw = flat(False, run)
    distance = lambda x: np.linalg.norm(x - raw)
    assert 0 < distance(short) < distance(middle) < distance(long)


@pytest.mark.slow
def test_a_job_of_samples_has_one_length(run, tmp_path, refused, capfd):
    argv = [f"--run={run}", f"--out={tmp_path / 'out'}", *DRAWN]
    assert call(sample, *argv, "--ema=0.07") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["ema"] == summary(tmp_path / "out")["ema"] == 0.07
    assert manifest["weights"] == ldm_jax.load(run, ema=0.07).digest and manifest["step"] == 8
    assert call(sample, *argv, "--ema=0.07") == 0, "the same job goes on"
    capfd.readouterr()
    assert "ema: 0.07 -> 0.08" in refused(call(sample, *argv, "--ema=0.08"))
    assert "ema: 0.07 -> (absent)" in refused(call(sample, *argv))


def test_lengths_are_compared_by_the_held_out_error(run, capfd):
    assert call(evaluate, f"--run={run}", "--ema=0.10,0.07,0.05") == 0
    found = summary(run / "evaluation")
    assert list(found["by_ema"]) == ["0.1", "0.07", "0.05"] and found["ema"] == [0.1, 0.07, 0.05]
    errors = [figures["error"] for figures in found["by_ema"].values()]
    assert len({*errors}) == 3 and found["error"] == errors[-1]
    # At the shortest, training measured the same.
    assert errors[-1] == pytest.approx(summary(run)["error"], rel=1e-4)
    assert (run / "evaluation" / "ema.png").read_bytes().startswith(b"\x89PNG")
    assert "ema 0.07: error " in capfd.readouterr().out
    assert call(evaluate, f"--run={run}") == 0
    assert "by_ema" not in summary(run / "evaluation")


def test_what_cannot_be_given_is_one_line(run, tmp_path, refused):
    plain = shutil.copytree(run, tmp_path / "plain")
    config = disk.read_json(plain / "config.json")
    config["optim"]["denoiser"] |= {"average": "ema", "ema": 0.99}
    disk.write_json(plain / "config.json", config)
    out = f"--out={tmp_path / 'out'}"
    draw = lambda run, *flags: refused(call(sample, f"--run={run}", out, *DRAWN, *flags))
    assert "4 snapshots of averages of 0.05, 0.1 miss" in draw(run, "--ema=0.01")
    assert "ema=0.9 is no length" in draw(run, "--ema=0.9")
    assert "give --ema, --noema, or a length" in draw(run, "--ema=long")
    assert "keeps no averages of a length" in draw(plain, "--ema=0.07")
    assert f"ema=0.07 of {plain}" in draw(run, "--ema=0.07", f"--weaker={plain}")
    assert "keeps no averages" in refused(call(evaluate, f"--run={plain}", "--ema=0.07"))
    assert "is for --run=RUN" in refused(call(evaluate, f"--samples={tmp_path}", "--ema=0.07"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["optim.denoiser.ema=0.05,0.10", "checkpoints.snapshots=64"],
            "config.optim.denoiser: ema=(0.05, 0.1) with average=",
        ),
        (["optim.denoiser.average=power"], "config.optim.denoiser: ema=0.99 is no length"),
        ([POWER[0], "optim.denoiser.ema=0.1,0.05"], "the shortest first"),
        ([POWER[0], "optim.denoiser.ema=many"], "optim.denoiser.ema=many: wants"),
        ([*POWER, "checkpoints.snapshots=-1"], "config.checkpoints.snapshots=-1"),
    ],
)
def test_train_refuses_lengths_that_are_none(flags, words, tmp_path, refused):
    assert words in refused(call_train(tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_a_config_that_was_read_back_takes_one_number_or_several(run):
    for given, expected in (("0.9", (0.9,)), ("0.05,0.2", (0.05, 0.2))):
        config = record.load(f"{run / 'config.json'}", {"optim.denoiser.ema": given})
        assert config.optim.denoiser.ema == expected
    assert record.read(run).optim.denoiser.ema == (0.05, 0.1)
