"""Runs of a stage of one weight, on data of which some batches are poison."""

import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import assert_the_same

from ldm_jax.base import disk, errors, shard
from ldm_jax.engine import loop, phases, rollback, trainer
from ldm_jax.engine import step as step_lib
from ldm_jax.evaluation import held_out as held_out_lib
from ldm_jax.stages import api

STEPS = {"total": 60, "log": 2, "eval": 60, "checkpoint": 5}
ADAM = {"name": "adam", "lr": 0.02}


def make_stage():
    def loss(params, frozen, batch, key, step, shared):
        noise = 0.01 * jax.random.normal(key, batch["x"].shape)
        error = jnp.mean((params["line"]["w"] * batch["x"] - 2 * batch["x"] + noise) ** 2)
        return error, ({"error": error}, shared)

    line = api.Player("line", lambda key: {"w": jnp.float32(1.9)}, loss)
    rows = lambda params, frozen, batch, key: {"error": jnp.zeros(len(batch["x"]))}
    nothing = lambda params, frozen, batch, key: {}
    return api.Stage(("x",), (line,), {}, rows, nothing, watched="error")


class Rows:
    """Batches 0, 1, ...; poison: {batch: its value}; cut: batches at which SIGTERM comes."""

    def __init__(self, poison, cut=()):
        self.poison, self.cut, self.seen = poison, set(cut), []

    def __call__(self, number):
        while True:
            x = np.random.default_rng(number).uniform(0.5, 1, 8).astype(np.float32)
            x = np.full(8, self.poison[number], np.float32) if number in self.poison else x
            if number in self.cut:
                self.cut.remove(number)
                signal.raise_signal(signal.SIGTERM)
            self.seen.append(number)
            yield {"x": x, "bad": np.full(8, -1)}
            number += 1


def held_out():
    yield {"x": np.ones(8, np.float32), "real": np.ones(8, np.float32)}


def train(workdir, rows, most=2, steps=STEPS, mesh=None, check_replicas=0, evaluators=()):
    workdir.mkdir(exist_ok=True)
    data = loop.Data(rows, held_out, records=100, name=str, max_bad_fraction=0.0)
    mesh = mesh or shard.make_mesh(data=1, devices=jax.devices()[:1])
    stage, intervals = make_stage(), loop.Intervals(**steps)
    programs = step_lib.programs(stage, {"line": ADAM}, mesh=mesh, total=intervals.total)
    limits = dict(max_bad_steps=3, max_loss_spike=20.0, check_replicas=check_replicas)
    settings = loop.Settings(workdir, intervals, batch_size=8, **limits)
    evaluators = held_out_lib.HeldOutRecords(stage, held_out, mesh), *evaluators
    parts = stage, data, programs, settings, evaluators
    session = lambda history: loop.train(trainer.Trainer(*parts, history, phases.Phases()))
    rollback.with_rollbacks(session, workdir, most)


NANS = dict.fromkeys(range(31, 35), np.nan)
JUMP = {33: 1e4}


@pytest.mark.parametrize(("poison", "end", "why"), [(NANS, 35, "is nan"), (JUMP, 34, "spike")])
def test_a_run_goes_back_and_past_the_bad_data(poison, end, why, tmp_path):
    rows = Rows(poison)
    train(tmp_path / "run", rows)
    (line,) = disk.read_jsonl(tmp_path / "run" / "rollbacks.jsonl")
    assert (line["step"], line["from"], line["offset"]) == (30, end, end - 30)
    assert why in line["reason"]
    assert rows.seen == list(range(end + 30)), "each batch once, the bad ones too"
    lines = disk.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "line/loss" in line] == list(range(2, 62, 2))
    assert all(line["error"] < 0.1 for line in lines if "error" in line)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollback") / "uncut"
    train(folder, Rows(JUMP))
    return folder


