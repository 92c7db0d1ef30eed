"""What the log warns of while a stage trains."""

import dataclasses

import pytest
import test_rollback


@pytest.mark.parametrize(("bound", "times"), [(0.0, 1), (1e9, 0)])
def test_a_metric_above_its_bound_is_warned_of_once(bound, times, tmp_path, monkeypatch, capfd):
    alarms = {"error": (bound, "look at the data")}
    stage = dataclasses.replace(test_rollback.make_stage(), alarms=alarms)
    monkeypatch.setattr(test_rollback, "make_stage", lambda: stage)
    steps = {"total": 6, "log": 2, "eval": 6, "checkpoint": 6}
    test_rollback.train(tmp_path / "run", test_rollback.Rows({}), steps=steps)
    said = "".join(capfd.readouterr())
    assert said.count("look at the data") == times
