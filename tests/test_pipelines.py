"""diffusers' pipeline folders, out and back in, without diffusers."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import parity

import ldm_jax
from ldm_jax import convert
from ldm_jax.base import config as config_lib
from ldm_jax.base import record as record_lib
from ldm_jax.base import tensorfile, tree
from ldm_jax.runs import conversion, kinds

DEBUG = parity.ROOT / "configs" / "debug.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNCONDITIONAL = {"model.cross_attention": "False", "model.head_channels": "16"}


TEXT = dict(name="text", width=16, depth=1, vocab_size=50, length=7, heads=2, head_width=8)
TEXT |= dict(mask_padding=False, null=())
TOKENS = np.random.default_rng(2).integers(0, 50, (2, 2, 7))
FIELDS = {
    "class": {"class": np.array([1, 4])},
    "text_ids": {"text_ids": TOKENS[0], "null_text_ids": TOKENS[1]},
}


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return parity.unpack(parity.ROOT / "tests" / "golden", tmp_path_factory.mktemp("golden"))


def tiny_run(folder, variant, conditioners=None, **changes):
    """A run of configs/debug.py as if trained: random weights, none of them zero."""
    overrides = {"model.groups": "16" if variant == "ldm" else "8"}
    config = config_lib.load(f"{DEBUG}:{variant}", overrides | changes)
    if variant == "ldm":
        config.unlock()
        config.conditioners = conditioners or {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_lib.to_json(config))
    rng = np.random.default_rng(0)
    fill = lambda x: (rng.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5).astype(np.float32)
    params = jax.tree.map(fill, kinds.of(config).shapes(config))
    conversion.save(folder, 3, {"params": params, "ema": {}})
    if variant == "ldm":
        digest = tree.digest(params_of(config.first_stage))
        record = {"scale": 0.7, "origin": {"digest": digest}}
        (folder / "latents.json").write_text(json.dumps(record))
    return folder


def params_of(first_stage):
    from ldm_jax.runs import codecs

    return codecs.read_params(first_stage)[0]


def convert_ok(*argv):
    assert convert.run([str(arg) for arg in argv]) == 0


def draw(run, **settings):
    noise = np.random.default_rng(1).normal(size=(2, 8, 8, 2)).astype(np.float32)
    return run.sample(2, steps=4, noise=noise, latents=True, **settings)


@pytest.mark.parametrize(
    ("first", "conditioners", "changes", "kind"),
    [
        ("vq", {}, UNCONDITIONAL | {"process.schedule": "rectified"}, "LDMPipeline"),
        (
            "first_stage",
            {"class": dict(name="class", num_classes=5, width=8)},
            {"process.zero_terminal_snr": "True"},
            "StableDiffusionPipeline",
        ),
        pytest.param(
            *("first_stage", {"text_ids": TEXT}, {}, "StableDiffusionPipeline"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vq",
            {"class": dict(name="class", num_classes=5, width=64, place="vector")},
            UNCONDITIONAL | {"process.prediction": "eps"},
            None,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pipeline_comes_back_the_same(tmp_path, first, conditioners, changes, kind, capfd):
    beneath = tiny_run(tmp_path / "first", first)
    changes = changes | {"first_stage": str(beneath), "sample.spacing": "trailing"}
    source = tiny_run(tmp_path / "ldm", "ldm", conditioners, **changes)
    convert_ok("export", f"--run={source}", f"--out={tmp_path / 'out'}")
    index = tmp_path / "out" / "model_index.json"
    assert (json.loads(index.read_text())["_class_name"] if kind else None) == kind
    if not kind:  # no pipeline of diffusers' takes these parts; ours need no more than the names
        index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'out'}", f"--out={tmp_path / 'back'}")
    a, b = ldm_jax.load(source), ldm_jax.load(tmp_path / "back")
    assert b.config.process == a.config.process
    assert b.config.sample.spacing in ("exact", "trailing")
    assert b.num_classes == a.num_classes
    settings = {}
    if conditioners:
        settings = dict(cond=FIELDS[next(iter(conditioners))], guidance=2.0)
    z = draw(a, **settings)
    np.testing.assert_allclose(draw(b, **settings), z, atol=1e-5)
    np.testing.assert_allclose(b.decode(z), a.decode(z), atol=1e-5)


SHIFTED = {"scale": [0.4, 1.7], "shift": [3.0, -0.5]}


@pytest.mark.parametrize("pipeline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_scale_of_every_channel_comes_back(tmp_path, pipeline):
    """In the autoencoder's two ends for a pipeline, as none knows it; otherwise in its config."""
    beneath = tiny_run(tmp_path / "first", "first_stage")
    kind = {"class": dict(name="class", num_classes=5, width=8)}
    if not pipeline:
        kind["class"].update(width=64, place="vector")
    more = {} if pipeline else UNCONDITIONAL
    more = more | {"latents.per_channel": "True", "sample.spacing": "trailing"}
    source = tiny_run(tmp_path / "ldm", "ldm", kind, first_stage=str(beneath), **more)
    record = json.loads((source / "latents.json").read_text()) | SHIFTED
    (source / "latents.json").write_text(json.dumps(record))
    convert_ok("export", f"--run={source}", f"--out={tmp_path / 'out'}")
    index = tmp_path / "out" / "model_index.json"
    if not pipeline:
        index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'out'}", f"--out={tmp_path / 'back'}")
    back = json.loads((tmp_path / "back" / "latents.json").read_text())
    if pipeline:
        assert back["scale"] == 1.0 and "shift" not in back
    else:
        assert (
            back["scale"] == pytest.approx(SHIFTED["scale"]) and back["shift"] == SHIFTED["shift"]
        )
    a, b = ldm_jax.load(source), ldm_jax.load(tmp_path / "back")
    z = draw(a, cond=FIELDS["class"], guidance=2.0)
    np.testing.assert_allclose(draw(b, cond=FIELDS["class"], guidance=2.0), z, atol=1e-5)
    np.testing.assert_allclose(b.decode(z), a.decode(z), atol=1e-4)
    images = np.asarray(a.decode(z))
    np.testing.assert_allclose(b.encode(images), a.encode(images), atol=1e-4)


