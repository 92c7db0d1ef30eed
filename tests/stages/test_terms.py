"""Terms of the first stage's losses: each is zero where its law holds, and positive where not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.nn import blocks
from ldm_jax.runs import kinds
from ldm_jax.stages import adversary, terms

KEY = jax.random.key(3)
up = blocks.upsample_nearest


def distance(x, x_hat):
    return jnp.mean(jnp.abs(x - x_hat))


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1.0)


def term(name, z, decode):
    x = decode(z)
    return float(terms.value(name, x, x, 0, z=z, decode=decode, distance=distance, key=KEY))


@pytest.mark.parametrize("name", ["halved", "turned"])
def test_a_decoder_of_single_pixels_is_equivariant(name, images):
    assert term(name, images, lambda z: 2 * z) == pytest.approx(0, abs=1e-6)


def test_a_decoder_that_knows_up_from_down_is_not(images):
    shade = lambda z: up(z) * jnp.linspace(0, 1, 16)[: 2 * z.shape[1], None, None]
    assert term("turned", images, shade) > 0.1


def test_what_only_high_frequencies_say_is_lost_to_halved_latents(images):
    board = jnp.indices((8, 8)).sum(0)[None, ..., None] % 2 * 2.0 - 1
    assert term("halved", board * jnp.ones((1, 1, 1, 3)), lambda z: jnp.abs(up(z))) > 0.9


def test_r1_is_half_the_squared_gradient_of_an_images_mean_logit(images):
    slope = jnp.arange(3.0)
    judge = lambda x: (x @ slope)[..., None]  # the mean logit's gradient: slope / 64 at each pixel
    want = 0.5 * 64 * float(jnp.sum(slope**2)) / 64**2
    assert float(adversary.r1(judge, images, None, None)) == pytest.approx(want, rel=1e-5)


def test_lecam_pulls_each_kind_of_logits_towards_the_others_mean():
    real, fake = jnp.array([2.0, 4.0]), jnp.array([-1.0, -1.0])
    loss = lambda real, fake: adversary.lecam(None, None, real, fake)
    assert float(loss(real, fake)) == pytest.approx((9 + 25) / 2 + 16)
    of_real, of_fake = jax.grad(loss, (0, 1))(real, fake)
    np.testing.assert_allclose(of_real, [3, 5])
    np.testing.assert_allclose(of_fake, [-4, -4])


def test_a_term_keeps_the_defaults_of_what_it_is_not_given(monkeypatch):
    monkeypatch.setitem(terms.TERMS._entries, "mine", lambda x, y, step, power=2, key=None: power)
    assert terms.value("mine", 0, 0, 0, z=1, key=KEY) == 2


def test_accuracy_counts_both_kinds():
    assert float(adversary.accuracy(jnp.array([1.0, -1.0]), jnp.array([-1.0, -2.0]))) == 0.75


def model(**loss):
    config = config_lib.load("configs/debug.py:first_stage")
    config.data.size = 16
    config.model.mult = (1, 1)
    config.loss.update(disc_start=0, **loss)
    return kinds.of(config).model(config)


@pytest.fixture
def batch():
    return {"image": jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1.0)}


def test_the_discriminators_terms_are_added_by_weight_and_logged(batch):
    plain, held = model(), model(disc_terms={"r1": 2.0, "lecam": 3.0})
    params = {"discriminator": plain.init_discriminator(KEY)}
    shared = {"x_hat": 0.5 * batch["image"]}
    run = lambda stage: stage.discriminator_loss(params, {}, batch, KEY, 1, shared)
    (loss, (metrics, _)), (before, (few, _)) = run(held), run(plain)
    assert not {"term_r1", "term_lecam"} & few.keys()
    added = 2 * metrics["term_r1"] + 3 * metrics["term_lecam"]
    assert float(loss - before) == pytest.approx(float(added), rel=1e-4)
    assert 0 <= float(metrics["disc_accuracy"]) <= 1


def test_lpips_sees_the_same_crop_of_both_images(batch):
    seen = []
    stage = model(perceptual_weight=1.0, perceptual_crop=8)
    perceive = lambda weights, x, y: (seen.append((x, y)), jnp.zeros(len(x)))[1]
    stage = dataclasses.replace(stage, perceive=perceive)
    stage._nll({}, {"lpips": None}, batch["image"], 0.5 * batch["image"], KEY)
    (x, y) = seen[0]
    assert x.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(y, 0.5 * x)
    windows = [batch["image"][:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    assert any(np.array_equal(x, window) for window in windows)
