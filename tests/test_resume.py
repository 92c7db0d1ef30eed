"""A run that was cut leaves what an uncut one leaves, to the byte. Real processes, real kills."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import compiling
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ldm_jax import cli, train
from ldm_jax.base import tree

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Logging every 7 steps and saving every 10: each checkpoint falls between two lines of the log.
STEPS = {"total": 60, "log": 7, "eval": 30, "checkpoint": 10}
OTHERWISE = {"data.workers": 1, "data.threads": 3, "check_replicas": 9, "max_rollbacks": 1}
OTHERWISE |= {"limits.step": 999, "checkpoints.keep_every": 50}
PATIENCE = 900  # seconds, for a machine that compiles slowly


def arguments(workdir, variant="first_stage", **changes) -> list[str]:
    settings = {f"steps.{k}": v for k, v in STEPS.items()} | changes
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    return [f"--config={ROOT}/configs/debug.py:{variant}", f"--workdir={workdir}", *overrides]


@contextlib.contextmanager
def session(*args, **kwargs):
    """A training process on one device, killed at the end if it still lives."""
    command = [sys.executable, "-m", "ldm_jax.train", *arguments(*args, **kwargs)]
    command.append("--deterministic")  # asks nothing of a CPU, but XLA has to know the flag
    env = os.environ | {"XLA_FLAGS": compiling.FAST}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def to_the_end(*args, **kwargs) -> str:
    with session(*args, **kwargs) as process:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return err


def wait_until(happens, process):
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert process.poll() is None, f"it ended by itself:\n{process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(workdir) -> int:
    file = workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def saved(workdir) -> dict:
    """The bytes of every leaf of the last checkpoint: step, params, opt, ema."""
    folder = max((workdir / "checkpoints").glob("[0-9]*[0-9]"), key=lambda p: int(p.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(folder / "state").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        state = checkpointer.restore(folder / "state", restore_args=plain)
    return {"folder": folder.name} | {
        name: (np.asarray(leaf).dtype, np.asarray(leaf).tobytes())
        for name, leaf in tree.named_leaves(state)
    }


def assert_the_same(cut, uncut):
    a, b = saved(cut), saved(uncut)
    assert a.keys() == b.keys() and any(name.startswith("opt/") for name in a)
    assert not [name for name in a if a[name] != b[name]]
    assert (cut / "metrics.jsonl").read_bytes() == (uncut / "metrics.jsonl").read_bytes()
    pictures = sorted(p.name for p in (uncut / "images").iterdir())
    assert pictures == sorted(p.name for p in (cut / "images").iterdir())
    for name in pictures:
        assert (cut / "images" / name).read_bytes() == (uncut / "images" / name).read_bytes()


def cut_three_times(cut, **kwargs):
    with session(cut, **kwargs) as process:
        wait_until(lambda: lines(cut) >= 1, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == cli.EXIT_RESTART, err
        assert err.splitlines()[-1].startswith("ldm_jax: SIGTERM at step"), err
    saved_at = int(err.split("SIGTERM at step ")[1].split(":")[0])
    assert (cut / "checkpoints" / str(saved_at)).is_dir()

    with session(cut, **kwargs) as process:  # killed at any moment after its first line
        before = lines(cut)
        wait_until(lambda: lines(cut) > before, process)
        time.sleep(random.uniform(0, 0.3))
        process.kill()

    with session(cut, **kwargs) as process:  # killed in the middle of a save
        stale = set((cut / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        writing = lambda: set((cut / "checkpoints").glob("*.orbax-checkpoint-tmp*")) - stale
        wait_until(writing, process)
        process.kill()

    # On with what may change of a config, as no number depends on it.
    to_the_end(cut, **kwargs | OTHERWISE)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resume") / "uncut"
    to_the_end(workdir)
    return workdir


def test_a_first_stage_cut_three_times_equals_the_uncut_one(uncut, tmp_path):
    cut_three_times(tmp_path / "cut")
    assert_the_same(tmp_path / "cut", uncut)


def test_a_finished_run_stays_as_it_is(uncut, capfd):
    before = saved(uncut), (uncut / "metrics.jsonl").read_bytes()
    to_the_end(uncut)
    assert (saved(uncut), (uncut / "metrics.jsonl").read_bytes()) == before


def test_another_config_in_the_same_workdir_is_refused_with_the_difference(uncut, capfd):
    before = (uncut / "config.json").read_bytes()
    argv = arguments(uncut, batch_size=16, **{"model.width": 16})
    assert cli.run(train.__doc__, train.FLAGS, train.main, argv) == cli.EXIT_USAGE
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "batch_size: 8 -> 16" in err and "model.width: 8 -> 16" in err
    assert "--allow_config_change=batch_size,model.width" in err
    assert (uncut / "config.json").read_bytes() == before


def test_checkpoints_whose_config_was_lost_are_not_trained_on(uncut, tmp_path, capfd):
    lost = shutil.copytree(uncut, tmp_path / "lost")
    (lost / "config.json").unlink()
    assert cli.run(train.__doc__, train.FLAGS, train.main, arguments(lost)) == cli.EXIT_USAGE
    assert "holds checkpoints and no config.json" in capfd.readouterr().err
    assert not (lost / "config.json").exists()


@pytest.mark.slow
def test_a_second_stage_cut_three_times_equals_the_uncut_one(uncut, tmp_path):
    kwargs = {"variant": "ldm", "first_stage": str(uncut)}
    kwargs |= {"model.mult": "(1,)", "model.attention": "()"}
    to_the_end(tmp_path / "whole", **kwargs)
    cut_three_times(tmp_path / "cut", **kwargs)
    assert_the_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_kills_at_twenty_random_moments_leave_no_trace(tmp_path):
    kwargs = {"steps.total": 400, "steps.eval": 200, "steps.checkpoint": 5}
    cut = tmp_path / "cut"
    to_the_end(tmp_path / "uncut", **kwargs)
    for kill in range(20):
        with session(cut, **kwargs) as process:
            before = lines(cut)
            if kill % 5:  # in the midst of training; the others while it starts
                wait_until(lambda before=before: lines(cut) > before, process)
            time.sleep(random.uniform(0, 0.5 if kill % 5 else 10))
            process.kill()
    to_the_end(cut, **kwargs)
    assert_the_same(cut, tmp_path / "uncut")
