"""The run of an adapter is a run like any other: trained, resumed, drawn from, merged, refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import convert, sample, train
from ldm_jax.base import disk, errors, raster
from ldm_jax.base import record as record_lib
from ldm_jax.runs import conversion, kinds, opened
from ldm_jax.runs import frozen as frozen_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["steps.total=6", "steps.log=2", "steps.eval=6", "steps.checkpoint=3", "eval.records=8"]
FLAGS += ["optim.denoiser.warmup=1", "adapt.rank=2", "adapt.targets=conv_1,time"]
UNSET = ["adapt.rank=8", "adapt.targets=attn"]
X, T = np.ones((2, 16, 16, 3), np.float32), np.array([5, 700])


def adapt(base, workdir, *flags, recipe="lora") -> int:
    argv = [f"--config={ROOT}/configs/{recipe}.py:{base}", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*FLAGS, *flags)))


def as_if_trained(base, folder, seed, **adapter):
    """The run of an adapter of `base`, with random arrays."""
    config, record = record_lib.read(base), record_lib.Record(folder)
    with config.unlocked():
        config.adapt.update(name="lora", base=str(base), **adapter)
    folder.mkdir()
    record.write_config(config)
    kind, rng = kinds.of(config), np.random.default_rng(seed)
    fill = lambda x: rng.normal(scale=0.1, size=x.shape).astype(np.float32)
    conversion.save(folder, 3, {"params": jax.tree.map(fill, kind.shapes(config)), "ema": {}})
    _, origin = frozen_lib.read(kind.frozen(config), {}, "it")
    record.write(latents=record_lib.Record(base).latents | {"origin": origin})
    return str(folder)


@pytest.fixture(scope="module")
def two(pixel_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [
        as_if_trained(pixel_run, folder / f"{seed}", seed, rank=2, targets=("conv_1",))
        for seed in (1, 2)
    ]


def output(run, **adapters):
    return np.asarray(opened.load(run, **adapters).denoise(X, T))


def test_it_draws_by_itself_beside_its_base_and_merged(pixel_run, two, tmp_path, capfd):
    own = output(two[0])
    assert np.abs(own - output(pixel_run)).max() > 1e-3
    np.testing.assert_array_equal(output(pixel_run, adapters={two[0]: 1.0}), own)
    assert convert.run(["merge", f"--run={two[0]}", f"--out={tmp_path / 'whole'}"]) == 0
    np.testing.assert_array_equal(output(tmp_path / "whole"), own)
    assert not record_lib.read(tmp_path / "whole").adapt.name

    given = f"--adapters={two[0]}:0.7,{two[1]}"
    both = dict(adapters={two[0]: 0.7, two[1]: 1.0})
    argv = [f"--run={pixel_run}", given, f"--out={tmp_path / 'drawn'}", "--num=8"]
    assert call(sample, *argv, "--batch_size=8", "--steps=1") == 0
    manifest = json.loads((tmp_path / "drawn" / "manifest.json").read_text())
    assert manifest["adapters"] == both["adapters"]
    assert manifest["weights"] == opened.load(pixel_run, **both).digest
    assert convert.run(["merge", *argv[:2], f"--out={tmp_path / 'both'}"]) == 0
    np.testing.assert_array_equal(output(tmp_path / "both"), output(pixel_run, **both))


def test_an_adapter_of_other_weights_is_refused(pixel_run, two, tmp_path, refused, capfd):
    other = tmp_path / "other"
    shutil.copytree(two[0], other)
    latents = json.loads((other / "latents.json").read_text())
    latents["origin"]["base"] = "0" * 16
    (other / "latents.json").write_text(json.dumps(latents))
    draw = lambda *argv: call(
        sample, *argv, f"--out={tmp_path / 'no'}", "--num=8", "--batch_size=8"
    )
    capfd.readouterr()
    assert "has changed since" in refused(draw(f"--run={other}"))
    beside = [f"--run={pixel_run}", f"--adapters={other}:0.5"]
    assert "adapts other weights than those of" in refused(draw(*beside))
    assert "is the run of an adapter" in refused(draw(f"--run={two[0]}", f"--adapters={two[1]}"))
    assert "no adapter" in refused(draw(f"--run={pixel_run}", f"--adapters={pixel_run}"))
    assert "--adapters" in refused(draw(f"--run={pixel_run}", f"--adapters={two[0]},{two[0]}:2"))
    assert not (tmp_path / "no").exists() or not any((tmp_path / "no").rglob("*.png"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["adapt.targets=conv_9"], "targets='conv_9' is in the path of no kernel"),
        (["adapt.base="], "needs config.adapt.base"),
        (["adapt.name=", *UNSET], "is of an adapter: set config.adapt.name"),
        (["adapt.name=", "adapt.base=", *UNSET, "init_from=ADAPTER"], "convert merge"),
        (["adapt.name="], "adapt.rank=2 does nothing without config.adapt.name"),
        (["init_from=BASE"], "holds no adapter"),
        (["adapt.base=ADAPTER"], "convert merge"),
        (["model.width=32"], "has config.model.width=16, and this config 32"),
        (["adapt.keep=old"], "keep=old is no part of a mix: config.data.source is 'scenes'"),
        (["adapt.name=loha"], "Unknown adapter 'loha'"),
    ],
)
def test_what_cannot_be_is_one_line(pixel_run, two, tmp_path, refused, capfd, flags, line):
    flags = [flag.replace("BASE", str(pixel_run)).replace("ADAPTER", two[0]) for flag in flags]
    capfd.readouterr()
    assert line in refused(adapt(pixel_run, tmp_path / "run", *flags))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_recipe_mixes_what_is_learnt_with_what_is_kept(pixel_run):
    recipe = lambda arg: record_lib.load(f"{ROOT}/configs/lora.py:{arg}", {}).data.mix
    own, drawn = recipe(f"{pixel_run},new"), recipe(f"{pixel_run},new,drawn")
    assert own.new.path == drawn.new.path == "new" and drawn.old.path == "drawn"
    assert own.old.source == record_lib.read(pixel_run).data.source
    for arg in ("", ",new", f"{pixel_run},", f"{pixel_run},new,drawn,more"):
        with pytest.raises(errors.UsageError, match="RUN,PICTURES"):
            recipe(arg)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_it_trains_from_what_its_base_draws_and_resumes_to_the_byte(pixel_run, tmp_path, kept):
    still, whole, cut = (tmp_path / name for name in ("still", "whole", "cut"))
    base = f"{pixel_run},{pictures(tmp_path / 'new')}" if kept else pixel_run
    assert adapt(base, still, "optim.denoiser.lr=0.0") == 0
    np.testing.assert_array_equal(output(still), output(pixel_run))
    assert adapt(base, whole) == 0
    assert np.abs(output(whole) - output(pixel_run)).max() > 1e-6
    latents = [json.loads((run / "latents.json").read_text()) for run in (whole, pixel_run)]
    assert latents[0]["scale"] == latents[1]["scale"] and latents[0]["origin"]["base_step"] == 2
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    assert adapt(base, cut) == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert ldm_jax.load(cut).digest == ldm_jax.load(whole).digest
    assert disk.read_jsonl(whole / "metrics.jsonl")[-1]["val/error"] > 0


def pictures(folder):
    """A folder of 24 pictures of two of the base's classes."""
    rng = np.random.default_rng(0)
    for i in range(24):
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        raster.write_png(folder / ("red circle", "blue square")[i % 2] / f"{i}.png", image)
    return folder
