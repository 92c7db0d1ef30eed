"""What a machine does to a run: a disk that is really full, and the doctor who warns of it."""

import errno
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

import compiling
import numpy as np
import pytest
from calling import call

from ldm_jax import (
    adherence,
    check_data,
    cli,
    convert,
    doctor,
    encode,
    evaluate,
    sample,
    sweep,
    train,
)
from ldm_jax.base import disk, errors
from ldm_jax.cost import machine
from ldm_jax.jobs import outputs

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "latents.scale=1.0"]
TINY += ["steps.total=12", "steps.log=4", "steps.eval=12", "steps.checkpoint=4"]
TINY += ["eval.records=8", "eval.batch_size=8"]
FLAGS = [f"--config={ROOT}/configs/debug.py:ldm", *(f"--config.{setting}" for setting in TINY)]


def own_mounts() -> bool:
    """Whether this user may mount file systems that nobody else sees."""
    tool = shutil.which("unshare")
    probe = [tool, "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(tool) and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not own_mounts(), reason="needs a file system of its own")
def test_on_a_full_disk_training_goes_on_and_keeps_what_is_finished(tmp_path):
    """A checkpoint takes 1.3 MB of 2.5: the first one fits, the next ones do not."""
    train = [sys.executable, "-m", "ldm_jax.train", *FLAGS, f"--workdir={tmp_path}/disk/run"]
    script = 'mount -t tmpfs -o size=2500k tmpfs "$1/disk" && shift && "$@"; code=$?; cp -r '
    script += f'"{tmp_path}/disk/run" "{tmp_path}/left"; exit $code'
    (tmp_path / "disk").mkdir()
    argv = ["unshare", "-rm", "bash", "-c", script, "bash", str(tmp_path), *train]
    env = os.environ | {"XLA_FLAGS": compiling.FAST}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert "ALARM: a checkpoint was NOT saved" in done.stderr
    assert "Step 12 is done but not saved" in done.stderr.splitlines()[-1]
    left = tmp_path / "left"
    assert [p.name for p in (left / "checkpoints").iterdir() if p.name.isdecimal()] == ["4"]
    lines = disk.read_jsonl(left / "metrics.jsonl")
    assert [line["step"] for line in lines if "denoiser/loss" in line] == [4, 8, 12]


@pytest.fixture(params=["under a file", "read-only"])
def unwritable(request, tmp_path, monkeypatch):
    """A folder that nobody can write to, root included."""
    if request.param == "under a file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "out", "Not a directory"
    (tmp_path / "mount").mkdir()
    really = tempfile.TemporaryFile

    def on_a_read_only_mount(*args, dir, **kwargs):
        if pathlib.Path(dir) == tmp_path / "mount":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return really(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", on_a_read_only_mount)
    return tmp_path / "mount" / "deep" / "out", "Read-only file system"


def test_a_folder_that_cannot_be_written_is_one_line(unwritable, tmp_path, refused):
    out, why = unwritable
    sweep_config = f"--sweep={ROOT}/configs/sweeps/downsampling.py:tiny"
    commands = [
        (train, ["--workdir", *FLAGS]),
        (sample, ["--out", "--run=any"]),
        (encode, ["--out", "--run=any"]),
        (evaluate, ["--out", "--run=any"]),
        (sweep, ["--workdir", sweep_config]),
        (adherence, ["--out", "--run=any"]),
        (check_data, ["--out", *FLAGS]),
    ]
    for command, (flag, *rest) in commands:
        line = refused(call(command, f"{flag}={out}", *rest))
        assert f"{flag}={out} cannot be written" in line and why in line
    assert convert.run(["export", "--run=any", f"--out={out}"]) == 2
    assert f"--out={out.parent} cannot be written" in refused(2)
    assert list(tmp_path.iterdir()) in ([tmp_path / "file"], [tmp_path / "mount"])


def test_a_bucket_is_not_taken_for_a_folder(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, flag in ((train, "--workdir"), (sample, "--out"), (encode, "--out")):
        rest = FLAGS if command is train else ["--run=any"]
        line = refused(call(command, f"{flag}=s3://bucket/run", *rest))
        assert f"{flag}=s3://bucket/run: mount the bucket" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not own_mounts(), reason="needs a file system of its own")
def test_a_read_only_file_system_is_one_line(tmp_path):
    train = [sys.executable, "-m", "ldm_jax.train", *FLAGS, f"--workdir={tmp_path}/run"]
    argv = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs -o ro none "$0" && "$@"', str(tmp_path)]
    done = subprocess.run([*argv, *train], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Read-only file system" in done.stderr


def test_storage_that_fails_in_the_midst_of_a_command_is_one_line(refused, tmp_path):
    def main(args, overrides):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x.npy"))

    code = cli.run("", {}, main, [])
    assert refused(code, 1) == f"ldm_jax: {tmp_path}/x.npy: No space left on device"


@pytest.mark.parametrize("name", outputs.FORMATS.names())
def test_what_a_full_disk_does_not_take_is_named_and_leaves_no_half(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"written|too large") as e:
            outputs.FORMATS.get(name).write(tmp_path, outputs.Shard(0, 0, 2), images, [{}] * 2, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert e.value.errno in errors.STORAGE and e.value.filename.startswith(str(tmp_path))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("XLA: Ran out of memory in hbm")])
def test_too_little_memory_is_one_line(error, refused):
    def main(args, overrides):
        raise error

    assert "take a smaller batch" in refused(cli.run("", {}, main, []), 1)


def test_streams_may_be_closed_or_take_ascii_alone(monkeypatch):
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, "ascii"))
    refusal = cli.run("", {}, None, ["\u0661\udcff"])
    assert refusal == 2 and said.getvalue().startswith(b"ldm_jax: ")
    sys.stdout.write("goes nowhere")


