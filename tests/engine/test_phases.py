"""The watchdog on a process that is really stuck, and the ledger of where the time went."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from ldm_jax.engine import goodput, phases

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUCK = """
import sys, threading, time
from ldm_jax.engine import phases

def waits_for_ever():
    threading.Event().wait()

with phases.Phases({"step": 0.5, "data": 60}, sys.argv[1]) as phase:
    with phase("data"):
        time.sleep(0.7)
    phase.begin("step")
    waits_for_ever()
"""


def test_a_stuck_process_shows_its_stacks_and_asks_to_be_restarted(tmp_path):
    report, begin = tmp_path / "hang.txt", time.monotonic()
    argv = [sys.executable, "-c", STUCK, str(report)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 42 and time.monotonic() - begin < 30
    for text in (done.stderr, report.read_text()):
        assert "phase 'step' has lasted" in text and "config.limits.step=0.5" in text
        assert "waits_for_ever" in text and "Current thread" in text


AMONG_HOSTS = """
import sys, time
from ldm_jax.engine import hosts, phases

others, told, phases.LONG = {1: "data"}, [], 0.3
hosts.several, hosts.busy, hosts.tell = lambda: True, lambda: others, told.append
with phases.Phases({"step": 60, "stuck": 0.5}, sys.argv[1]) as phase:
    with phase("eval"):
        time.sleep(1)
    phase.begin("step")
    time.sleep(1)  # how long steps take is not known yet
    assert told == ["eval", ""], told
    for _ in range(2 * phases.ENOUGH):
        phase.begin("step")
        time.sleep(0.001)
    time.sleep(2)
    print("waited for the one that reads", flush=True)
    others.clear()
    time.sleep(60)
"""


def test_a_step_that_lasts_is_stuck_when_no_host_is_long_at_anything_else(tmp_path):
    argv, begin = [sys.executable, "-c", AMONG_HOSTS, str(tmp_path / "hang.txt")], time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 42 and time.monotonic() - begin < 40, done.stderr
    assert "waited" in done.stdout and "config.limits.stuck=0.5 and 20 usual steps" in done.stderr


def test_time_is_counted_once_in_the_innermost_phase():
    with phases.Phases() as phase:
        phase.begin("step")
        time.sleep(0.02)
        with phase("eval"):
            time.sleep(0.05)
            with phase("save"):
                time.sleep(0.03)
        time.sleep(0.02)
    for name, least in {"step": 0.04, "eval": 0.05, "save": 0.03, "data": 0.0}.items():
        assert least <= phase.seconds[name] < least + 0.3


def test_a_limit_begins_anew_with_each_phase():
    with phases.Phases({"step": 0.5}) as phase:
        for _ in range(4):
            phase.begin("step")
            time.sleep(0.2)


def test_lost_work_and_the_time_between_sessions_are_told_apart(tmp_path):
    def session(**values):
        return values | {"seconds": {"step": 80.0, "compile": 10.0, "save": 10.0}}

    lines = [
        session(begin=0.0, end=100.0, reached=40, **{"from": 0}),
        session(begin=150.0, end=250.0, reached=70, **{"from": 30}),  # steps 31..40 again
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "goodput.jsonl").write_text(text)
    report = goodput.report(tmp_path)
    assert report["lost_seconds"] == pytest.approx(20) and report["down_seconds"] == 50
    assert report["productive_seconds"] == pytest.approx(140)
    assert report["compile_seconds"] == report["save_seconds"] == 20
    assert report["productive_fraction"] == pytest.approx(140 / 250)
    assert goodput.words(report).startswith("56 % of 4:10 in 2 session(s)")
    assert goodput.report(tmp_path / "none") == {}


def test_a_session_writes_one_line_however_often(tmp_path):
    for first in (0, 7):
        ledger = goodput.Ledger(tmp_path, first, {"step": 1.0}, active=True)
        ledger.write(first)
        ledger.write(first + 9)
    lines = [json.loads(s) for s in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    assert [(line["from"], line["reached"]) for line in lines] == [(0, 9), (7, 16)]
