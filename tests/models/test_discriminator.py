"""Laws of the patch discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.discriminator import BatchNorm, PatchDiscriminator

KEY = jax.random.key(0)


@pytest.mark.parametrize("layers, millions, size", [(3, 2.77, 30), (2, 0.66, 62)])
def test_published_discriminators_have_their_size(layers, millions, size):
    x = jnp.zeros((1, 256, 256, 3))
    model = PatchDiscriminator(layers=layers)
    logits, shapes = jax.eval_shape(lambda: model.init_with_output(KEY, x))
    assert logits.shape == (1, size, size, 1)
    assert list(shapes) == ["params"], "no running statistics: apply is pure"
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    np.testing.assert_allclose(count, millions, rtol=0.006)


def test_batch_norm_standardises_over_the_whole_batch():
    x = 5 + 3 * jax.random.normal(KEY, (4, 6, 6, 8))
    params = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    y = BatchNorm().apply(params, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1.0, atol=1e-4)


@pytest.mark.parametrize("norm, alone", [("batch", False), ("group", True)])
def test_only_group_norm_judges_an_image_alone(norm, alone, filled):
    model = PatchDiscriminator(width=8, layers=2, norm=norm)
    x = jax.random.normal(KEY, (3, 16, 16, 3)) * jnp.array([1.0, 2.0, 3.0])[:, None, None, None]
    params = {"params": filled(model, x)}
    apply = jax.jit(model.apply)
    assert np.allclose(apply(params, x)[:1], apply(params, x[:1]), atol=1e-5) == alone
