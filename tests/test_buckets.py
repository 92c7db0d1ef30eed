"""Runs on gs://, against a small server of Google's API over a real connection."""

import json
import os
import pathlib
import time

import fake_gcs
import pytest
from calling import call

from ldm_jax import evaluate, sample, train
from ldm_jax.base import errors, owner, remote
from ldm_jax.cost import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "steps.total=6"]
FLAGS += ["steps.log=1", "steps.eval=6", "steps.checkpoint=2", "eval.records=8"]
FLAGS += ["latents.batches=1"]
URL = "gs://runs/some/run"


@pytest.fixture(scope="module")
def server():
    """Where the libraries look for Google's storage."""
    server = fake_gcs.serve()
    before = dict(os.environ)
    os.environ |= {
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "STORAGE_EMULATOR_HOST": server.url,
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    yield server
    server.shutdown()
    os.environ.clear()
    os.environ.update(before)


def run(workdir) -> int:
    remote._mirrors.clear()  # as a process that was never here
    argv = [f"--config={ROOT}/configs/debug.py:ldm", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in FLAGS))


def names(server, within):
    prefix = f"some/run/{within}"
    return sorted(n for b, n in server.objects if b == "runs" and n.startswith(prefix))


def read(server, name) -> bytes:
    return server.objects["runs", f"some/run/{name}"]


@pytest.fixture(scope="module")
def trained(server):
    assert run(URL) == 0
    return {name: read(server, name) for name in ("metrics.jsonl", "config.json", "latents.json")}


def test_a_run_on_a_bucket_is_what_it_is_on_a_disk(trained, server, tmp_path):
    assert run(tmp_path / "run") == 0
    for name, content in trained.items():
        assert content == (tmp_path / "run" / name).read_bytes(), name
    assert json.loads(read(server, "summary.json"))["steps"] == 6
    assert names(server, "images/") and not names(server, ".ldm_jax")


@pytest.mark.slow
def test_it_goes_on_from_an_empty_machine_through_errors_and_damage(trained, server, caplog):
    """The last step is lost, the one before has flipped bits, and requests fail now and then."""
    for name in names(server, "checkpoints/6/"):
        del server.objects["runs", name]
    for name in names(server, "checkpoints/4/state/"):
        damaged = bytearray(server.objects["runs", name])
        if len(damaged) > 4096:  # data, in whatever files this orbax keeps it
            damaged[len(damaged) // 2] ^= 16
            server.put("runs", name, damaged)
    server.failures = 3
    for name in ("config.json", "data.txt", "latents.json"):
        assert names(server, name)
    code = run(URL)
    # No sound step is left: the older ones were deleted by the rule keep=2.
    assert code == 0 and server.failed >= 3
    assert "Checkpoint 4 is corrupt" in caplog.text and names(server, "checkpoints/4.corrupt/")
    assert {name: read(server, name) for name in trained} == trained


@pytest.mark.slow
def test_pictures_are_drawn_from_a_bucket_into_one(trained, server):
    remote._mirrors.clear()
    argv = [f"--run={URL}", "--out=gs://runs/pictures", "--num=8", "--batch_size=8", "--steps=2"]
    assert call(sample, *argv) == 0
    drawn = sorted(n for b, n in server.objects if n.startswith("pictures/"))
    assert "pictures/summary.json" in drawn and any(n.endswith((".npz", ".png")) for n in drawn)


def test_doctor_says_of_a_bucket_what_it_says_of_a_folder(server):
    server.forbidden.add("theirs")
    assert "can be read and written" in machine.writable("gs://runs/other")
    with pytest.raises(errors.UsageError, match=r"gs://theirs/x cannot be written .*403"):
        machine.writable("gs://theirs/x")


def test_workers_who_would_not_see_one_another_are_refused(refused):
    argv = ["--run=any", "--out=gs://runs/pictures", "--num=8", "--worker=0/2"]
    assert "mount the bucket" in refused(call(sample, *argv))


@pytest.mark.parametrize("command, flag", [(train, "workdir"), (evaluate, "run")])
def test_a_bucket_that_refuses_is_said_before_anything_is_done(server, command, flag, capfd):
    server.forbidden.add("theirs")
    rest = [f"--config={ROOT}/configs/debug.py:ldm"] if command is train else []
    assert call(command, f"--{flag}=gs://theirs/run", *rest) == 2
    line = capfd.readouterr().err.splitlines()[-1]  # Google's library may have a word before
    assert "ldm_jax: gs://theirs/run cannot be" in line and "rights" in line


def test_a_lease_is_renewed_given_back_and_taken_from_a_silent_owner(server, monkeypatch):
    monkeypatch.setattr(owner, "LEASE", 1.5)
    monkeypatch.setattr(owner, "RENEWAL", 0.3)
    folder, key = remote.local("gs://runs/leased", write=True), ("runs", "leased/.owner")
    with owner.of("--workdir", folder):
        first = server.generations[key]
        elsewhere = json.loads(server.objects[key]) | {"system": "another"}
        monkeypatch.setattr(owner, "_own", set())
        with pytest.raises(errors.UsageError) as e, owner.of("--workdir", folder):
            pass
        assert f"gs://runs/leased is in use: process {os.getpid()} on" in str(e.value)
        time.sleep(0.6)
        assert server.generations[key] > first
    assert key not in server.objects
    server.put(*key, json.dumps(elsewhere).encode())
    with owner.of("--workdir", folder):
        assert json.loads(server.objects[key])["system"] != "another"
