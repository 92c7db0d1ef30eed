"""Sampling jobs: whatever kills them or splits them, the images are the same and none is lost."""

import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile

import compiling
import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import cli, sample
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.data import sources
from ldm_jax.jobs import conditioning, job, outputs, settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM, SHARD, STEPS = 21, 8, 2
FLAGS = [f"--num={NUM}", f"--shard_size={SHARD}", f"--steps={STEPS}"]


@pytest.fixture(scope="module")
def run(pixel_run):
    return pixel_run


@pytest.fixture(scope="module")
def whole(run):
    """The job that nothing happened to."""
    out = run.parent / "whole"
    assert call(sample, f"--run={run}", f"--out={out}", "--batch_size=8", *FLAGS) == 0
    return out


def pictures(out) -> dict:
    return {file.name: file.read_bytes() for file in (out / "images").glob("*.png")}


def pixels(out) -> np.ndarray:
    return np.concatenate([images for images, _ in job.open_job(out).batches()])


def summary(out) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_a_job_leaves_images_labels_records_and_where_the_time_went(whole):
    assert sorted(pictures(whole)) == [f"{i:06d}.png" for i in range(NUM)]
    assert (whole / "grid.png").exists() and not list(whole.rglob("*.tmp"))
    assert len(list((whole / "shards").iterdir())) == 3
    known = summary(whole)
    assert known["num"] == known["drawn"] == NUM and len(known["digest"]) == 64
    parts = ("compile", "denoise", "decode", "write")
    assert all(known[f"{part}_seconds"] >= 0 for part in parts) and known["compile_seconds"] > 0
    source = sources.open_source("folder", path=str(whole / "images"))
    assert [source[i]["class"] for i in range(NUM)] == [i % 16 for i in range(NUM)]


@pytest.mark.parametrize("batch_size", [16, 24])
def test_images_do_not_depend_on_the_batch_size(run, whole, tmp_path, batch_size):
    flags = [f"--out={tmp_path / 'out'}", f"--batch_size={batch_size}", *FLAGS]
    assert call(sample, f"--run={run}", *flags) == 0
    # Float rounding may move a value over the edge between two of 256 levels.
    assert np.abs(pixels(tmp_path / "out").astype(int) - pixels(whole)).max() <= 1


def test_lost_and_damaged_files_are_drawn_again_and_nothing_else_is(run, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "images" / "000003.png").unlink()
    (out / "images" / "000017.png").write_bytes(b"rubbish")
    with pytest.raises(errors.UsageError, match="2 of 3 shards are missing or damaged"):
        job.open_job(out)
    kept = os.stat(out / "images" / "000009.png").st_mtime_ns
    assert call(sample, f"--run={run}", f"--out={out}", "--batch_size=8", *FLAGS) == 0
    assert pictures(out) == pictures(whole) and summary(out)["drawn"] == 13
    assert os.stat(out / "images" / "000009.png").st_mtime_ns == kept
    assert summary(out)["digest"] == summary(whole)["digest"]


def test_two_workers_make_one_job_and_the_last_one_finishes_it(run, whole, tmp_path, capsys):
    flags = [f"--run={run}", f"--out={tmp_path / 'out'}", "--batch_size=8", *FLAGS]
    assert call(sample, *flags, "--worker=1/2") == 0
    assert "2 of 3 shards" in capsys.readouterr().out
    assert not (tmp_path / "out" / "summary.json").exists()
    assert call(sample, *flags, "--worker=0/2") == 0
    assert pictures(tmp_path / "out") == pictures(whole)
    assert summary(tmp_path / "out")["digest"] == summary(whole)["digest"]


def test_more_images_go_on_from_those_there(run, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    flags = ["--batch_size=8", *FLAGS, "--num=24"]
    assert call(sample, f"--run={run}", f"--out={out}", *flags) == 0
    assert summary(out)["drawn"] == 8  # the last shard was short
    assert pictures(out).items() >= pictures(whole).items() and len(pictures(out)) == 24


@pytest.mark.parametrize("format", ["webp", "tar", "arrayrecord", "npz"])
def test_every_format_holds_the_same_pixels(run, whole, tmp_path, format):
    out = tmp_path / "out"
    flags = [f"--out={out}", "--batch_size=8", f"--format={format}", *FLAGS]
    assert call(sample, f"--run={run}", *flags) == 0
    np.testing.assert_array_equal(pixels(out), pixels(whole))
    if format in ("tar", "arrayrecord"):
        source = sources.open_source(format, path=str(out / "images"))
        assert [source[i]["class"] for i in range(NUM)] == [i % 16 for i in range(NUM)]
        np.testing.assert_array_equal(source[20]["image"], pixels(whole)[20])
    if format == "npz":
        file = np.load(out / "samples.npz")
        assert file.files == ["arr_0", "arr_1"] and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], pixels(whole))
        np.testing.assert_array_equal(file["arr_1"], np.arange(NUM) % 16)


