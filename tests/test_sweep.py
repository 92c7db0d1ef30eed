"""The sweep: its cells and budgets, the dry run, and the debug preset from nothing to a report."""

import csv
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import compiling
import pytest
from calling import call
from test_commands import DEBUG

from ldm_jax import cli, sweep
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.cost import programs
from ldm_jax.models import backbones
from ldm_jax.models.unet import UNet
from ldm_jax.stages.codec import Codec
from ldm_jax.sweeps import cells, widths, work

ROOT = pathlib.Path(__file__).resolve().parent.parent
SWEEP = f"{ROOT}/configs/sweeps/downsampling.py:debug"


@pytest.fixture(scope="module")
def config():
    return config_lib.load(SWEEP)


@pytest.fixture(scope="module")
def plan(config):
    return cells.cells(config)


def test_cells_are_equally_large_and_share_what_they_can(plan, config):
    assert [cell.name for cell in plan] == ["f1_pixels_c3_s0", "f2_kl_c2_s0"]
    assert plan[0].first_stage is None and plan[0].codec.f == 1 and plan[1].codec.f == 2
    for cell in plan:
        assert abs(cell.parameters / config.parameters - 1) <= config.tolerance
        assert cell.ldm.conditioners["class"].num_classes == 16
    two = config.copy_and_resolve_references()
    two.f, two.seeds, two.parameters = (2,), (0, 1), 0
    a, b = cells.cells(two)
    assert a.first_stage_name == b.first_stage_name and a.cache_name == b.cache_name
    assert a.run_name(two) != b.run_name(two)
    two.budget.amount *= 2
    assert cells.cells(two)[0].run_name(two) != a.run_name(config)


class Narrow(UNet):
    """A backbone of one's own, which adds narrower vectors and has its own steps of width."""

    width_unit = 24

    @property
    def vector_width(self):
        return self.width // 2


def test_a_sweep_asks_the_backbone_what_its_width_decides(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES._entries, "narrow", Narrow)
    quick = config_lib.load(f"{ROOT}/configs/quickstart.py:ldm")
    quick.model.name = "narrow"
    assert widths.backbone(quick, Codec(None)).width_unit == 24
    wider = widths.with_width(quick, Codec(None), 96)
    assert wider.model.width == 96 and wider.conditioners.class_vector.width == 48


def test_what_is_added_to_the_timestep_follows_the_width():
    quick = config_lib.load(f"{ROOT}/configs/quickstart.py:ldm")
    wider = widths.with_width(quick, Codec(None), 96)
    assert wider.model.width == 96 and wider.conditioners.class_vector.width == 384
    assert quick.conditioners.class_vector.width == 256


@pytest.mark.parametrize("steps", [1, 7, 100, 2500])
@pytest.mark.parametrize("points", [1, 3])
def test_every_point_of_a_run_has_a_checkpoint(steps, points):
    ldm = config_lib.load(f"{DEBUG}:ldm")
    ldm = cells.dated(ldm, steps, points)
    part = ldm.checkpoints.keep_every
    assert ldm.steps.total == part * points and part % ldm.steps.checkpoint == 0
    assert ldm.steps.checkpoint <= 5 and ldm.steps.log <= part
    assert abs(ldm.steps.total - steps) <= 0.1 * steps + points


@pytest.mark.parametrize("steps", [20, 100, 2500])
def test_points_that_double_are_runs_of_half_the_length_of_the_next(steps):
    ldm = cells.dated(config_lib.load(f"{DEBUG}:ldm"), steps, 4, "doubling")
    points = cells.judged(ldm, 4, "doubling")
    assert points[-1] == ldm.steps.total and abs(points[-1] - steps) <= 0.1 * steps + 8
    assert all(2 * a == b for a, b in itertools.pairwise(points))
    assert all(step % ldm.checkpoints.keep_every == 0 for step in points)


@pytest.mark.parametrize(
    ("limit", "doublings", "trained", "steps"),
    [(8, 3, [4, 8, 16], 8), (99, 3, [4, 8, 16, 32], 32), (8, 0, [], 4), (2, 3, [4, 8], 4)],
)
def test_first_stages_train_until_twice_the_steps_gain_little(
    limit, doublings, trained, steps, config, plan, tmp_path, monkeypatch
):
    seen = []

    def first_stage(self, cell):
        seen.append((cell.first_stage.steps.total, cell.first_stage.seed))
        return None, None, {"psnr_db": 20.0 + min(cell.first_stage.steps.total, limit)}

    monkeypatch.setattr(work.Work, "first_stage", first_stage)
    changed = config.copy_and_resolve_references()
    changed.plateau.doublings, changed.seeds, changed.seed_first_stages = doublings, (5, 0), True
    cell = plan[-1]
    found = work.Work(cell, changed, tmp_path, None).long_enough()
    assert seen == [(n, 5) for n in trained]  # the first seed says it for all
    assert (found.steps.total, found.seed) == (steps, 0) and cell.first_stage.steps.total == 4


