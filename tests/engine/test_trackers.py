"""Trackers, by a module with the functions that W&B and trackio share; trackio where it is."""

import logging
import sys
import time
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.base.record import Record
from ldm_jax.engine import log, trackers


class Service(types.ModuleType):
    """Records what it is called with; `broken` names a function that raises, `seconds` delays."""

    def __init__(self, broken="", seconds=0.0):
        super().__init__("service")
        self.broken, self.seconds, self.calls = broken, seconds, []
        self.settings, self.mode, self.url = self, "online", "https://..."

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            if name == self.broken:
                raise OSError("no network")
            if name == "log":
                time.sleep(self.seconds)
            self.calls.append((name, args, kwargs))
            return self

        return call

    def of(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture(params=["wandb", "trackio"])
def name(request):
    return request.param


@pytest.fixture
def service(name, monkeypatch):
    def install(**how):
        monkeypatch.setitem(sys.modules, name, made := Service(**how))
        return made

    return install


def session(name, folder, steps=(), entity=""):
    """What a session of training does with its tracker."""
    config = ConfigDict(dict(seed=1, track=dict(name=name, project="mine", entity=entity)))
    with trackers.tracking(config, Record(folder)) as sinks:
        logs = log.Log(folder, start=0, total=9, sinks=sinks)
        for step in steps:
            logs.write("metrics.jsonl", step, {"loss": step / 10})
        logs.images(1, "samples", np.zeros((2, 8, 8, 3)), 2)
        logging.getLogger("ldm_jax.engine").error("ALARM: %s", "hot")
        logs.close()


def test_a_tracker_sees_config_numbers_pictures_and_alarms(name, service, tmp_path):
    fake = service()
    session(name, tmp_path / "run", steps=(2, 4))
    ((_, given),) = fake.of("init")
    assert given["config"]["seed"] == 1 and given["project"] == "mine"
    numbers = [args[0] | kwargs for args, kwargs in fake.of("log")]
    assert [(n["step"], n["loss"]) for n in numbers[:2]] == [(2, 0.2), (4, 0.4)]
    ((picture,), _) = fake.of("Image")[0]
    assert picture.dtype == np.uint8 and numbers[2]["samples"] is fake
    assert fake.of("alert")[0][0][-1] == "ALARM: hot" and len(fake.of("finish")) == 1


def test_a_resumed_run_stays_one_curve_and_its_steps_may_come_again(name, service, tmp_path):
    fake = service()
    session(name, tmp_path / "run", steps=(1, 2, 3))
    session(name, tmp_path / "run", steps=(2, 3))
    session(name, tmp_path / "other")
    key = dict(wandb="id", trackio="name")[name]
    first, again, other = [given[key] for _, given in fake.of("init")]
    assert first == again != other
    assert all(given["resume"] == "allow" for _, given in fake.of("init"))
    lines = [args[0] | kwargs for args, kwargs in fake.of("log")]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 2, 3]
    if name == "wandb":  # else it drops steps that are not above its own
        assert fake.of("define_metric")[0] == (("*",), {"step_metric": "step"})


@pytest.mark.parametrize("broken", ["init", "log", "finish", "Image"])
def test_a_tracker_that_fails_costs_a_line(name, service, broken, tmp_path, caplog):
    service(broken=broken)
    session(name, tmp_path, steps=range(1, 400))
    warnings = [r.getMessage() for r in caplog.records if r.name == trackers.__name__]
    assert len(warnings) == 1 and "no network" in warnings[0], warnings
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 399


def test_a_slow_tracker_slows_nothing(service, name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "FAREWELL", 0.2)
    service(seconds=5.0)
    sink = trackers.OffThread(name, lambda: trackers.TRACKERS.call(name, "id", "a", tmp_path, {}))
    begin = time.monotonic()
    for step in range(5 * trackers.WAITING):
        sink.numbers(step, {"loss": 1.0})
    sink.close(False)
    assert time.monotonic() - begin < 2.0
    assert caplog.text.count("slower than the run") == 1


def test_why_a_session_failed_is_told(service, name, tmp_path):
    fake = service()
    config = ConfigDict(dict(track=dict(name=name, project="p", entity="")))
    for error, code in ((errors.RunError("all NaN"), 1), (errors.Restart("moved"), 0)):
        with pytest.raises(type(error)), trackers.tracking(config, Record(tmp_path)):
            raise error
        assert fake.of("alert")[-1][0][-1] == str(error)
        assert name != "wandb" or fake.of("finish")[-1][1] == {"exit_code": code}


@trackers.TRACKERS.register("absent")
class Absent(trackers.Tracker):
    package = "no_package_of_this_name"


@pytest.mark.parametrize(
    "track, word",
    [
        (dict(name="absent"), "pip install no_package_of_this_name"),
        (dict(name="wanb"), "did you mean 'wandb'"),
        (dict(name="trackio", entity="me"), "entity=me does nothing with tracker 'trackio'"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(track, word):
    with pytest.raises(errors.UsageError, match=word):
        trackers.check(**track)
    trackers.check("", entity="me")


def test_trackio_itself_keeps_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    trackio = pytest.importorskip("trackio")
    session("trackio", tmp_path / "run", steps=(1, 2, 3))
    session("trackio", tmp_path / "run", steps=(2, 3, 4))
    (run,) = trackio.Api().runs("mine")
    assert run.name == f"run-{Record(tmp_path / 'run').tracker['trackio']}"
