"""Laws of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn import attention

KEY = jax.random.key(0)


def _params(module, *args):
    shapes = jax.eval_shape(lambda: module.init(KEY, *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)


def _qkv(n=5, m=7, heads=2, d=4):
    shapes = [(2, n, heads, d), (2, m, heads, d), (2, m, heads, d)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_agrees_with_jax(masked):
    q, k, v = _qkv()
    mask = jnp.arange(7)[None] < jnp.array([[3], [7]]) if masked else None
    seen = None if mask is None else mask[:, None, None]
    want = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
    np.testing.assert_allclose(attention.attend(q, k, v, mask), want, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_jax(masked):
    given = _qkv()
    mask = jnp.arange(7)[None] < jnp.array([[3], [7]]) if masked else None
    seen = None if mask is None else mask[:, None, None]
    theirs = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
    ours = lambda q, k, v: attention.attend(q, k, v, mask)
    loss = lambda f: lambda *x: jnp.sum(jnp.sin(f(*x)))
    want, got = (jax.grad(loss(f), argnums=(0, 1, 2))(*given) for f in (theirs, ours))
    for a, b in zip(want, got):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_no_product_of_a_bfloat16_step_is_in_float32():
    given = [x.astype(jnp.bfloat16) for x in _qkv()]
    loss = lambda *x: jnp.sum(attention.attend(*x).astype(jnp.float32))
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*given)
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) >= 5
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "kernel, width, dtype, masked, platform, chosen",
    [
        ("auto", 32, "bfloat16", False, "tpu", "pallas"),
        ("pallas", 40, "float32", False, "cpu", "pallas"),
        ("pallas", 36, "bfloat16", False, "tpu", "xla"),
        ("auto", 32, "bfloat16", True, "tpu", "xla"),
        ("auto", 32, "bfloat16", False, "gpu", "cudnn"),
        ("cudnn", 128, "float16", False, "gpu", "cudnn"),
        ("xla", 32, "bfloat16", False, "gpu", "xla"),
        ("auto", 32, "bfloat16", False, "cpu", "xla"),
        ("cudnn", 32, "bfloat16", False, "tpu", "xla"),
        ("cudnn", 32, "float32", False, "gpu", "xla"),
        ("auto", 36, "bfloat16", False, "gpu", "xla"),
        ("auto", 136, "bfloat16", False, "gpu", "xla"),
        ("auto", 64, "bfloat16", True, "gpu", "xla"),
    ],
)
def test_a_kernel_is_taken_only_where_it_can_be_had(kernel, width, dtype, masked, platform, chosen):
    q = jax.ShapeDtypeStruct((2, 256, 2, width), jnp.dtype(dtype))
    assert attention.choose(kernel, q, q, masked, platform) == chosen
    short = jax.ShapeDtypeStruct((2, 64, 2, width), jnp.dtype(dtype))
    assert chosen == "cudnn" or attention.choose(kernel, short, q, masked, platform) == "xla"


@pytest.mark.parametrize("kernel", ["cudnn", "auto"])
def test_without_a_gpu_every_kernel_is_the_plain_one(kernel):
    q, k, v = (x.astype(jnp.bfloat16) for x in _qkv(d=8))
    ours = attention.attend(q, k, v, kernel=kernel)
    np.testing.assert_array_equal(ours, attention.attend(q, k, v))
    with pytest.raises(ValueError, match="'flash' is unknown"):
        attention.attend(q, k, v, kernel="flash")


def test_masked_keys_do_not_exist():
    q, k, v = _qkv()
    mask = jnp.broadcast_to(jnp.arange(7) < 4, (2, 7))
    want = attention.attend(q, k[:, :4], v[:, :4])
    np.testing.assert_allclose(attention.attend(q, k, v, mask), want, atol=1e-6)


def test_softmax_stays_in_float32_for_bfloat16_inputs():
    q, k, v = (x.astype(jnp.bfloat16) for x in _qkv())
    jaxpr = str(jax.make_jaxpr(attention.attend)(q, k, v))
    assert "exp" in jaxpr
    assert all("bf16" not in line for line in jaxpr.splitlines() if "= exp " in line)
    assert attention.attend(q, k, v).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "module, last, args",
    [
        (attention.AttentionBlock(heads=2, zero_init=True), "proj", []),
        (attention.SpatialTransformer(heads=2, head_width=4), "proj_out", [jnp.ones((1, 3, 6))]),
    ],
)
def test_zero_initialised_attention_is_the_identity(module, last, args):
    x = jax.random.normal(KEY, (1, 4, 4, 8))
    # only what is returned is compiled
    initial = jax.jit(lambda: module.init(KEY, x, *args)["params"][last])()
    params = _params(module, x, *args) | {last: initial}
    np.testing.assert_array_equal(jax.jit(module.apply)({"params": params}, x, *args), x)


def test_qkv_columns_are_blocks_of_q_k_and_v():
    x = jax.random.normal(KEY, (1, 2, 2, 8))
    block = attention.AttentionBlock(heads=2)
    params = _params(block, x)
    # with no q the weights are uniform: every position gets the mean of v
    params["qkv"]["kernel"][:, :8] = 0
    params["qkv"]["bias"][:8] = 0
    out = jax.jit(block.apply)({"params": params}, x) - x
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1, :1], out.shape), atol=1e-5)


def test_tokens_in_any_order_condition_alike():
    x, tokens = jax.random.normal(KEY, (1, 4, 8)), jax.random.normal(KEY, (1, 3, 6))
    cross = attention.CrossAttention(heads=2, head_width=4)
    apply = jax.jit(lambda tokens: cross.apply({"params": _params(cross, x, tokens)}, x, tokens))
    np.testing.assert_allclose(apply(tokens[:, ::-1]), apply(tokens), atol=1e-5)
