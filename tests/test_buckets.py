"""Runs on gs://, against a small server of Google's API over a real connection."""

import argparse
import json
import os
import pathlib
import random
import shutil
import threading
import time

import fake_gcs
import numpy as np
import parity
import pytest
from calling import call

from ldm_jax import convert, evaluate, sample, train
from ldm_jax.base import errors, owner, remote, tensorfile
from ldm_jax.cost import machine
from ldm_jax.data import latents
from ldm_jax.jobs import encoding, settings
from ldm_jax.jobs import job as job_lib

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
    os.environ |= fake_gcs.environment(server)
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


def lost_answers(server, seed: int, share: float = 0.05):
    """That share of all requests is refused or cut, before or after it had its effect."""
    random_ = random.Random(seed)
    server.trouble = lambda: random_.choice(
        [*fake_gcs.TROUBLES] * (random_.random() < share) or [""]
    )


@pytest.fixture
def bad_line(server):
    lost_answers(server, seed=1)
    yield
    server.trouble = lambda: ""


def images(first, count):
    return np.arange(first, first + count, dtype=np.uint8)[:, None, None, None] * np.ones(
        (2, 2, 3), "u1"
    )


def work(out, worker=(0, 1), layout=None, dies_at=None) -> bool:
    """Whether a worker of a job, as a process of its own, merges. dies_at: an index."""

    def draw(first, count):
        if first == dies_at:
            raise KeyboardInterrupt
        return images(first, count)

    remote._mirrors.clear()
    folder = remote.local(out, write=True, whole=False)
    job = job_lib.Job(folder, 30, 4, "npz", layout=layout)
    try:
        with settings.owned(folder, worker):
            job.claim({"of": "numbers"})
            job_lib.work(job, worker, draw, lambda i: {"class": i, "fields": [{"class": i}]}, 4)
            with job.merging() as whole:
                if whole:
                    job.finish()
                return whole
    except KeyboardInterrupt:
        return False
    finally:
        remote.settle()


@pytest.mark.parametrize(
    "layout", [None, pytest.param(encoding.Shards({"of": "numbers"}), marks=pytest.mark.slow)]
)
def test_workers_of_a_bucket_merge_what_one_of_a_disk_makes(server, bad_line, tmp_path, layout):
    """One dies, and damage at rest is found by the worker whose shard it is."""
    assert work(tmp_path, layout=layout)
    out, folder = f"gs://runs/{layout is None}", f"{layout is None}/"
    assert not work(out, (0, 2), layout, dies_at=8)
    assert not work(out, (1, 2), layout)
    first = next(
        name for _, name in sorted(server.objects) if name.startswith(f"{folder}images/00000")
    )
    server.put("runs", first, server.objects["runs", first][:-1])
    assert work(out, (0, 2), layout)
    found = {
        n.removeprefix(folder): d for (_, n), d in server.objects.items() if n.startswith(folder)
    }
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."]
    assert found == {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}


def test_what_speaks_of_a_file_is_uploaded_after_it(server):
    """However often it is looked at meanwhile, each record in the bucket has its images there."""
    remote._mirrors.clear()
    folder = pathlib.Path(remote.local("gs://runs/order", write=True, whole=False))
    job, ended, seen = job_lib.Job(folder, 60, 1, "npz"), threading.Event(), []
    put = server.put

    def watched(bucket, name, data):
        if "shards/" in name:
            seen.append(
                ("runs", name.replace("shards", "images").replace("json", "npy")) in server.objects
            )
        return put(bucket, name, data)

    def push():
        while not ended.is_set():
            remote.push()

    server.put, thread = watched, threading.Thread(target=push)
    thread.start()
    try:
        for shard in job.shards:
            job.write(shard, images(shard.begin, 1), [{}])
    finally:
        ended.set()
        thread.join()
        remote.settle()
        server.put = put
    assert len(seen) >= 60 and all(seen)


