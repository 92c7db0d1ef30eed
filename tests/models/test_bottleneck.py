"""Laws of the bottlenecks."""

import ast
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.models import bottleneck
from ldm_jax.models.autoencoder import Autoencoder

KEY = jax.random.key(0)


def test_kl_agrees_with_monte_carlo():
    moments = 0.5 * jax.random.normal(KEY, (2, 2, 2, 6))
    mean, logvar = bottleneck.split(moments)
    mean, logvar = np.asarray(mean), np.asarray(logvar)
    noise = np.random.default_rng(0).normal(size=(20_000, *mean.shape))
    z = mean + np.exp(0.5 * logvar) * noise
    log_ratio = 0.5 * (z**2 - (z - mean) ** 2 / np.exp(logvar) - logvar)
    estimate = log_ratio.sum((-3, -2, -1)).mean(0)
    np.testing.assert_allclose(bottleneck.kl(moments), estimate, rtol=0.05)


def test_kl_of_the_prior_is_zero():
    np.testing.assert_array_equal(bottleneck.kl(jnp.zeros((3, 2, 2, 4))), 0.0)


def test_logvar_is_clamped():
    _, logvar = bottleneck.split(jnp.array([0.0, 99.0, 0.0, -99.0]).reshape(1, 1, 2, 2))
    np.testing.assert_array_equal(logvar.reshape(-1), [20.0, -30.0])


def test_quantise_picks_the_nearest_entry():
    codebook = jax.random.normal(KEY, (11, 3))
    z = jax.random.normal(jax.random.key(1), (2, 4, 5, 3))
    z_q, indices = bottleneck.quantise(codebook, z)
    distances = ((np.asarray(z)[..., None, :] - np.asarray(codebook)) ** 2).sum(-1)
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    np.testing.assert_array_equal(z_q, np.asarray(codebook)[np.asarray(indices)])


def test_straight_through_has_the_gradient_of_the_identity():
    codebook, weight = jax.random.normal(KEY, (7, 3)), jax.random.normal(KEY, (1, 2, 2, 3))

    def loss(z):
        z_q, _ = bottleneck.quantise(codebook, z)
        return jnp.sum(weight * bottleneck.straight_through(z, z_q))

    z = jax.random.normal(jax.random.key(2), weight.shape)
    np.testing.assert_array_equal(jax.grad(loss)(z), weight)


@pytest.mark.parametrize("legacy, weight_of_z, weight_of_codebook", [(1, 1, 0.25), (0, 0.25, 1)])
def test_legacy_says_which_term_beta_weights(legacy, weight_of_z, weight_of_codebook):
    z, z_q = jax.random.normal(KEY, (2, 1, 2, 2, 3))
    grads = jax.grad(bottleneck.vq_loss, (0, 1))(z, z_q, legacy=bool(legacy))
    pull = 2 * (z - z_q) / z.size
    np.testing.assert_allclose(grads[0], weight_of_z * pull, atol=1e-6)
    np.testing.assert_allclose(grads[1], -weight_of_codebook * pull, atol=1e-6)


def test_usage_counts_entries():
    even = bottleneck.usage(jnp.arange(8).reshape(2, 4), 16)
    np.testing.assert_allclose([even["perplexity"], even["usage"]], [8.0, 0.5], rtol=1e-4)
    one = bottleneck.usage(jnp.zeros(5, int), 4)
    np.testing.assert_allclose([one["perplexity"], one["usage"]], [1.0, 0.25], rtol=1e-4)


def test_counts_are_of_each_image_and_only_of_a_codebook():
    codebook, z = jnp.eye(3), jnp.array([[[0, 0]], [[2, 1]]])  # two images of two positions
    kl, vq = (bottleneck.BOTTLENECKS.get(name) for name in ("kl", "vq"))
    counts = vq.counts({"codebook": codebook}, codebook[z])
    assert counts.tolist() == [[2, 0, 0], [0, 1, 1]]
    assert kl.counts({}, codebook[z]).shape == (2, 0)


@pytest.mark.parametrize("name, drawn", [("none", False), ("kl", True), ("vq", False)])
def test_only_a_distribution_is_sampled(name, drawn):
    own = bottleneck.BOTTLENECKS.get(name)
    moments = jax.random.normal(KEY, (1, 2, 2, 3 * own.moments))
    mode, sample = own.mode(moments), own.sample(KEY, moments)
    assert mode.shape == sample.shape == (1, 2, 2, 3)
    assert drawn != np.array_equal(mode, sample)


def test_no_module_asks_for_a_bottleneck_by_name():
    names = {"kl", "vq"}
    compared = [
        f"{path.name}:{node.lineno}"
        for path in pathlib.Path(ldm_jax.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    ]
    assert not compared, f"{compared}: what a bottleneck is, its value in BOTTLENECKS says."


def test_fixed_noise_is_the_models_and_not_the_encoders():
    small = dict(width=4, mult=(1, 1), blocks=1, groups=1, latent_channels=2, z_channels=2)
    model = Autoencoder(**small, bottleneck="noise", posterior_logvar=-4.0)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = model.init(jax.random.key(1), x)["params"]
    assert params["to_latent"]["kernel"].shape == (2, 2)
    moments = model.apply({"params": params}, x, method="encode")
    own = bottleneck.BOTTLENECKS.get("noise")
    np.testing.assert_allclose(own.variance(moments), np.exp(-4.0), rtol=1e-6)
    drawn = [own.sample(jax.random.key(i), moments) for i in range(200)]
    np.testing.assert_allclose(np.var(drawn, axis=0).mean(), np.exp(-4.0), rtol=0.05)
    np.testing.assert_allclose(np.mean(drawn, axis=0), own.mode(moments), atol=0.05)


def test_signs_are_two_to_the_channels_entries_and_their_loss_wants_each_bit_used():
    own, loss = (
        bottleneck.BOTTLENECKS.get("lfq"),
        types.SimpleNamespace(beta=0.0, codebook_weight=1),
    )
    z = jax.random.normal(KEY, (2, 8, 8, 3))
    np.testing.assert_array_equal(own.quantise({}, z), np.sign(z))
    straight = jax.grad(lambda z: jnp.sum(own.quantise({}, z) ** 2))(z)
    np.testing.assert_allclose(straight, 2 * np.sign(z))
    term = lambda z: float(own.regularise({}, z, KEY, loss)[0])
    balanced = 5 * jnp.sign(z)
    assert term(jnp.abs(balanced)) > term(z) > term(balanced), "certain each, and both in use"
    assert float(own.regularise({}, balanced, KEY, loss)[1]["bit_entropy"]) == pytest.approx(
        1, abs=0.05
    )