def test_the_npz_is_written_shard_by_shard(tmp_path):
    """Peak memory of a thousand images' file stays near one shard's."""
    import tracemalloc

    size, rows = 50, [{"class": i % 7} for i in range(1000)]
    shards = outputs.shards(1000, size)
    images = np.zeros((size, 64, 64, 3), np.uint8)
    (tmp_path / "images").mkdir()
    format = outputs.FORMATS.get("npz")
    for shard in shards:
        format.write(tmp_path / "images", shard, images + shard.number, [], 0)
    tracemalloc.start()
    format.assemble(tmp_path, shards, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * images.nbytes
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive:
        assert archive.testzip() is None
        whole = np.load(io.BytesIO(archive.read("arr_0.npy")))
    assert whole.shape == (1000, 64, 64, 3)
    np.testing.assert_array_equal(whole[:, 0, 0, 0], np.repeat(np.arange(20), size))


@pytest.mark.slow
def test_kill_9_and_sigterm_leave_a_job_that_goes_on(run, whole, tmp_path):
    """Real processes on one device; the same on one device, uncut, is what they must equal."""
    flags = [f"--run={run}", "--batch_size=4", "--num=64", "--shard_size=4", "--steps=20"]
    environment = os.environ | {"XLA_FLAGS": compiling.FAST}

    def begin(out):
        command = [sys.executable, "-m", "ldm_jax.sample", *flags, f"--out={out}"]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def shards():
        return len(list((tmp_path / "cut" / "shards").glob("0*.json")))

    assert begin(tmp_path / "uncut").wait(300) == 0
    for stop in (signal.SIGKILL, signal.SIGTERM):
        before = shards()
        with begin(tmp_path / "cut") as process:
            deadline = time.monotonic() + 300
            while shards() < before + 2 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.02))
            process.send_signal(stop)
            _, err = process.communicate(timeout=60)
            assert process.returncode == (cli.EXIT_RESTART if stop == signal.SIGTERM else -9), err
    assert shards() < 16
    with begin(tmp_path / "cut") as process:
        assert process.wait(300) == 0
    assert pictures(tmp_path / "cut") == pictures(tmp_path / "uncut")
    digests = [summary(tmp_path / name)["digest"] for name in ("cut", "uncut")]
    assert digests[0] == digests[1] and summary(tmp_path / "cut")["drawn"] < 64


def read_conditions(classes=5, known=("class",), make=None, **changes):
    settings = dict(labels="balanced", prompts="", held_out=False, cond="", hints="")
    settings |= dict(num=12, seed=3)
    args = types.SimpleNamespace(**settings | changes)
    return conditioning.read(args, classes=classes, known=list(known), make=make)


def test_labels_are_read_and_checked_before_anything_else(tmp_path):
    ids = lambda labels, **kwargs: [
        read_conditions(labels=labels, **kwargs).row(i)["class"] for i in range(7)
    ]
    assert ids("balanced") == [0, 1, 2, 3, 4, 0, 1]
    assert ids("4,2") == [4, 2, 4, 2, 4, 2, 4]
    file = tmp_path / "labels.txt"
    file.write_text("3\n1\n0\n")
    assert ids(str(file)) == [3, 1, 0, 3, 1, 0, 3]
    assert ids("random", num=7) == ids("random", num=1000) != ids("random", seed=4)
    for text, words in [("3,5", "5 is not a class id in 0..4"), ("cat", "must be balanced")]:
        with pytest.raises(errors.UsageError, match=words):
            read_conditions(labels=text)
    file.write_text("3\n9\n")
    with pytest.raises(errors.UsageError, match=r"9 \(entry 1\)"):
        read_conditions(labels=str(file))
    with pytest.raises(errors.UsageError, match="not conditioned on classes"):
        read_conditions(labels="3", classes=0)


def test_a_caption_may_be_longer_than_a_path_can_be():
    said = "a red circle " * 3000
    maker = types.SimpleNamespace(of_prompts=lambda captions: {"text_ids": np.zeros((1, 4))})
    how = dict(classes=0, known=("text_ids",), make=lambda held_out, fields: (maker, None))
    assert read_conditions(prompts=said, **how).row(0) == {"caption": said.strip()}


def test_other_conditions_come_from_an_npz(tmp_path):
    path = tmp_path / "cond.npz"
    np.savez(path, tokens=np.arange(6).reshape(3, 2))
    given = dict(classes=0, cond=str(path))
    with pytest.raises(errors.UsageError, match="also conditioned on mask"):
        read_conditions(known=("tokens", "mask"), **given)
    found = read_conditions(known=("tokens",), **given)
    np.testing.assert_array_equal(found.fields(2, 2)["tokens"], [[4, 5], [0, 1]])
    with pytest.raises(errors.UsageError, match="has a field 'tokens'"):
        read_conditions(known=("mask",), **given)
    path.write_bytes(b"rubbish")
    with pytest.raises(errors.UsageError, match="cannot be read"):
        read_conditions(known=("tokens",), **given)


