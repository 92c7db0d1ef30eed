"""A decoder that is trained for the latents of a first stage: its run, and what it draws for."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calling import call

from ldm_jax import convert, evaluate, plan, sample, train
from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, tree
from ldm_jax.base.record import Record
from ldm_jax.diffusion import samplers
from ldm_jax.engine import checkpoint
from ldm_jax.models import paired, tiny
from ldm_jax.runs import codecs, conversion, kinds, opened

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
SHORT = ["steps.total=4", "steps.log=2", "steps.eval=4", "steps.checkpoint=2", "eval.records=8"]
SHORT += ["model.width=4", "loss.disc_start=2", "optim.autoencoder.warmup=1"]
KEY = jax.random.key(0)


def made(folder, spec, seed=0, **changes):
    """A run of a recipe as if trained: random weights, none of them zero, and its record."""
    config, rng = config_lib.load(f"{CONFIGS}/{spec}", changes), np.random.default_rng(seed)
    record, kind = Record(folder), kinds.of(config)
    if "conditioners" in config:
        config.unlock().conditioners = {}
    fill = lambda x: (rng.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5).astype(np.float32)
    conversion.save(folder, 3, {"params": jax.tree.map(fill, kind.shapes(config)), "ema": {}})
    record.write_config(config)
    if config.get("encoder"):
        record.write(frozen={"encoder": tree.digest(codecs.read_params(config.encoder)[0])})
    if beneath := config.get("first_stage"):
        digest = tree.digest(codecs.read_params(beneath)[0])
        record.write(latents={"scale": 0.7, "origin": {"digest": digest}})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A VQ first stage, a second stage on it, decoders of it, and another first stage."""
    folder = tmp_path_factory.mktemp("runs")
    first = made(folder / "first", "debug.py:vq", **{"model.groups": "8"})
    ldm = {"first_stage": str(first), "model.mult": "(1,)"}
    ldm |= {"model.cross_attention": "False", "model.attention": "()", "model.groups": "8"}
    made(folder / "ldm", "debug.py:ldm", **ldm)
    made(folder / "tiny", f"decoder.py:{first}", **{"model.width": "4"})
    narrow = {"encoder": str(first), "model.width": "4", "model.groups": "4"}
    made(folder / "narrow", "debug.py:vq", **narrow)
    made(folder / "other", "debug.py:vq", seed=1, **{"model.groups": "8"})
    return folder


def test_an_autoencoder_paired_with_its_own_decoder_is_itself(runs):
    config, params = Record(runs / "first").config, codecs.read_params(runs / "first")[0]
    kind, x = kinds.of(config), jax.random.normal(KEY, (2, 8, 8, 3))
    network = kind.network(config)
    both = paired.Paired(network, kind.decoder(config))
    own = {"encoder": params, "decoder": params}
    want = jax.jit(network.apply)({"params": params}, x)
    np.testing.assert_allclose(jax.jit(both.apply)({"params": own}, x), want, atol=1e-6)


def test_patches_of_pixels_keep_f_and_the_shape_of_images():
    x = jnp.zeros((2, 16, 16, 3))
    for levels, patch in ((3, 1), (2, 2), (1, 4)):
        model = tiny.TinyAutoencoder(4, 2, levels, 1, False, patch=patch)
        z, x_hat = jax.eval_shape(
            lambda x, m=model: (
                m.init_with_output(KEY, x, method="encode")[0],
                m.init_with_output(KEY, x)[0],
            ),
            x,
        )
        assert model.f == 4 and z.shape == (2, 4, 4, 2) and x_hat.shape == x.shape