def test_a_codebook_cannot_take_a_scale_of_every_channel_to_diffusers(tmp_path, capfd):
    beneath = tiny_run(tmp_path / "first", "vq")
    more = UNCONDITIONAL | {"latents.per_channel": "True"}
    run = tiny_run(tmp_path / "ldm", "ldm", first_stage=str(beneath), **more)
    record = json.loads((run / "latents.json").read_text()) | SHIFTED
    (run / "latents.json").write_text(json.dumps(record))
    assert convert.run(["export", f"--run={run}", f"--out={tmp_path / 'out'}"]) == 2
    assert "VQModel has one scale for all channels" in capfd.readouterr().err


@pytest.mark.slow
def test_class_tokens_lie_beside_the_pipeline_as_the_official_table(tmp_path):
    beneath = tiny_run(tmp_path / "first", "first_stage")
    kwargs = {"class": dict(name="class", num_classes=5, width=8)}
    run = tiny_run(tmp_path / "ldm", "ldm", kwargs, first_stage=str(beneath))
    convert_ok("export", f"--run={run}", f"--out={tmp_path / 'out'}")
    folder = tmp_path / "out" / "class_embedder"
    table = tensorfile.read(folder / WEIGHTS)["embedding.weight"]
    about = json.loads((folder / "config.json").read_text())
    assert table.shape == (6, 8) == (about["n_classes"], about["embed_dim"])
    loaded = ldm_jax.load(run)
    x, t = np.ones((2, 8, 8, 2), np.float32), np.array([5, 700])
    own = loaded.denoise(x, t, {"class": np.array([2, 5])})
    given = loaded.denoise(x, t, {"tokens": table[[2, 5]][:, None]})
    np.testing.assert_allclose(own, given, atol=1e-6)


def test_what_diffusers_has_no_place_for_is_refused_whole(tmp_path, capfd):
    beneath = tiny_run(tmp_path / "first", "vq")
    kwargs = {"segmentation": dict(name="rescaler", stages=1, classes=4, channels=3)}
    run = tiny_run(tmp_path / "ldm", "ldm", kwargs, first_stage=str(beneath), **UNCONDITIONAL)
    assert convert.run(["export", f"--run={run}", f"--out={tmp_path / 'out'}"]) == 2
    assert "no counterpart of the conditioner 'rescaler'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


