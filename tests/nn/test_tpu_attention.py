"""The TPU's attention kernel, interpreted: values and gradients are those of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import shard
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
        ((2, 256, 256, 4, 64), jnp.float32, 2e-6),  # two heads beside one another, two blocks
        ((1, 128, 128, 3, 32), jnp.float32, 2e-6),  # not a whole number of registers
        ((1, 128, 77, 4, 40), jnp.float32, 2e-6),  # heads across two registers; few keys
        ((1, 128, 128, 2, 128), jnp.bfloat16, 3e-2),
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
    program = shard.jit(with_gradients(tpu_attention.attend), mesh)
    for a, b in zip(want, program(*split)):
        np.testing.assert_allclose(b, a, atol=2e-6)
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        assert b.sharding.shard_shape(b.shape)[0] == 8 // rows, "no device has the images of all"
