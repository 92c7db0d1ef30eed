"""A folder has one owner, which ends with its process."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ldm_jax.base import errors, owner

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLD = """
import sys
from ldm_jax.base import owner
with owner.of("--workdir", sys.argv[1], *sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


def other(folder, *worker):
    """A process that holds `folder`."""
    given = [sys.executable, "-c", HOLD, str(folder), *worker]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(given, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_with_who_holds_it_until_the_first_is_killed(tmp_path):
    process = other(tmp_path)
    for worker in ("", "0/2"):
        with pytest.raises(errors.UsageError) as e, owner.of("--workdir", tmp_path, worker):
            pass
        assert f"process {process.pid} on " in str(e.value) and "\n" not in str(e.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with owner.of("--workdir", tmp_path), owner.of("--workdir", tmp_path):  # once more by itself
        assert str(os.getpid()) in (tmp_path / owner.NAME).read_text()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink(os.devnull, path)])
def test_what_is_no_file_is_no_lock(tmp_path, make):
    make(tmp_path / owner.NAME)
    with pytest.raises(errors.UsageError, match="no regular file"), owner.of("--out", tmp_path):
        pass


def test_workers_share_a_folder_each_with_its_own_part(tmp_path):
    process = other(tmp_path, "0/2")
    with owner.of("--out", tmp_path, "1/2"):
        pass
    for worker in ("0/2", ""):
        with pytest.raises(errors.UsageError) as e, owner.of("--out", tmp_path, worker):
            pass
        assert f"is in use: process {process.pid} on" in str(e.value)
    process.kill()
    process.wait()
