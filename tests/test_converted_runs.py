"""A converted checkpoint is a run like any other: sampled, evaluated, trained on."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from calling import call
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import parity

from ldm_jax import cli, convert, evaluate, sample, train
from ldm_jax.base import tensorfile
from ldm_jax.engine import checkpoint

SHORT = ["--config.steps.total=1", "--config.batch_size=8", "--config.eval.records=8"]
# Nothing moves, so that what the run saves is what it began with.
STILL = [*SHORT, "--config.optim.{player}.lr=0.0", "--config.optim.{player}.weight_decay=0.0"]


def summary(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "summary.json").read_text())


def weights(run, ema=True):
    return jax.tree.map(np.asarray, checkpoint.read_params(run, ema=ema)[0])


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return parity.unpack(parity.ROOT / "tests" / "golden", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of small pictures, a folder per class, and the keys that name it."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(16):
        name = folder / "ab"[i % 2] / f"{i}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(name)
    keys = dict(source="folder", path=folder, size=16, holdout=0.5, threads=1)
    return [f"--config.data.{k}={v}" for k, v in keys.items()] + ["--config.eval.batch_size=8"]


@pytest.fixture(scope="session")
def first_stage(golden, data, tmp_path_factory):
    """An official first stage (KL, f = 1)."""
    source = golden / "compvis/pipeline/autoencoder_with_loss_keys"
    out = tmp_path_factory.mktemp("converted") / "first_stage"
    argv = [f"--config={source}.yaml", f"--checkpoint={source}.ckpt", f"--out={out}"]
    lean = ["--config.loss.perceptual_weight=0.0", "--config.loss.disc_weight=0.0"]
    assert convert.run(["compvis", *argv, *data, *lean]) == 0
    return out


@pytest.fixture(scope="session")
def ldm(golden, data, tmp_path_factory):
    """An official class-conditional LDM on that first stage, with an EMA of its own."""
    folder = tmp_path_factory.mktemp("converted")
    stage = golden / "compvis/pipeline/autoencoder_with_loss_keys"
    net = json.loads((golden / "compvis/unet_adm_classes.json").read_text())["config"]
    own = tensorfile.read(golden / "compvis/unet_adm_classes.ckpt.npz")
    state = {f"model.diffusion_model.{k}": v for k, v in own.items()}
    state |= {
        f"first_stage_model.{k}": v
        for k, v in tensorfile.read(stage.with_suffix(".ckpt")).items()
        if not k.startswith(("loss.", "global_step"))
    }
    state |= {f"model_ema.diffusion_model{k.replace('.', '')}": v / 2 for k, v in own.items()}
    state["scale_factor"] = np.float32(0.5)
    np.savez(folder / "model.npz", **state)
    yaml = official_yaml(stage.with_suffix(".yaml"), net)
    (folder / "model.yaml").write_text(json.dumps(yaml))
    argv = [f"--config={folder}/model.yaml", f"--checkpoint={folder}/model.npz"]
    assert convert.run(["compvis", *argv, f"--out={folder}/run", *data]) == 0
    return folder / "run"


def official_yaml(first_stage, net):
    import yaml

    inner = yaml.safe_load(first_stage.read_text())["model"]
    params = {"unet_config": net, "first_stage_config": inner, "scale_by_std": True}
    params |= {"cond_stage_config": "__is_unconditional__", "channels": 3}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


@pytest.mark.slow
def test_samples_and_measures_of_a_converted_ldm(ldm, tmp_path):
    argv = [f"--run={ldm}", f"--out={tmp_path}", "--num=8", "--batch_size=8", "--steps=1"]
    assert call(sample, *argv, "--labels=1,3", "--format=npz") == 0
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_0"].shape == (8, 16, 16, 3)
        assert samples["arr_1"].tolist() == [1, 3] * 4
    assert call(evaluate, f"--run={ldm}") == 0
    measured = summary(ldm / "evaluation")
    assert measured["records"] == 8 and np.isfinite(measured["error"])


@pytest.mark.slow
def test_training_goes_on_from_a_converted_ldm(ldm, tmp_path):
    out = tmp_path / "on"
    still = [text.format(player="denoiser") for text in STILL]
    still.append("--config.optim.denoiser.ema=1.0")
    argv = [f"--config={ldm}/config.json", f"--workdir={out}", f"--config.init_from={ldm}"]
    assert call(train, *argv, *still) == 0
    for ema in (False, True):
        assert_equal(weights(out, ema), weights(ldm, ema))
    origin = json.loads((out / "init_from.json").read_text())
    assert origin["init_from"] == str(ldm) and origin["ema"] == ["denoiser"]
    # the first stage and the scale of its latents came along
    theirs, ours = (json.loads((run / "latents.json").read_text()) for run in (ldm, out))
    assert ours["scale"] == theirs["scale"] == 0.5
    assert ours["origin"]["digest"] == theirs["origin"]["digest"]
    assert call(train, *argv, *still) == 0, "the same command again finds it done"


@pytest.mark.slow
def test_training_goes_on_from_a_converted_first_stage(first_stage, tmp_path):
    assert call(evaluate, f"--run={first_stage}") == 0
    assert summary(first_stage / "evaluation")["psnr_db"] > 0
    out = tmp_path / "on"
    argv = [f"--config={first_stage}/config.json", f"--config.init_from={first_stage}"]
    still = [text.format(player="autoencoder") for text in STILL]
    assert call(train, *argv, f"--workdir={out}", *still) == 0
    assert_equal(weights(out)["autoencoder"], weights(first_stage)["autoencoder"])


@pytest.mark.slow
def test_a_decoder_is_trained_for_the_latents_of_a_converted_ldm(ldm, tmp_path, capfd):
    out, first = tmp_path / "on", ldm / "first_stage"
    argv = [f"--config={first}/config.json", f"--workdir={out}", "--config.loss.disc_weight=0.0"]
    argv += [*SHORT, f"--config.encoder={first}", "--config.optim.autoencoder.lr=0.01"]
    argv += ["--config.loss.perceptual_weight=0.0", "--config.data.size=16"]
    argv += [f"--config.init_from={first}", "--config.init_grow=True"]
    assert call(train, *argv) == 0
    before, after = (weights(run)["autoencoder"]["model"] for run in (first, out))
    moved = jax.tree.map(np.array_equal, after["decoder"], before["decoder"])
    assert not any(jax.tree.leaves(moved)) and "encoder" not in after
    assert convert.run(["export", f"--run={out}", f"--out={tmp_path / 'diffusers'}"]) == 0

    drawn = []
    for name, more in (("own", []), ("new", [f"--decoder={out}"])):
        how = [f"--run={ldm}", f"--out={tmp_path / name}", "--num=8", "--batch_size=8", "--steps=1"]
        assert call(sample, *how, "--format=npz", *more) == 0
        with np.load(tmp_path / name / "samples.npz") as samples:
            drawn.append(samples["arr_0"])
    assert not np.array_equal(*drawn)


def test_a_converted_run_is_not_gone_on_with_in_place(first_stage, capfd):
    before = sorted(first_stage.iterdir())
    argv = [f"--config={first_stage}/config.json", f"--workdir={first_stage}"]
    assert call(train, *argv, *SHORT) == cli.EXIT_USAGE
    assert f"--config.init_from={first_stage}" in capfd.readouterr().err
    assert sorted(first_stage.iterdir()) == before


def test_a_source_that_does_not_fit_is_refused_before_a_workdir_is_made(
    ldm, first_stage, tmp_path, capfd
):
    base = [f"--config={ldm}/config.json", f"--workdir={tmp_path / 'run'}"]
    for given, words in [
        (["--config.init_from=nowhere"], "nowhere: no readable checkpoint"),
        ([f"--config.init_from={first_stage}"], "holds weights of autoencoder"),
        (
            [f"--config.init_from={ldm}", "--config.model.mult=(1, 1)"],
            "has shape (64,) there and has shape (32,) in this config",
        ),
    ]:
        assert call(train, *base, *given) == cli.EXIT_USAGE
        said = capfd.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()