@pytest.mark.parametrize("cut", [(20, 33), (34, 34 + 2), (34 + 8, 34 + 20)])
def test_a_run_that_was_cut_around_its_rollback_equals_the_uncut_one(cut, uncut, tmp_path):
    rows = Rows(JUMP, cut)
    for _ in cut:
        with pytest.raises(errors.Preempted):
            train(tmp_path / "cut", rows)
    train(tmp_path / "cut", rows)
    assert_the_same(tmp_path / "cut", uncut)
    lines = [disk.read_jsonl(run / "rollbacks.jsonl") for run in (tmp_path / "cut", uncut)]
    assert lines[0] == lines[1] and len(lines[0]) == 1


def test_rollbacks_are_counted_over_all_sessions_and_come_to_an_end(tmp_path):
    hopeless = dict.fromkeys(range(31, 999), np.nan)
    for _ in range(2):
        with pytest.raises(errors.RunError, match=r"error is nan .*Rolled back 2 time") as raised:
            train(tmp_path / "run", Rows(hopeless))
        assert "config.max_rollbacks=2" in str(raised.value)
    assert len(disk.read_jsonl(tmp_path / "run" / "rollbacks.jsonl")) == 2
    with pytest.raises(errors.RunError, match=r"Rolled back 0 time"):
        train(tmp_path / "none", Rows(hopeless), most=0)


def test_without_a_checkpoint_before_it_the_run_begins_anew_past_the_bad_data(tmp_path):
    rows = Rows({0: np.nan, 1: np.nan, 2: np.nan, 3: np.nan})
    train(tmp_path / "run", rows)
    (line,) = disk.read_jsonl(tmp_path / "run" / "rollbacks.jsonl")
    assert (line["step"], line["offset"]) == (0, 4) and rows.seen == list(range(64))


def spikes(values, limit=10.0, **kwargs):
    """The first step whose value is called a spike, or None."""
    watch = rollback.Spikes("e", limit, 0, **kwargs)
    for step, value in enumerate(values, 1):
        try:
            watch.check(step, {} if value is None else {"e": value})
        except rollback.BadSteps as e:
            assert (e.step, e.good) == (step, step - 1)
            return step
    return None


def test_a_spike_stands_out_of_the_noise_before_it_and_a_trend_does_not():
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=200)
    assert spikes([*noise, 3.0]) == 201
    assert spikes(noise) is None
    assert spikes([*noise, 3.0], limit=0) is None, "0 bears all"
    assert spikes(np.linspace(5, 1, 200)) is None and spikes(np.geomspace(5, 1e-3, 200)) is None
    assert spikes([*[1.0] * 20, 1.4]) is None, "half of them: within FLOOR"
    assert spikes([*[1.0] * 20, None, 1.6]) == 22
    assert spikes([1.0] * 5 + [9.0]) is None, "too few to compare with"


def test_a_spike_does_not_move_what_it_is_compared_with():
    # One that is borne (limit) may come again: the median hardly knows of it.
    assert spikes([*[1.0] * 20, 1.4, 1.4, 1.4, 2.0]) == 24


def test_what_spikes_are_compared_with_is_resumed():
    watch = rollback.Spikes("e", 10.0, 0)
    for step in range(1, 60):
        watch.check(step, {"e": 1.0})
    state = watch.meta()
    assert len(state["spikes"]["values"]) == rollback.WINDOW
    with pytest.raises(rollback.BadSteps) as raised:
        rollback.Spikes("e", 10.0, 60, state).check(61, {"e": 2.0})
    assert raised.value.good == 59


def test_a_run_whose_folder_is_gone_ends(tmp_path):
    run = tmp_path / "run"

    class Vandal(loop.Evaluator):
        def __call__(self, step, params, frozen):
            run.rename(tmp_path / "elsewhere")
            return {}

    with pytest.raises(errors.RunError, match=r"run/parameters.txt has vanished"):
        train(run, Rows({}), evaluators=[Vandal()])


def test_a_run_without_a_readable_checkpoint_says_so_and_keeps_its_records(tmp_path, caplog):
    run = tmp_path / "run"
    train(run, Rows({}))
    before = (run / "metrics.jsonl").read_bytes()
    for step in (run / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(step / "state")
    train(run, Rows({}))
    assert (
        (run / "metrics.jsonl.old").read_bytes() == before == (run / "metrics.jsonl").read_bytes()
    )
    assert "training starts again at step 0" in caplog.text and ".corrupt" in caplog.text