def test_class_names_serve_as_prompts_and_held_out_records_as_conditions(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("blue square\n\nred circle\n")
    flags = [f"--run={run}", "--batch_size=8", "--num=4", "--steps=1"]
    assert call(sample, *flags, f"--prompts={prompts}", f"--out={tmp_path / 'a'}") == 0
    lines = (tmp_path / "a" / "images" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["caption"] for row in rows] == ["blue square", "red circle"] * 2
    assert rows[0]["label"] == rows[2]["label"] != rows[1]["label"]
    assert call(sample, *flags, "--held_out", f"--out={tmp_path / 'b'}") == 0
    prompts.write_text("blue dog\n")
    flags = [*flags, f"--prompts={prompts}", f"--out={tmp_path / 'c'}"]
    assert call(sample, *flags) == cli.EXIT_USAGE and not (tmp_path / "c").exists()


def test_the_images_are_those_of_the_python_api(run, whole):
    drawn = ldm_jax.load(run).sample(8, steps=STEPS, guidance=2.0, cond={"class": np.arange(8)})
    want = np.clip(np.floor(np.asarray(drawn) * 127.5 + 128), 0, 255).astype(int)
    assert np.abs(want - pixels(whole)[:8]).max() <= 1


def test_an_exported_sampler_runs_without_the_models(run, whole, tmp_path):
    file = tmp_path / "sampler.zip"
    flags = ["--batch_size=8", "--platforms=cpu,tpu", f"--steps={STEPS}"]
    assert call(sample, f"--run={run}", f"--export={file}", *flags) == 0
    code = f"""
import sys, numpy as np
from ldm_jax.jobs import exported
sampler = exported.load({str(file)!r})
images = sampler(seed=0, first=8, cond={{"class": np.arange(8, 16)}})
try:
    sampler(cond={{"class": np.arange(7)}})
except ValueError as e:
    assert "wants" in str(e)
loaded = [name for name in sys.modules if name.startswith("ldm_jax.")]
assert loaded == ["ldm_jax.jobs", "ldm_jax.jobs.exported"], loaded
assert not {{"flax", "orbax", "ml_collections"}} & set(sys.modules)
np.save({str(tmp_path / "images.npy")!r}, images)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    images = np.load(tmp_path / "images.npy")
    assert np.abs(images.astype(int) - pixels(whole)[8:16]).max() <= 1


@pytest.mark.slow
def test_a_weaker_run_guides_and_only_one_of_the_same_shapes(run, whole, tmp_path, capfd):
    flags = [f"--run={run}", "--batch_size=8", *FLAGS, "--guidance=2", "--labels=3"]
    assert call(sample, *flags, f"--weaker={run}", f"--out={tmp_path / 'self'}") == 0
    plain = [*flags, "--guidance=1", f"--out={tmp_path / 'plain'}"]
    assert call(sample, *plain) == 0  # away from itself is nowhere
    difference = pixels(tmp_path / "self").astype(int) - pixels(tmp_path / "plain")
    assert np.abs(difference).max() <= 1
    capfd.readouterr()
    assert call(sample, *flags, "--weaker=none", f"--out={tmp_path / 'x'}") == cli.EXIT_USAGE
    assert "none is not a run" in capfd.readouterr().err


def test_one_device_draws_what_eight_draw(run, whole, tmp_path):
    flags = [f"--run={run}", f"--out={tmp_path}", "--batch_size=8", *FLAGS]
    environment = os.environ | {"XLA_FLAGS": compiling.FAST}
    command = [sys.executable, "-m", "ldm_jax.sample", *flags]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert np.abs(pixels(tmp_path).astype(int) - pixels(whole)).max() <= 1


CLASS = {"name": "class"}


@pytest.mark.parametrize(
    ("cond_dropout", "conditioners", "guidance", "warns"),
    [
        (0.0, {"class": CLASS}, 2.0, True),
        (0.0, {"class": CLASS}, 1.0, False),
        (0.1, {"class": CLASS}, 2.0, False),
        (0.0, {"class": CLASS, "text": {"name": "text", "dropout": 0.2}}, 2.0, False),
        (0.1, {"class": CLASS | {"dropout": 0.0}}, 2.0, True),
        (0.0, {}, 2.0, False),
    ],
)
def test_guidance_away_from_a_null_that_was_never_trained_is_said(
    cond_dropout, conditioners, guidance, warns
):
    config = config_lib.from_dict(
        {"loss": {"cond_dropout": cond_dropout}, "conditioners": conditioners}
    )
    line = settings.untrained_null(config, guidance)
    assert ("never saw" in line) == warns == bool(line)