def test_the_decoder_alone_is_trained_and_all_of_it(runs):
    config = config_lib.load(f"{CONFIGS}/decoder.py:{runs / 'first'}", {"model.patch": "2"})
    config.loss.disc_start, config.model.levels, config.model.width = 0, 1, 4
    config.loss.terms.update(halved=0.5, turned=0.5)
    frozen = {"encoder": codecs.read_params(runs / "first")[0]}
    stage = kinds.of(config).stage(config, frozen)
    params = {player.name: player.init(KEY) for player in stage.players}
    batch = {"image": jax.random.uniform(KEY, (2, 8, 8, 3), minval=-1.0)}
    given = frozen, batch, KEY, 1, {}
    loss = lambda own: stage.players[0].loss(params | {"autoencoder": own}, *given)
    grads, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(params["autoencoder"])
    assert set(grads["model"]) == {"decoder"}
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert metrics["term_halved"] > 0 and metrics["term_turned"] > 0


def test_latents_err_as_much_as_asked():
    config = config_lib.load(f"{CONFIGS}/debug.py:first_stage")
    config.encoder, z = f"{CONFIGS}/debug.py:first_stage", 5 * jax.random.normal(KEY, (64, 8, 8, 2))
    erred = {}
    for noise in (0.0, 0.1):
        config.loss.latent_noise = noise
        erred[noise] = kinds.of(config).model(config)._erred(z, KEY)
    np.testing.assert_array_equal(erred[0.0], z)
    shares = np.std(np.asarray(erred[0.1] - z), axis=(1, 2, 3)) / np.std(np.asarray(z))
    assert shares.max() < 0.12 and shares.min() < 0.02
    assert shares.mean() == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("decoder", ["tiny", pytest.param("narrow", marks=pytest.mark.slow)])
def test_what_is_sampled_is_decoded_by_it(runs, decoder):
    run = opened.load(runs / "ldm", decoder=runs / decoder)
    z, images = (run.sample(2, steps=2, seed=1, latents=latents) for latents in (True, False))
    own = checkpoint.read_params(runs / decoder, ("autoencoder",))[0]["autoencoder"]["model"]
    book = codecs.read_params(runs / "first")[0]["codebook"]
    z = z / 0.7
    nearest = np.argmin(((z[..., None, :] - book) ** 2).sum(-1), axis=-1)
    config = Record(runs / decoder).config
    network = kinds.of(config).decoder(config)
    want = network.apply({"params": own}, book[nearest], method="decode")
    np.testing.assert_allclose(images, np.clip(want, -1, 1), atol=1e-5)
    first, own = opened.load(runs / "first"), opened.load(runs / decoder)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(own.encode(x), first.encode(x))
    beside = opened.load(runs / "first", decoder=runs / decoder)
    np.testing.assert_array_equal(beside.decode(beside.encode(x)), own.decode(own.encode(x)))


def test_a_decoder_of_other_latents_is_refused(runs, tmp_path, refused):
    argv = [f"--run={runs / 'ldm'}", f"--out={tmp_path / 'out'}", "--num=8", "--batch_size=8"]
    for name, words in (("other", "decodes other latents than those of"), ("ldm", "second stage")):
        assert words in refused(call(sample, *argv, f"--decoder={runs / name}"))


