"""The TPU's attention kernel, interpreted: values and gradients are those of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import shard
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.nn import attention, tpu_attention


def arrays(b, n, m, heads, d, dtype=jnp.float32):
    random = np.random.default_rng(0)
    draw = lambda length: jnp.asarray(random.normal(size=(b, length, heads, d)), dtype)
    return draw(n), draw(m), draw(m)


def with_gradients(function):
    @jax.jit
    def both(q, k, v):
        y, back = jax.vjp(function, q, k, v)
        return y, *back(jnp.cos(3 * y.astype(jnp.float32)).astype(y.dtype))

    return both


@pytest.mark.parametrize(
    ("shape", "dtype", "atol"),
    [
        ((2, 256, 256, 4, 64), jnp.float32, 5e-6),  # two heads beside one another, two blocks
        ((1, 128, 128, 3, 32), jnp.float32, 5e-6),  # not a whole number of registers
        ((1, 128, 77, 4, 40), jnp.float32, 5e-6),  # heads across two registers; few keys
        ((1, 128, 128, 2, 128), jnp.bfloat16, 3e-2),
        ((1, 256, 256, 1, 512), jnp.float32, 5e-6),  # the middle of an autoencoder
    ],
)
def test_it_is_attention(shape, dtype, atol, monkeypatch):
    monkeypatch.setattr(tpu_attention, "LOGITS", 2**15)  # so that queries come in several parts
    given = arrays(*shape, dtype)
    assert tpu_attention.fits(*given[:2])
    want, got = (with_gradients(f)(*given) for f in (attention.attend, tpu_attention.attend))
    for a, b in zip(want, got):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (b, a)), atol=atol)


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "spatial": 2}]
)
def test_devices_take_their_own_images_queries_and_heads(axes):
    mesh, given = shard.make_mesh(**axes), arrays(8, 256, 128, 2, 64)
    want = with_gradients(attention.attend)(*given)
    split = jax.device_put(given, shard.batch_sharding(mesh))
    for a, b in zip(want, with_gradients(tpu_attention.attend)(*split)):
        np.testing.assert_allclose(b, a, atol=5e-6)
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        assert b.sharding.shard_shape(b.shape)[0] == 8 // rows, "no device has the images of all"


def test_a_layer_of_images_on_a_mesh_learns_alike(monkeypatch):
    layer = functools.partial(attention.AttentionBlock, groups=4)
    x = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 8)).astype(np.float32)
    params = jax.jit(layer().init)(jax.random.key(0), x)
    mesh = shard.make_mesh(data=2, fsdp=2, spatial=2)
    split = jax.device_put(x, shard.batch_sharding(mesh, x.shape))

    def gradients(x, **how):
        loss = lambda params, x: jnp.sum(layer(**how).apply(params, x) ** 2)
        return jax.jit(jax.grad(loss))(params, x)

    want, agree = gradients(x), functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(agree, gradients(split, attention_kernel="pallas"), want)  # the plain form here
    interpreted(monkeypatch)
    jax.tree.map(agree, gradients(split, attention_kernel="pallas"), want)


def test_both_halves_of_an_autoencoder_take_it(monkeypatch):
    calls, image = interpreted(monkeypatch), jnp.zeros((1, 16, 16, 3))
    model = Autoencoder(width=8, mult=(1,), blocks=1, groups=4, attention_kernel="pallas")
    jax.eval_shape(model.init, jax.random.key(0), image)
    assert calls == [(1, 256, 1, 8)] * 2


def interpreted(monkeypatch) -> list:
    """The kernel in the place of the plain form; the shapes of the queries that it is given."""
    calls, kernel = [], tpu_attention.attend

    def attend(*qkv, elsewhere):
        calls.append(qkv[0].shape)
        return kernel(*qkv)

    monkeypatch.setattr(tpu_attention, "attend", attend)
    return calls


def test_what_it_cannot_take_is_not_given_to_it():
    shapes = lambda n, m, d: arrays(1, n, m, 1, d, jnp.bfloat16)[:2]
    assert tpu_attention.fits(*shapes(4096, 4096, 512))  # kl_f4 at 256 pixels
    assert not tpu_attention.fits(*(x.astype(jnp.float32) for x in shapes(4096, 4096, 512)))
    assert not tpu_attention.fits(*shapes(256, 1, 64))  # the token of a class
    assert not tpu_attention.fits(*shapes(192, 256, 64))
