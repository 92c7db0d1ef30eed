"""The latent cache: made, killed, gone on with, trained from, refused."""

import json
import os
import signal
import subprocess
import sys
import time

import compiling
import numpy as np
import pytest
from calling import call
from test_commands import DEBUG, ROOT, SMALL, call_train

from ldm_jax import encode
from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors
from ldm_jax.data import latents
from ldm_jax.jobs import encoding
from ldm_jax.runs import data as data_lib

SHORT = ["--config.steps.total=3", "--config.steps.log=1", "--config.steps.eval=3"]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latents") / "first_stage"
    assert call_train("first_stage", workdir, *SHORT, *SMALL["first_stage"]) == 0
    return workdir


def call_encode(run, out, *flags, flip=True):
    data = [f"--config={DEBUG}:ldm", f"--config.data.flip={flip}"]
    return call(encode, f"--run={run}", f"--out={out}", "--batch_size=16", *data, *flags)


@pytest.fixture(scope="module")
def cache(first_stage):
    out = first_stage.parent / "cache"
    assert call_encode(first_stage, out, "--shard_size=20") == 0
    return out


def test_a_cache_says_what_it_is_of(first_stage, cache):
    index = json.loads((cache / "index.json").read_text())
    assert index["data"] | {"fingerprint": ""} == {
        "fingerprint": "", "records": 48, "size": 16, "interpolation": "bicubic", "flip": True
    }  # fmt: skip
    assert index["first_stage"]["step"] == 3 and len(index["files"]) == 3
    assert json.loads((cache / "summary.json").read_text())["variants"] == 2
    config = config_lib.load(f"{DEBUG}:ldm")
    records = data_lib.training(config, data_lib.open_source(config.data))
    record, original = latents.Cache(cache)[7], records[7]
    assert record["moments"].shape == (2, 8, 8, 4) and record["moments"].dtype == np.float16
    assert [v["class"] for v in record["variants"]] == [original["class"]] * 2
    boxes = [v["boxes"] for v in record["variants"]]
    assert boxes[0].dtype == np.float32 and boxes[0].shape == (1, 4)
    np.testing.assert_allclose(boxes[1][:, ::2], 1 - boxes[0][:, 2::-2], atol=1e-6)


def test_training_from_a_cache_is_training_from_images(first_stage, cache, tmp_path, monkeypatch):
    given = [*SHORT, *SMALL["ldm"], f"--config.first_stage={first_stage}"]
    given += ["--config.data.flip=True"]
    assert call_train("ldm", tmp_path / "images", *given) == 0
    opened, really = [], latents.Cache
    monkeypatch.setattr(latents, "Cache", lambda path: opened.append(path) or really(path))
    assert call_train("ldm", tmp_path / "cache", *given, f"--config.latents.cache={cache}") == 0
    assert opened == [str(cache)], "once"
    a, b = (disk.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("images", "cache"))
    assert [line["step"] for line in a] == [1, 2, 3, 3]
    for ours, theirs in zip(a, b, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3), ours
    scale = [disk.read_json(tmp_path / n / "latents.json")["scale"] for n in ("images", "cache")]
    assert scale[0] == pytest.approx(scale[1], rel=1e-3) and scale[0] != scale[1]


def test_a_killed_job_goes_on_with_what_is_missing(first_stage, cache, tmp_path):
    out = tmp_path / "cache"
    command = [sys.executable, "-m", "ldm_jax.encode", f"--run={first_stage}", f"--out={out}"]
    command += [f"--config={DEBUG}:ldm", "--config.data.flip=True", "--batch_size=4"]
    env = os.environ | {"XLA_FLAGS": compiling.FAST}
    with subprocess.Popen([*command, "--shard_size=4"], cwd=ROOT, env=env) as process:
        deadline = time.monotonic() + 300
        while len(list(out.glob("shards/*.json"))) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    first = out / "images" / "00000.array_record"
    before = first.stat().st_mtime_ns
    (out / "images" / "00001.array_record").write_bytes(b"torn")
    (out / "index.json").unlink(missing_ok=True)
    flags = ["--batch_size=8", "--shard_size=4"]
    assert call_encode(first_stage, out, *flags, "--worker=0/2") == 0
    assert not (out / "index.json").exists()
    assert call_encode(first_stage, out, *flags, "--worker=1/2") == 0
    assert first.stat().st_mtime_ns == before
    ours, theirs = latents.Cache(out), latents.Cache(cache)
    assert len(ours) == len(theirs) == 48
    for i in range(48):
        np.testing.assert_allclose(ours[i]["moments"], theirs[i]["moments"], rtol=5e-3, atol=5e-3)
        assert ours[i]["variants"][1]["class"] == theirs[i]["variants"][1]["class"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.count=60"], "records 48, here 45"),
        (["data.size=32"], "size 16, here 32"),
        (["data.seed=1"], "fingerprint"),
        (["data.crop=random"], "one crop of an image"),
        (["first_stage=identity"], "no latents to keep"),
        (["latents.cache={tmp}"], "holds no index.json"),
    ],
)
def test_training_refuses_a_cache_of_something_else(
    overrides, words, first_stage, cache, tmp_path, refused
):
    given = [f"first_stage={first_stage}", f"latents.cache={cache}", *overrides]
    given = [f"--config.{text.format(tmp=tmp_path)}" for text in given]
    assert words in refused(call_train("ldm", tmp_path / "run", *given))
    assert not (tmp_path / "run").exists()


def test_other_weights_and_missing_mirror_images_are_refused(
    first_stage, cache, tmp_path, refused, capfd
):
    given = [f"--config.first_stage={first_stage}", *SMALL["ldm"], *SHORT]
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert call_encode(first_stage, plain, flip=False) == 0
    capfd.readouterr()
    flipped = [f"--config.latents.cache={plain}", "--config.data.flip=True"]
    code = call_train("ldm", tmp_path / "run", *given, *flipped)
    assert "flip False, here True" in refused(code)
    index = json.loads((plain / "index.json").read_text())
    index["first_stage"]["weights"] = "0" * 16
    (plain / "index.json").write_text(json.dumps(index))
    unflipped = [f"--config.latents.cache={plain}", "--config.data.flip=False"]
    code = call_train("ldm", tmp_path / "run", *given, *unflipped)
    assert "encoded by other weights" in refused(code)
    assert "one crop" in refused(call_encode(first_stage, other, "--config.data.crop=random"))
    assert "float8" in refused(call_encode(first_stage, other, "--dtype=float8"))
    assert "--shard_size" in refused(call_encode(first_stage, other, "--shard_size=0"))
    assert "shard_size: 20 -> 30" in refused(call_encode(first_stage, cache, "--shard_size=30"))
    assert not other.exists()


def test_moments_that_float16_cannot_hold_are_refused():
    big = np.full((1, 1, 2, 2, 2), 1e5, np.float32)
    with pytest.raises(errors.RunError, match="--dtype=bfloat16"):
        encoding.narrow(big, "float16")
    assert np.isfinite(encoding.narrow(big, "bfloat16").astype(np.float32)).all()