SD = dict(
    _class_name="DDIMScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def assemble(golden, folder, scheduler, **parts):
    """A pipeline's folder from golden models."""
    for name, source in parts.items():
        shutil.copytree(golden / "diffusers" / source, folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "X", "scheduler": ["diffusers", "Y"]}
    index |= {name: ["diffusers", "Z"] for name in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("changes", "process", "spacing"),
    [
        ({}, dict(prediction="eps", zero_terminal_snr=False), "legacy"),
        (
            dict(
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
                set_alpha_to_one=True,
            ),
            dict(prediction="v", zero_terminal_snr=True),
            "exact",
        ),
        (dict(prediction_type="sample", steps_offset=0), dict(prediction="x0"), None),
        (dict(_class_name="PNDMScheduler", skip_prk_steps=True), dict(prediction="eps"), "legacy"),
    ],
)
def test_a_scheduler_says_how_to_sample(golden, tmp_path, changes, process, spacing, capfd):
    """On parts that golden cases hold one by one: an SD 2 UNet on a KL first stage."""
    parts = dict(unet="unet2dcond_sd2_linearproj", vae="autoencoder_kl_sd_legacykeys")
    folder = assemble(golden, tmp_path / "pipe", SD | changes, **parts)
    convert_ok("diffusers", f"--checkpoint={folder}", f"--out={tmp_path / 'run'}")
    config = record_lib.read(tmp_path / "run")
    assert process.items() <= config.process.to_dict().items()
    said = capfd.readouterr().out
    assert config.sample.spacing == (spacing or "exact")
    assert config.sample.sampler == ("plms" if "_class_name" in changes else "ddim")
    assert ("no time grid here" in said) == (spacing is None)
    assert json.loads((tmp_path / "run" / "latents.json").read_text())["scale"] == 0.18215


@pytest.mark.parametrize(
    ("vae", "scale", "shift"),
    [
        (dict(scaling_factor=0.5, shift_factor=0.25), [0.5] * 4, [0.25] * 4),
        (
            dict(scaling_factor=0.5, latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8]),
            [0.5, 0.25, 0.125, 0.0625],
            [1, 2, 3, 4],
        ),
        (dict(latents_mean=[1, 2, 3, 4]), "no latents_std beside", None),
        (
            dict(latents_mean=[1] * 4, latents_std=[1] * 4, shift_factor=2.0),
            "shift_factor=2.0",
            None,
        ),
        (dict(latents_mean=[1] * 3, latents_std=[1] * 4), "latents_mean", None),
    ],
    ids=str,
)
def test_diffusers_normalisations_are_read(golden, tmp_path, vae, scale, shift, capfd):
    """As Stable Diffusion XL and 3 write them: z = (latent - mean) scaling_factor / std."""
    parts = dict(unet="unet2dcond_sd2_linearproj", vae="autoencoder_kl_sd_legacykeys")
    folder = assemble(golden, tmp_path / "pipe", SD, **parts)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | vae))
    argv = ["diffusers", f"--checkpoint={folder}", f"--out={tmp_path / 'run'}"]
    if shift is None:
        assert convert.run(argv) == 2 and scale in capfd.readouterr().err
        return
    assert convert.run(argv) == 0
    found = json.loads((tmp_path / "run" / "latents.json").read_text())
    assert found["scale"] == pytest.approx(scale) and found["shift"] == pytest.approx(shift)


def test_betas_of_no_schedule_are_refused(golden, tmp_path, capfd):
    parts = dict(unet="unet2dcond_sd2_linearproj", vae="autoencoder_kl_sd_legacykeys")
    folder = assemble(golden, tmp_path / "pipe", SD | dict(trained_betas=[0.1] * 1000), **parts)
    argv = ["diffusers", f"--checkpoint={folder}", f"--out={tmp_path / 'run'}"]
    assert convert.run(argv) == 2
    assert "trained_betas" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_zero_terminal_snr_with_eps_is_refused(golden, tmp_path, capfd):
    parts = dict(unet="unet2dcond_sd2_linearproj", vae="autoencoder_kl_sd_legacykeys")
    folder = assemble(golden, tmp_path / "pipe", SD | dict(rescale_betas_zero_snr=True), **parts)
    argv = ["diffusers", f"--checkpoint={folder}", f"--out={tmp_path / 'run'}"]
    assert convert.run(argv) == 2
    assert "zero_terminal_snr" in capfd.readouterr().err and not (tmp_path / "run").exists()
