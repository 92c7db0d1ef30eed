"""Snapshots of averages: taken while a run of one weight trains, cut and rolled back, and read."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollback import Rows, held_out, make_stage

from ldm_jax.base import errors, record, shard, tree
from ldm_jax.engine import checkpoint, inherit, loop, phases, rollback, snapshots, trainer
from ldm_jax.engine import step as step_lib
from ldm_jax.evaluation import held_out as held_out_lib

STEPS = {"total": 40, "log": 4, "eval": 40, "checkpoint": 15}
LINE = {"name": "adam", "lr": 0.02, "average": "power", "ema": (0.05, 0.10)}
NUMBER = 8  # every 5 steps


class Killed(Exception):
    pass


class KilledRows(Rows):
    """SIGKILL, as far as one process can play it, before the batch `kill`."""

    def __init__(self, kill=None, **given):
        super().__init__(**({"poison": {}} | given))
        self.kill = kill

    def __call__(self, number):
        for batch in super().__call__(number):
            if self.seen[-1] == self.kill:
                self.kill = None
                raise Killed
            yield batch


def train(workdir, rows=None, line=LINE, number=NUMBER, seen=None):
    """A session, with rollbacks; seen: a list that gets (step, state) of the newest trainer."""
    workdir.mkdir(exist_ok=True)
    record.Record(workdir).write_config({"optim": {"line": line}})
    data = loop.Data(rows or KilledRows(), held_out, records=100, name=str, max_bad_fraction=0.0)
    mesh = shard.make_mesh(data=1, devices=jax.devices()[:1])
    stage, intervals = make_stage(), loop.Intervals(**STEPS)
    programs = step_lib.programs(stage, {"line": line}, mesh=mesh, total=intervals.total)
    settings = loop.Settings(workdir, intervals, batch_size=8, max_bad_steps=3, snapshots=number)
    parts = stage, data, programs, settings, (held_out_lib.HeldOutRecords(stage, held_out, mesh),)

    def session(history):
        run = trainer.Trainer(*parts, history, phases.Phases())
        loop.train(run)
        if seen is not None:
            seen.append(run.state)

    rollback.with_rollbacks(session, workdir, 2)


def taken(workdir) -> dict:
    """{step: the bytes of every leaf} of the snapshots."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    steps = checkpoint.finished(workdir, snapshots.FOLDER)
    with checkpoint.reading(workdir, snapshots.FOLDER) as part:
        found = {step: part(step, lambda saved: shard.abstract(saved, place)) for step in steps}
    return {
        step: {name: np.asarray(leaf).tobytes() for name, leaf in tree.named_leaves(own)}
        for step, own in found.items()
    }


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """(a run, its last state)."""
    workdir, states = tmp_path_factory.mktemp("snapshots") / "uncut", []
    train(workdir, seen=states)
    return workdir, states[-1]


def test_they_hold_the_averages_at_equal_distances(uncut):
    workdir, state = uncut
    found = taken(workdir)
    assert list(found) == list(range(5, 41, 5))
    assert found[40] == {
        "line/0.05/w": np.asarray(state["ema"]["line"]["w"]).tobytes(),
        "line/0.1/w": np.asarray(state["longer"]["line"]["0.1"]["w"]).tobytes(),
    }
    assert step_lib.averaged(state)["line"] is state["ema"]["line"], "what evaluators see"


def test_a_run_that_was_killed_has_the_same_snapshots(uncut, tmp_path):
    cut, rows = tmp_path / "cut", KilledRows(kill=26)
    with pytest.raises(Killed):
        train(cut, rows)
    assert max(taken(cut)) == 25 and checkpoint.finished(cut) == [15]
    # What the repeated steps find on disk must not be taken for theirs.
    shutil.copytree(cut / "averages" / "20", cut / "averages" / "24")
    shutil.rmtree(cut / "averages" / "15")  # the kill may have come before it was finished
    train(cut, rows)
    assert taken(cut) == taken(uncut[0])


def test_a_run_that_was_asked_to_stop_has_the_same_snapshots(uncut, tmp_path):
    cut, rows = tmp_path / "cut", KilledRows(cut=[17])
    with pytest.raises(errors.Preempted):
        train(cut, rows)
    assert max(taken(cut)) == 15
    train(cut, rows)
    assert taken(cut) == taken(uncut[0])


