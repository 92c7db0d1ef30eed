"""Two real processes with four devices each train as one process with eight, and leave together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import compiling
import numpy as np
import pytest
from test_resume import PATIENCE, assert_the_same, lines, wait_until

from launch.job import restartable
from ldm_jax.base import disk
from ldm_jax.engine import hosts

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICES = 8
SETTINGS = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "latents.batches=1"]
SETTINGS += ["steps.total=10", "steps.log=3", "steps.eval=10", "steps.checkpoint=5"]
SETTINGS += ["eval.records=8", "eval.batch_size=8"]


def command(workdir, *settings, devices=DEVICES) -> list[str]:
    config = [f"--config.{setting}" for setting in (*SETTINGS, *settings)]
    train = [sys.executable, "-m", "ldm_jax.train", f"--config={ROOT}/configs/debug.py:ldm"]
    return [*train, f"--workdir={workdir}", f"--devices=cpu:{devices}", *config]


@contextlib.contextmanager
def session(workdir, count: int, commands=None, devices=DEVICES):
    """The processes of one job, killed at the end where they still live."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // count}"
    env = os.environ | {"XLA_FLAGS": f"{flags} {compiling.FAST}"}
    env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    processes = [
        subprocess.Popen(
            commands[host] if commands else command(workdir),
            cwd=ROOT,
            env=env | {"JAX_PROCESS_ID": str(host)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def end(processes) -> tuple[list[int], list[str]]:
    """Exit codes and last lines."""
    errs = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    return [p.returncode for p in processes], [(err.splitlines() or [""])[-1] for err in errs]


def to_the_end(workdir, count: int):
    with session(workdir, count) as processes:
        codes, last = end(processes)
        assert codes == [0] * count, last


@pytest.mark.slow
def test_two_hosts_train_as_one_and_leave_together(tmp_path):
    one, two, cut = tmp_path / "one", tmp_path / "two", tmp_path / "cut"
    to_the_end(one, 1)
    to_the_end(two, 2)
    assert (one / "latents.json").read_bytes() == (two / "latents.json").read_bytes()
    pairs = zip(*((run / "metrics.jsonl").read_text().splitlines() for run in (one, two)))
    for alone, together in pairs:
        alone, together = json.loads(alone), json.loads(together)
        assert alone.keys() == together.keys()
        np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-5)

    with session(cut, 2) as processes:
        wait_until(lambda: lines(cut) >= 1, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        codes, last = end(processes)
    assert codes == [42, 42], last
    assert last[0] == last[1] and last[0].startswith("ldm_jax: SIGTERM at step"), last
    to_the_end(cut, 2)
    assert_the_same(cut, two)


@pytest.mark.slow
def test_two_hosts_start_from_what_one_measured(tmp_path):
    settings = ["model.shortcut=linear", "steps.total=4", "steps.log=1", "steps.eval=4"]
    settings += ["steps.checkpoint=4", "eval.records=8", "eval.batch_size=8"]
    for count in (1, 2):
        argv = [sys.executable, "-m", "ldm_jax.train", f"--workdir={tmp_path / str(count)}"]
        argv += [f"--config={ROOT}/configs/debug.py:first_stage"]
        argv += [f"--config.{setting}" for setting in settings]
        with session(tmp_path / str(count), count, [argv] * count) as processes:
            codes, last = end(processes)
            assert codes == [0] * count, last
    one, two = tmp_path / "1", tmp_path / "2"
    for name in ("start.json", "rival.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    both = (disk.read_jsonl(run / "metrics.jsonl") for run in (one, two))
    for alone, together in zip(*both, strict=True):
        assert together["step"] == alone["step"]
        if "l1" in alone:
            assert together["l1"] == pytest.approx(alone["l1"], rel=1e-4)


@pytest.mark.slow
def test_parameters_shared_among_hosts_do_not_make_them_wait_for_ever(tmp_path):
    # Met at the first checkpoint, where a program per leaf summed over the hosts, all in flight.
    settings = ["mesh.data=1", "mesh.fsdp=8", "model.width=32"]
    with session(tmp_path, 2, [command(tmp_path / "run", *settings)] * 2) as processes:
        codes, last = end(processes)
    assert codes == [0, 0], last


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_dies_or_freezes_brings_the_others_down_in_a_minute(blow, tmp_path):
    run = tmp_path / "run"
    with session(run, 2, [command(run, "steps.total=1000")] * 2) as processes:
        wait_until(lambda: lines(run) >= 1, processes[0])
        processes[1].send_signal(blow)
        begin = time.monotonic()
        _, err = processes[0].communicate(timeout=PATIENCE)
        seconds = time.monotonic() - begin
    code = processes[0].returncode
    assert restartable(code), err
    assert seconds < hosts.HEARTBEAT + 30, err
    print(f"{blow.name}: down with {code} after {seconds:.0f} s")


# A host whose main thread gets stuck at SIGUSR1, while the rest of it lives.
MAY_STICK = """
import signal, sys, threading
signal.signal(signal.SIGUSR1, lambda *args: threading.Event().wait())
from ldm_jax import cli, train
cli.start(train.__doc__, train.FLAGS, train.main, sys.argv[1:])
"""
# Lines of the log after which it comes; what a step usually takes is known after twenty phases.
BLOWS = {"killed": (signal.SIGKILL, 2), "frozen": (signal.SIGSTOP, 2)}
BLOWS |= {"stuck": (signal.SIGUSR1, 5), "preempted": (signal.SIGTERM, 2)}


@pytest.mark.slow
def test_four_hosts_that_are_killed_frozen_stuck_and_preempted_leave_no_trace(tmp_path):
    settings = ["steps.total=30", "steps.log=2", "steps.eval=30", "limits.stuck=15"]
    settings += ["check_replicas=4"]

    def four(run):
        train, flags = command(run)[:3], command(run, *settings, devices=4)[3:]
        sticky = [sys.executable, "-c", MAY_STICK]
        return session(run, 4, [[*train, *flags]] * 3 + [[*sticky, *flags]], devices=4)

    def to_the_end(run):
        with four(run) as processes:
            codes, last = end(processes)
            assert codes == [0] * 4, last

    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    to_the_end(uncut)
    for name, (blow, more) in BLOWS.items():
        with four(cut) as processes:
            begin, enough = time.monotonic(), lines(cut) + more
            wait_until(lambda enough=enough: lines(cut) >= enough, processes[0])
            back = time.monotonic() - begin
            processes[3].send_signal(blow)
            begin = time.monotonic()
            codes, last = end(processes[:3])
            down = time.monotonic() - begin
            print(f"{name}: on its way in {back:.0f} s, down in {down:.0f} s with {codes}, {last}")
            assert all(map(restartable, codes)), last
            assert down < hosts.HEARTBEAT + 30, last
            if name == "preempted":
                assert codes == [42] * 3 and last[0].startswith("ldm_jax: SIGTERM at step"), last
    to_the_end(cut)
    assert_the_same(cut, uncut)


@pytest.mark.slow
def test_hosts_go_back_together_and_end_alike(tmp_path):
    run = tmp_path / "run"
    settings = ["optim.denoiser.lr=1e30", "max_bad_steps=0", "max_rollbacks=1"]
    with session(run, 2, [command(run, *settings)] * 2) as processes:
        codes, last = end(processes)
    assert codes == [1, 1] and last[0] == last[1], last
    assert "Rolled back 1 time" in last[0]
    (line,) = disk.read_jsonl(run / "rollbacks.jsonl")
    assert line["step"] == 0 and line["offset"] == line["from"]


@pytest.mark.slow
def test_hosts_with_other_configs_refuse_alike(tmp_path):
    commands = [command(tmp_path), command(tmp_path, "batch_size=16")]
    with session(tmp_path, 2, commands) as processes:
        codes, last = end(processes)
    assert codes == [2, 2] and last[0] == last[1]
    assert "The hosts differ in their config" in last[0]
