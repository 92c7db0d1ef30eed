"""The kernel of GroupNorm and SiLU, interpreted, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import tree
from ldm_jax.models.unet import UNet
from ldm_jax.nn import blocks
from ldm_jax.nn.group_norm import group_norm

EPS = 1e-5


def _plain(x, scale, bias, groups, silu):
    b, c = x.shape[0], x.shape[-1]
    grouped = x.reshape(b, -1, groups, c // groups)
    grouped -= grouped.mean((1, 3), keepdims=True)
    grouped *= jax.lax.rsqrt(jnp.square(grouped).mean((1, 3), keepdims=True) + EPS)
    y = grouped.reshape(x.shape) * scale + bias
    return jax.nn.silu(y) if silu else y


def _passes(function, x, scale, bias, dy):
    """The output and the gradients of all three inputs."""

    @jax.jit
    def passes(*inputs):
        y, pull = jax.vjp(function, *inputs)
        return y, *pull(dy)

    return passes(x, scale, bias)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape, groups, mean, dtype, tolerance",
    [
        ((2, 5, 7, 12), 4, 0.0, "float32", 3e-6),
        ((2, 5, 7, 12), 4, 0.0, "bfloat16", 8e-3),
        ((1, 40, 33, 14), 2, 0.0, "float32", 3e-6),  # several tiles, the last one not full
        ((1, 9, 3, 6), 2, 300.0, "float32", 3e-4),  # E[x^2] - E[x]^2 would keep two digits
    ],
)
def test_values_and_all_gradients_are_those_of_the_formula(
    shape, groups, mean, dtype, tolerance, silu
):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(level + rng.normal(size=shape), dtype) for level in (mean, 0.0))
    scale, bias = (jnp.asarray(1 + rng.normal(size=shape[-1]), "float32") for _ in range(2))
    ours = _passes(lambda *a: group_norm(*a, groups, EPS, silu), x, scale, bias, dy)
    assert ours[0].dtype == ours[1].dtype == x.dtype
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias, dy)]
        want = _passes(lambda *a: _plain(*a, groups, silu), *wide)
    for a, b in zip(ours, want):
        b = np.asarray(b)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=tolerance * np.abs(b).max())


def _agree(modules, *args):
    """Outputs' gradients by the parameters, which all modules must have alike."""
    key = jax.random.key(0)
    shapes = [jax.eval_shape(lambda m=m: m.init(key, *args)) for m in modules]
    assert shapes[0] == shapes[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes[0])

    def loss(params, module):
        return jnp.square(module.apply(params, *args)).mean()

    plain, fused = (jax.jit(jax.grad(loss), static_argnums=1)(params, m) for m in modules)
    fused = dict(tree.named_leaves(fused))
    for name, want in tree.named_leaves(plain):
        np.testing.assert_allclose(fused[name], want, atol=1e-4 * max(1e-2, np.abs(want).max()))


@pytest.mark.parametrize("scale_shift", [False, True])
def test_a_block_computes_the_same_by_either_kernel(scale_shift):
    block = lambda kernel: blocks.ResBlock(8, scale_shift=scale_shift, norm_kernel=kernel)
    x, emb = jax.random.normal(jax.random.key(0), (1, 3, 4, 8)), jnp.ones((1, 6))
    _agree([block(kernel) for kernel in blocks.NORM_KERNELS], x, emb)


@pytest.mark.slow
def test_a_network_computes_the_same_by_either_kernel():
    kwargs = {"width": 8, "mult": (1, 2), "blocks": 1, "attention": (), "heads": 1}
    x, t = jax.random.normal(jax.random.key(0), (1, 4, 4, 3)), jnp.array([3])
    _agree([UNet(**kwargs, norm_kernel=kernel) for kernel in blocks.NORM_KERNELS], x, t)