def test_a_budget_buys_steps():
    flops = {"kind": "flops", "amount": 1e12, "max_steps": 10_000}
    assert cells.steps(flops, 1e9) == 1_000
    assert cells.steps(flops, 1e7) == 10_000 and cells.steps(flops, 1e13) == 1
    assert cells.steps(flops | {"kind": "steps", "amount": 70}, 1e9) == 70
    assert cells.steps(flops | {"kind": "seconds", "amount": 60}, 1e9, 0.5) == 120


def test_twice_the_batch_is_twice_the_flops_and_micro_batches_cost_the_same(plan):
    ldm, codec = plan[1].ldm, plan[1].codec
    once = programs.training_flops(ldm, codec)
    twice = ldm.copy_and_resolve_references()
    twice.batch_size, twice.accumulate = 2 * ldm.batch_size, 2
    # What does not grow with the batch: the optimizer.
    assert 1.9 < programs.training_flops(twice, codec) / once < 2.0


def test_the_dry_run_prints_a_command_for_each_cell(tmp_path, capfd):
    flags = [f"--sweep={SWEEP}", f"--workdir={tmp_path}", "--config.budget.max_steps=9"]
    assert call(sweep, *flags, "--dry_run") == 0
    out = capfd.readouterr().out.splitlines()
    command = shlex.join(["python", "-m", "ldm_jax.sweep", *flags])
    assert out[-2:] == [f"{command} --cell={name}" for name in ("f1_pixels_c3_s0", "f2_kl_c2_s0")]
    assert re.fullmatch(r"# f1_pixels_c3_s0 +26623 +12 +\S+ +\d+", out[-4])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.budget.kind=flop"], "nearest: flops"),
        (["--config.budget.amount=0"], "config.budget.amount=0"),
        (["--config.f=(1,3)"], "3 has no config in config.ldms"),
        (["--config.points=0"], "config.points=0"),
        (["--config.spacing=double"], "nearest: doubling"),
        (["--forecast=1e15"], "holds no finished cells"),
        (["--config.sampling.curve=7"], "config.sampling.curve=7"),
        (["--config.parameters=500"], "config.parameters=500"),
        (["--config.ldms.f1.modle.width=3"], "did you mean 'model'"),
        (["--cell=f3"], "f1_pixels_c3_s0"),
        (["--report"], "holds no finished cells"),
        (["--config.evaluate.samples=('--metrics=fdd','--weights=W')"], "did you mean 'fd'"),
        (["--config.evaluate.first_stage=('--wights=W',)"], "config.evaluate.first_stage: "),
        (["--config.sampling.flags=('--guidnce=3',)"], "config.sampling.flags: "),
    ],
)
def test_a_sweep_is_refused_in_one_line(flags, words, tmp_path, refused):
    code = call(sweep, f"--sweep={SWEEP}", f"--workdir={tmp_path / 'sweep'}", *flags)
    assert words in refused(code)
    assert not (tmp_path / "sweep").exists()


def test_cells_that_nothing_would_rank_are_refused_before_they_train(config):
    with config.unlocked():
        config.ldms.f1.conditioners = config.ldms.f2.conditioners = {}
    with pytest.raises(errors.UsageError, match="no figure would rank the cells"):
        work.check_flags(config, cells.cells(config), cli.read)


def test_a_condition_made_of_pixels_is_refused_where_a_cache_keeps_none(config):
    hole = {"hole": dict(name="inpaint", holes=dict(box=1.0))}
    with config.unlocked():
        config.ldms.f1.conditioners = config.ldms.f2.conditioners = hole
    with pytest.raises(errors.UsageError, match="ldm: a condition is made of data field 'image'"):
        cells.cells(config)


def test_a_first_stage_of_another_f_is_refused(config):
    wrong = config.copy_and_resolve_references()
    wrong.first_stages.f2.model.mult = (1, 2, 2)
    with pytest.raises(errors.UsageError, match="has f=4"):
        cells.cells(wrong)


@pytest.mark.slow
def test_from_nothing_to_a_report_with_a_kill_between(tmp_path):
    workdir = tmp_path / "sweep"
    command = [sys.executable, "-m", "ldm_jax.sweep", f"--sweep={SWEEP}", f"--workdir={workdir}"]
    env = os.environ | {"XLA_FLAGS": compiling.FAST}
    with subprocess.Popen(command, cwd=ROOT, env=env) as process:
        deadline = time.monotonic() + 900
        while not list(workdir.glob("cells/f1*/points/*/config.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    checkpoints = {p: p.stat().st_mtime_ns for p in workdir.glob("cells/f1*/run/checkpoints/*")}
    assert checkpoints
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in checkpoints} == checkpoints
    called = re.findall(r"\$ python -m ldm_jax\.(\w+)", again.stdout)
    assert called.count("train") == 2 and called.count("encode") == 1  # not f = 1's again
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["cells"] == "2 of 2" and summary["measure"] == "class_accuracy"
    assert summary["conclusion"][0].startswith("Under equal training FLOPs (4e+08")
    rows = list(csv.DictReader((workdir / "results.csv").open()))
    assert [(r["f"], r["step"], r["sampling_steps"]) for r in rows] == [
        (f, step, n) for f in "12" for step, n in (("1", "2"), ("2", "2"), ("2", "3"))
    ]
    assert "data:image/png" in (workdir / "index.html").read_text()
    third = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert third.returncode == 0 and "$ python" not in third.stdout, third.stderr