def test_one_process_at_a_time_is_in_a_block_though_answers_get_lost(server, bad_line, monkeypatch):
    monkeypatch.setattr(owner, "RENEWAL", 0.05)
    monkeypatch.setattr(owner, "POLL", 0.01)
    remote._mirrors.clear()
    folder, inside, most = remote.local("gs://runs/locked", write=True), 0, []

    def enter():
        nonlocal inside
        with owner.lock(folder, "name"):
            inside += 1
            most.append(inside)
            time.sleep(0.2)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_lone_owner_and_workers_refuse_each_other(server, monkeypatch):
    remote._mirrors.clear()
    folder = remote.local("gs://runs/owned", write=True)
    in_use = pytest.raises(errors.UsageError, match="gs://runs/owned is in use")

    def again(worker):
        monkeypatch.setattr(owner, "_own", set())
        return owner.of("--out", folder, worker)

    with again("0/2"), again("1/2"):
        with in_use, again("1/2"):
            pass
        with in_use, again(""):
            pass
    with again(""), in_use, again("0/2"):
        pass
    assert not [name for _, name in server.objects if name.startswith("owned/")]


def test_latents_are_trained_from_where_they_lie(server, bad_line, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = {"data": {"fingerprint": "f"}, "first_stage": {"weights": "w", "run": "r"}}
    layout = encoding.Shards(index | {"of": "numbers"})
    assert work("gs://runs/latents", layout=layout) and work(tmp_path / "latents", layout=layout)
    theirs, ours = latents.Cache("gs://runs/latents"), latents.Cache(tmp_path / "latents")
    assert len(theirs) == len(ours) == 30
    for i in range(30):
        np.testing.assert_array_equal(theirs[i]["moments"], ours[i]["moments"])
    for key in [key for key in server.objects if "latents/images" in key[1]]:
        del server.objects[key]
    assert len(latents.Cache("gs://runs/latents")) == 30  # which were copied once
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(errors.UsageError, match=r"gs://runs/latents takes .*XDG_CACHE_HOME"):
        latents.Cache("gs://runs/latents")
    with pytest.raises(errors.UsageError, match=r"gs://runs/nothing holds no index\.json"):
        latents.Cache("gs://runs/nothing")


@pytest.mark.slow
def test_runs_are_converted_from_a_bucket_into_one(server, tmp_path, capfd):
    model = parity.unpack(parity.ROOT / "tests" / "golden", tmp_path / "golden")
    model = model / "diffusers" / "vqmodel_ldm"
    for path in model.iterdir():
        server.put("runs", f"theirs/{path.name}", path.read_bytes())

    def there_and_back(source, run, out):
        remote._mirrors.clear()
        assert convert.run(["diffusers", f"--checkpoint={source}", f"--out={run}"]) == 0
        remote._mirrors.clear()
        assert convert.run(["export", f"--run={run}", f"--out={out}"]) == 0

    there_and_back("gs://runs/theirs", "gs://runs/converted", "gs://runs/exported")
    there_and_back(model, tmp_path / "run", tmp_path / "out")
    name = "diffusion_pytorch_model.safetensors"
    (tmp_path / name).write_bytes(server.objects["runs", f"exported/{name}"])
    theirs, ours = tensorfile.read(tmp_path / name), tensorfile.read(tmp_path / "out" / name)
    assert theirs.keys() == ours.keys()
    assert all(theirs[key].tobytes() == ours[key].tobytes() for key in ours)
    before = dict(server.objects)
    for source, out in (("theirs", "converted"), ("none", "new"), ("exported/config.json", "new")):
        argv = ["diffusers", f"--checkpoint=gs://runs/{source}", f"--out=gs://runs/{out}"]
        assert convert.run(argv) == 2
    said = capfd.readouterr().err.splitlines()
    assert "gs://runs/converted exists already" in said[-3] and "gs://runs/none" in said[-2]
    assert "gs://runs/exported/config.json" in said[-1] and server.objects == before
