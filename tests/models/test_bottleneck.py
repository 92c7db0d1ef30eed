"""Laws of the two bottlenecks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import bottleneck

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
