"""Laws of conditioners and of the denoiser that hears them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import conditioners
from ldm_jax.models.conditioners import ClassEmbedder, Cond
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.models.unet import UNet

KEY = jax.random.key(0)
KEEP, DROP = jnp.array([False, False]), jnp.array([True, True])
X, T = jax.random.normal(KEY, (2, 8, 8, 3)), jnp.array([5, 10])


def _denoiser(*conds):
    unet = UNet(width=8, mult=(1, 2), blocks=1, attention=(2,), heads=2, cross_attention=True)
    return Denoiser(unet, conds)


@pytest.mark.parametrize("place, shape", [("tokens", (2, 1, 6)), ("vector", (2, 6))])
def test_dropped_class_is_the_null_class(place, shape):
    embedder = ClassEmbedder(10, 6, place)
    batch, null = {"class": jnp.array([3, 7])}, {"class": jnp.array([10, 10])}
    params = embedder.init(KEY, batch, KEEP)
    assert params["params"]["table"]["embedding"].shape == (11, 6)
    dropped = embedder.apply(params, batch, DROP)
    assert getattr(dropped, place).shape == shape
    jax.tree.map(np.testing.assert_array_equal, dropped, embedder.apply(params, null, KEEP))
    kept = embedder.apply(params, batch, jnp.array([True, False]))
    np.testing.assert_array_equal(
        getattr(kept, place)[1], getattr(embedder.apply(params, batch, KEEP), place)[1]
    )


def test_cond_is_a_pytree_whose_absent_parts_are_no_leaves():
    assert jax.tree.leaves(Cond()) == []
    doubled = jax.tree.map(lambda x: 2 * x, Cond(vector=jnp.ones(3)))
    np.testing.assert_array_equal(doubled.vector, 2.0)
    assert doubled.tokens is None


def test_merge_joins_tokens_and_channels_and_adds_vectors():
    image, rows = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 6))
    masked = Cond(jnp.ones((2, 2, 6)), rows, image, jnp.zeros((2, 2), bool))
    merged = conditioners.merge([masked, Cond(jnp.zeros((2, 3, 6)), 2 * rows, image)])
    assert merged.tokens.shape == (2, 5, 6)
    assert merged.concat.shape == (2, 4, 4, 6)
    np.testing.assert_array_equal(merged.vector, 3.0)
    np.testing.assert_array_equal(merged.mask, [[False, False, True, True, True]] * 2)
    assert conditioners.merge([]) == Cond()


def test_denoising_a_ready_condition_is_the_whole_call(filled):
    model, batch = _denoiser(ClassEmbedder(10, 6)), {"class": jnp.array([3, 7])}
    params = filled(model, X, T, batch, KEEP)
    assert set(params) == {"unet", "conditioners_0"}
    apply = jax.jit(model.apply, static_argnames="method")
    cond = apply({"params": params}, batch, KEEP, method="condition")
    whole = apply({"params": params}, X, T, batch, KEEP)
    np.testing.assert_allclose(
        apply({"params": params}, X, T, cond, method="denoise"), whole, atol=1e-5
    )
    assert not np.allclose(apply({"params": params}, X, T, batch, DROP), whole, atol=1e-4)
    assert model.fields == ("class",)


def test_without_conditioners_the_denoiser_is_unconditional():
    shapes = jax.eval_shape(lambda: _denoiser().init(KEY, X, T))["params"]
    assert set(shapes) == {"unet"}


def test_registry_knows_the_conditioners():
    assert conditioners.CONDITIONERS.get("class") is ClassEmbedder