def test_what_is_evaluated_is_decoded_by_it(runs, refused):
    config, tiny = Record(runs / "ldm").config, runs / "tiny"
    config.sample.update(steps=2, guidance=1.0, sampler="ddim")
    kind, first = kinds.of(config), codecs.read_params(config.first_stage)[0]
    codec, both, _ = codecs.with_decoder(tiny, kind.codec(config), first, config.first_stage)
    draw, _ = kind.drawing(config, codec)
    params, _ = checkpoint.read_params(runs / "ldm", ("denoiser",))
    frozen = kind.beneath(config, Record(runs / "ldm")) | {"first_stage": both}
    drawn = draw(params, frozen, {}, samplers.image_keys(1, jnp.arange(2)))
    want = opened.load(runs / "ldm", decoder=tiny).sample(2, steps=2, seed=1, guidance=1.0)
    np.testing.assert_allclose(np.clip(drawn, -1, 1), want, atol=1e-5)

    evaluate_run = lambda run, *flags: refused(
        call(evaluate, f"--run={runs / run}", f"--decoder={tiny}", *flags)
    )
    assert f"evaluate --run={tiny} measures that decoder" in evaluate_run("first")
    assert "does nothing without figures of images" in evaluate_run("ldm")
    argv = [f"--samples={runs}", f"--decoder={tiny}"]
    assert "--decoder does nothing with --samples" in refused(call(evaluate, *argv))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["encoder={runs}/ldm"], "is a second stage"),
        (["encoder={runs}/tiny"], "has no encoder of its own: give the run of its config.encoder"),
        (["encoder=identity"], "has no latents to decode"),
        (["encoder=configs/debug.py:vq"], "is a recipe: train it"),
        (["model.latent_channels=3"], "has 2 channels in its latents, config.model is of 3"),
        (["model.levels=3"], "has 2 pixels on the side of a latent's position"),
        (["loss.restart=5"], "restart=5 does nothing without a codebook that is trained"),
    ],
)
def test_what_cannot_be_is_one_line(runs, tmp_path, refused, flags, line):
    argv = [f"--config={CONFIGS}/decoder.py:{runs}/first", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.{flag.format(runs=runs)}" for flag in flags]
    assert line in refused(call(train, *argv))
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_changed_is_refused(runs, tmp_path):
    made(tmp_path / "run", f"decoder.py:{runs}/first", **{"model.width": "4"})
    Record(tmp_path / "run").write(frozen={"encoder": "another"})
    with pytest.raises(errors.UsageError, match=r"config\.encoder=\S+ has changed since"):
        opened.load(tmp_path / "run")


def decoder(first, workdir, *flags) -> int:
    argv = [f"--config={CONFIGS}/decoder.py:{first}", f"--workdir={workdir}"]
    return call(train, *argv, *(f"--config.{flag}" for flag in (*SHORT, *flags)))


@pytest.mark.slow
def test_its_run_is_resumed_measured_and_drawn_from(runs, tmp_path, refused, capfd):
    before = tree.digest(codecs.read_params(runs / "first")[0])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert decoder(runs / "first", whole) == 0
    assert decoder(runs / "first", cut, "steps.total=2") == 0
    argv = [f"--config={cut}/config.json", f"--workdir={cut}", "--config.steps.total=4"]
    assert call(train, *argv, "--allow_config_change=steps.total") == 0
    assert not checkpoint.read_params(whole)[0].keys() - {"autoencoder", "discriminator"}
    record = Record(whole).frozen
    assert record["encoder"] == before and record["encoder_run"] == str(runs / "first")
    assert decoder(runs / "first", tmp_path / "mesh", "mesh.fsdp=2") == 0
    for other, close in ((cut, 0), (tmp_path / "mesh", 1e-4)):
        pair = [checkpoint.read_params(run)[0]["autoencoder"] for run in (whole, other)]
        jax.tree.map(lambda a, b, c=close: np.testing.assert_allclose(a, b, atol=c), *pair)
    assert tree.digest(codecs.read_params(runs / "first")[0]) == before

    line = disk.read_jsonl(whole / "metrics.jsonl")[-1]
    assert {"val/psnr_db", "val/full_psnr_db"} <= line.keys()
    assert call(evaluate, f"--run={whole}", f"--out={tmp_path / 'measured'}") == 0
    measured = json.loads((tmp_path / "measured" / "summary.json").read_text())
    assert measured["full_psnr_db"] > 0 and measured["codebook_usage"] > 0
    assert call(plan, f"--config={whole}/config.json", "--topology=cpu:8", "--parts=train") == 0

    argv = [f"--run={runs / 'ldm'}", f"--out={tmp_path / 'out'}", "--num=8", "--batch_size=8"]
    assert call(sample, *argv, f"--decoder={whole}", "--steps=1") == 0
    said = json.loads((tmp_path / "out" / "summary.json").read_text())["decoder"]
    assert said["run"] == str(whole) and said["weights"]
    capfd.readouterr()
    assert "decoder" in refused(call(sample, *argv, f"--decoder={runs / 'tiny'}", "--steps=1"))
    assert "diffusers has no class" in refused(
        convert.run(["export", f"--run={whole}", f"--out={tmp_path / 'diffusers'}"])
    )