def test_a_run_that_went_back_keeps_no_snapshot_of_the_bad_steps(uncut, tmp_path):
    train(tmp_path / "run", KilledRows(poison=dict.fromkeys(range(21, 25), np.nan)))
    found, whole = taken(tmp_path / "run"), taken(uncut[0])
    assert found.keys() == whole.keys()
    assert found[15] == whole[15] and found[20] != whole[20], "other batches from step 15 on"


def test_a_length_that_was_kept_comes_back_and_any_other_is_their_combination(uncut):
    workdir, state = uncut
    read = lambda length: float(snapshots.read_params(workdir, ema=length)[0]["line"]["w"])
    short = float(state["ema"]["line"]["w"])
    long = float(state["longer"]["line"]["0.1"]["w"])
    assert read(0.05) == short and read(0.10) == long
    assert read(0.07) == pytest.approx((short + long) / 2, abs=abs(short - long))
    params, step = snapshots.read_params(workdir, ema=0.07)
    assert step == 40 and params.keys() == {"line"}
    for ema, kind in ((True, "ema"), (False, "params")):
        params, step = snapshots.read_params(workdir, ("line",), ema=ema)
        assert step == 40 and params["line"]["w"] == state[kind]["line"]["w"]


def test_a_combination_is_what_the_same_training_keeps_directly(uncut, tmp_path):
    train(tmp_path / "direct", line=LINE | {"ema": 0.07})
    read = lambda run, ema: float(snapshots.read_params(run, ema=ema)[0]["line"]["w"])
    directly, raw = (read(tmp_path / "direct", ema) for ema in (True, False))
    assert raw == read(uncut[0], False), "an average changes nothing of the training"
    assert abs(read(uncut[0], 0.07) - directly) < 0.01 * abs(directly - raw)


def test_a_damaged_snapshot_is_left_out(uncut, tmp_path, caplog):
    run = shutil.copytree(uncut[0], tmp_path / "run")
    meta = run / "averages" / "30" / "meta" / "metadata"
    meta.write_text(json.dumps({"checksums": {}}))
    whole, without = (snapshots.read_params(path, ema=0.07) for path in (uncut[0], run))
    assert "averages/30 cannot be read" in caplog.text
    assert whole[1] == without[1] == 40
    assert without[0]["line"]["w"] == pytest.approx(float(whole[0]["line"]["w"]), rel=1e-3)


def test_other_runs_start_from_the_average_that_training_evaluated(uncut):
    workdir, state = uncut
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for own in ({}, {"longer": {"line": {"0.1": {"w": jnp.float32(0.0)}}}}):
        fresh = {"params": {"line": {"w": jnp.float32(0.0)}}, "ema": {"line": {"w": jnp.zeros(())}}}
        shapes = shard.abstract(jax.eval_shape(lambda f=fresh, o=own: f | o), place)
        began, _ = inherit.weights(fresh | own, workdir, shapes)
        assert began["ema"]["line"]["w"] == state["ema"]["line"]["w"]
        assert began["params"]["line"]["w"] == state["params"]["line"]["w"]
        assert began.get("longer") == own.get("longer")


@pytest.mark.parametrize(
    ("line", "number", "ema", "words"),
    [
        (LINE, NUMBER, 0.004, "8 snapshots of averages of 0.05, 0.1 miss .* they give 0.0.* to 0."),
        (LINE, NUMBER, 0.3, "ema=0.3 is no length"),
        (LINE, 0, 0.07, "averages/ holds no snapshot.* config.checkpoints.snapshots above 0"),
        (LINE | {"average": "ema", "ema": 0.9}, NUMBER, 0.07, "the run keeps no averages of a le"),
    ],
)
def test_what_a_run_cannot_give_is_refused(line, number, ema, words, uncut, tmp_path):
    run = shutil.copytree(uncut[0], tmp_path / "run")
    record.Record(run).write_config({"optim": {"line": line}})
    if not number:
        shutil.rmtree(run / "averages")
    for ask in (snapshots.check, lambda run, ema: snapshots.read_params(run, ema=ema)):
        with pytest.raises(errors.UsageError, match=words) as caught:
            ask(run, ema)
        assert "\n" not in str(caught.value)
    snapshots.check(run, True)


def test_a_run_of_another_average_takes_none(tmp_path):
    train(tmp_path / "plain", line=LINE | {"average": "ema", "ema": 0.9})
    train(tmp_path / "none", number=0)
    for name in ("plain", "none"):
        assert not (tmp_path / name / "averages").exists()
