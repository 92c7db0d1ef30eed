"""Laws of the first stage's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import bottleneck
from ldm_jax.models.autoencoder import Autoencoder

KEY = jax.random.key(0)


def _tiny(**kwargs):
    return Autoencoder(**{"width": 8, "mult": (1, 2), "blocks": 1, "codebook_size": 16} | kwargs)


IMAGE = jnp.zeros((1, 8, 8, 3))


def _count(model):
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, 3))))["params"]
    parts = [shapes["encoder"], shapes["decoder"]]
    return sum(leaf.size for leaf in jax.tree.leaves(parts)) / 1e6


@pytest.mark.parametrize(
    "levels, kind, factor, patch, fold",
    [(n, "kl", 2, 1, 1) for n in range(1, 7)]
    + [(3, "vq", 1, 1, 1), (2, "none", 1, 4, 1), (1, "kl", 2, 8, 1), (2, "vq", 1, 2, 2)],
)
def test_latents_are_f_times_smaller(levels, kind, factor, patch, fold):
    how = dict(latent_channels=5, attention=(2,), patch=patch, fold=fold)
    model = _tiny(mult=(1,) * levels, bottleneck=kind, **how)
    assert model.f == patch * 2 ** (levels - 1) * fold
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 64, 3))))
    x = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)
    z = jax.eval_shape(lambda p, x: model.apply(p, x, method="encode"), shapes, x)
    assert z.shape == (2, 32 // model.f, 64 // model.f, 5 * factor)
    z = jax.ShapeDtypeStruct((*z.shape[:3], 5), jnp.float32)
    assert (
        jax.eval_shape(lambda p, z: model.apply(p, z, method="decode"), shapes, z).shape == x.shape
    )


@pytest.mark.parametrize(
    "millions, kwargs",
    [
        (55.3, {"mult": (1, 2, 4)}),
        (83.7, {"mult": (1, 2, 4, 4), "z_channels": 4}),
        (67.7, {"mult": (1, 2, 2, 4), "z_channels": 4, "attention": (8,), "bottleneck": "vq"}),
        (103.9, {"mult": (1, 1, 2, 2, 4, 4), "z_channels": 64, "attention": (16, 32)}),
    ],
)
def test_published_autoencoders_have_their_parameter_count(millions, kwargs):
    np.testing.assert_allclose(_count(Autoencoder(**kwargs)), millions, rtol=0.005)


def test_vq_decode_quantises_unless_told_not_to(filled):
    model = _tiny(mult=(1,), bottleneck="vq")
    params = {"params": filled(model, IMAGE)}
    z = jax.random.normal(KEY, (1, 4, 4, 3))
    z_q, _ = bottleneck.quantise(params["params"]["codebook"], z)
    quantised = jax.jit(lambda z: model.apply(params, z, method="decode"))
    straight = jax.jit(lambda z: model.apply(params, z, quantise=False, method="decode"))
    np.testing.assert_allclose(quantised(z), straight(z_q), atol=1e-4)
    assert not np.allclose(quantised(z), straight(z), atol=1e-3)


def test_bfloat16_compute_keeps_float32_params_and_outputs(filled):
    x = jax.random.uniform(KEY, (1, 8, 8, 3), minval=-1, maxval=1)
    full, low = (_tiny(mult=(1,), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    shapes = jax.eval_shape(low.init, KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    params = {"params": filled(full, x)}
    out, want = jax.jit(low.apply)(params, x), jax.jit(full.apply)(params, x)
    assert out.dtype == jnp.float32
    assert np.mean(np.abs(out - want)) < 0.1 * np.std(want)


def test_remat_keeps_the_parameters_and_can_be_differentiated(filled):
    plain, remat = (_tiny(remat=r, attention=(2,), dropout=0.2) for r in (False, True))
    params = filled(plain, IMAGE)
    loss = lambda p: jnp.sum(remat.apply({"params": p}, IMAGE, True, rngs={"dropout": KEY}))
    grads = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert "remat" in str(jax.make_jaxpr(loss)(params)).replace("checkpoint", "remat")


def test_sizes_that_do_not_divide_and_unknown_bottlenecks_are_refused():
    with pytest.raises(ValueError, match="9x8"):
        jax.eval_shape(lambda: _tiny().init(KEY, jnp.zeros((1, 9, 8, 3))))
    with pytest.raises(ValueError, match="'vae'"):
        jax.eval_shape(lambda: _tiny(bottleneck="vae").init(KEY, IMAGE))


def test_decoder_ends_in_conv_out():
    shapes = jax.eval_shape(lambda: _tiny().init(KEY, IMAGE))["params"]
    assert shapes["decoder"]["conv_out"]["kernel"].shape == (3, 3, 8, 3)