def test_the_doctor_finds_a_sound_machine_sound(tmp_path, capfd):
    assert call(doctor, *FLAGS, f"--workdir={tmp_path}", "--devices=cpu:8") == 0
    words = [line.split()[:2] for line in capfd.readouterr().out.splitlines()]
    names = ["versions", "devices", "workdir", "record", "step"]
    assert words == [["ok", name] for name in names]
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_the_doctor_names_what_is_wrong_and_goes_on(tmp_path, capfd):
    (tmp_path / "file").touch()
    argv = [f"--workdir={tmp_path}/file", "--devices=tpu:4", *FLAGS, "--config.data.source=folder"]
    assert call(doctor, *argv, "--config.batch_size=3") == 1
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["ok", *["FAILED"] * 4]
    assert "--devices=tpu:4, but JAX found 8 cpu" in out and "cannot be written" in out
    assert "4 of 5 checks failed: devices, workdir, record, step" in err


def test_the_doctor_weighs_checkpoints_against_the_disk(tmp_path):
    with pytest.raises(errors.RunError, match="4 checkpoints take"):
        machine.disk_for(2**60, tmp_path)
    assert "1.00 GiB" in machine.disk_for(2**30, None)
    with pytest.raises(errors.RunError, match="all snapshots of averages take"):
        machine.disk_for(2**30, tmp_path, snapshots=2**60)


def test_a_run_says_where_its_time_went(pixel_run):
    report = json.loads((pixel_run / "summary.json").read_text())["goodput"]
    assert report["sessions"] == 1 and 0 < report["productive_fraction"] < 1
    assert report["compile_seconds"] > 0 and report["eval_seconds"] > 0


@pytest.mark.slow
def test_ten_minutes_of_chaos_differ_in_no_byte():
    """tests/chaos.py, whose output has the seed and, where a promise breaks, the whole story."""
    command = [sys.executable, str(ROOT / "tests" / "chaos.py"), "--minutes=10"]
    assert subprocess.run(command, cwd=ROOT, timeout=3600).returncode == 0
