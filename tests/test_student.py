"""A student of few steps is a run like any other: trained, resumed, drawn from, measured."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from calling import call

import ldm_jax
from configs import quickstart
from ldm_jax import evaluate, sample, train
from ldm_jax.base import disk, errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["steps.total=6", "steps.log=2", "steps.eval=6", "steps.checkpoint=3", "eval.records=8"]
FLAGS += ["optim.denoiser.warmup=1"]
BRIEF = ["distil.intervals=4", "distil.first=2"]
UNUSED = ["distil.intervals=50", "distil.first=8"]
MATCHED = ["distil.critic_first=0", "distil.critic_steps=2", "optim.critic.warmup=1"]
MATCHED += ["checkpoints.keep=3"]


def distil(teacher, workdir, *flags) -> int:
    argv = [f"--config={ROOT}/configs/student.py:{teacher}", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*FLAGS, *BRIEF, *flags)))


def match(start, workdir) -> int:
    argv = [f"--config={ROOT}/configs/distribution.py:{start}", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*FLAGS, *MATCHED)))


@pytest.fixture(scope="module")
def student(pixel_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("student") / "run"
    assert distil(pixel_run, workdir) == 0
    return workdir


@pytest.mark.slow
def test_it_measures_itself_against_its_teacher_and_records_it(student, pixel_run):
    lines = disk.read_jsonl(student / "metrics.jsonl")
    assert [line["intervals"] for line in lines if "intervals" in line] == [2.0, 3.0, 4.0]
    assert {"val/match_1", "val/match_2", "val/match_4", "val/spread"} <= lines[-1].keys()
    origin = json.loads((student / "latents.json").read_text())["origin"]
    assert origin["teacher_run"] == str(pixel_run) and origin["teacher_step"] == 2
    scale = json.loads((pixel_run / "latents.json").read_text())["scale"]
    assert json.loads((student / "latents.json").read_text())["scale"] == scale


@pytest.mark.slow
def test_it_draws_without_its_teacher_and_takes_no_guidance(student, tmp_path, refused, capfd):
    run = ldm_jax.load(student)
    assert "teacher" not in run.weights["frozen"]
    drawn = [run.sample(2, sampler="consistency", steps=steps, seed=1) for steps in (1, 2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    argv = [f"--run={student}", f"--out={tmp_path / 'out'}", "--num=8", "--batch_size=8"]
    assert call(sample, *argv) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "consistency" in json.dumps(manifest)
    capfd.readouterr()
    line = refused(call(sample, *argv[:1], f"--out={tmp_path / 'no'}", "--num=8", "--guidance=2"))
    assert "guidance=2.0: this run is a student" in line


@pytest.mark.slow
def test_of_a_range_of_guidance_it_is_told_which_and_starts_as_its_teacher(
    pixel_run, tmp_path, refused, capfd
):
    """With a learning rate of 0 it stays what it starts as, whatever it is told."""
    workdir = tmp_path / "run"
    assert distil(pixel_run, workdir, "distil.guidance=1,8", "optim.denoiser.lr=1e-30") == 0
    run, teacher = ldm_jax.load(workdir), ldm_jax.load(pixel_run)
    assert run.config.sample.guidance == 4.5
    assert run.config.conditioners.guidance.bounds == (1.0, 8.0)
    x, t = np.ones((2, 16, 16, 3), np.float32), np.array([5, 700])
    cond = {"class": np.array([0, 1])}
    for guidance in (1.0, 8.0):
        own = run.denoise(x, t, cond, guidance)
        np.testing.assert_allclose(own, teacher.denoise(x, t, cond), atol=1e-5)
    argv = [f"--run={workdir}", "--num=8", "--batch_size=8"]
    assert call(sample, *argv, f"--out={tmp_path / 'out'}", "--guidance=3") == 0
    assert call(evaluate, f"--run={workdir}", f"--out={tmp_path}") == 0
    capfd.readouterr()
    line = refused(call(sample, *argv, f"--out={tmp_path / 'no'}", "--guidance=9"))
    assert "guidance=9.0: this run is a student of guidance from 1 to 8" in line


@pytest.mark.slow
def test_evaluate_measures_it_beside_its_teacher(student, tmp_path):
    assert call(evaluate, f"--run={student}", f"--out={tmp_path}") == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["match_1"] > 0 and found["spread"] > 0


@pytest.mark.slow
def test_distribution_matching_goes_on_from_a_student_and_resumes_to_the_byte(
    student, pixel_run, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert match(student, whole) == 0
    lines = disk.read_jsonl(whole / "metrics.jsonl")
    assert all(line["move"] > 0 and line["critic_error"] > 0 for line in lines if "move" in line)
    assert lines[-1]["val/spread"] > 0 and lines[-1]["val/drift"] > 0
    origin = json.loads((whole / "latents.json").read_text())["origin"]
    assert origin["teacher_run"] == str(pixel_run)
    assert json.loads((whole / "init_from.json").read_text())["init_from"] == str(student)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    assert match(student, cut) == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert ldm_jax.load(cut).digest == ldm_jax.load(whole).digest


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["distil.method=distribution"], "first=2 does nothing with method"),
        (
            ["distil.method=distribution", *UNUSED],
            "config.optim.critic: start from configs/distribution.py",
        ),
        (["distil.teacher=", "distil.guidance=2"], "config.distil.guidance=2 is of a teacher"),
        (["process.prediction=eps"], "cannot predict eps"),
        (["sample.guidance=2"], "config.sample.guidance=2.0"),
        (["distil.method=magic"], "magic"),
        (["distil.intervals=1"], "first=2, intervals=1"),
        (["data.size=32"], "draws images of 16 pixels"),
        (["process.schedule=cosine"], "is not the teacher's"),
        (["distil.guidance=8,1"], "config.distil.guidance=(8, 1)"),
        (["distil.guidance=1,8", "sample.guidance=9"], "guidance from 1 to 8"),
        (["loss.terms.coarse=1"], "config.loss.terms.coarse=1.0 is not of this config.distil"),
    ],
)
def test_what_cannot_be_is_one_line(pixel_run, tmp_path, refused, flags, line):
    assert line in refused(distil(pixel_run, tmp_path / "run", *flags))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_quickstarts_student_is_of_the_quickstart_which_has_to_be_here(
    pixel_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UsageError, match=r"run bash launch/quickstart.sh first"):
        quickstart.get_config("student")
    (tmp_path / quickstart.LDM).parent.mkdir(parents=True)
    (tmp_path / quickstart.LDM).symlink_to(pixel_run)
    config = quickstart.get_config("student")
    assert config.distil.teacher == config.init_from == quickstart.LDM and config.is_locked
