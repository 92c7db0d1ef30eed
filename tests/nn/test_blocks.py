"""Laws of the convolutional blocks."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldm_jax.nn import blocks

KEY = jax.random.key(0)


def _params(module, *args):
    shapes = jax.eval_shape(lambda: module.init(KEY, *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)


def test_timestep_embedding_is_cosines_then_sines_of_geometric_frequencies():
    t, width = np.array([0, 1, 999]), 10
    freqs = 10_000.0 ** (-np.arange(5) / 5)
    want = np.concatenate([np.cos(t[:, None] * freqs), np.sin(t[:, None] * freqs)], axis=1)
    np.testing.assert_allclose(blocks.timestep_embedding(jnp.array(t), width), want, atol=1e-4)
    assert blocks.timestep_embedding(jnp.array(t), 11).shape == (3, 11)


@pytest.mark.parametrize(
    "channels, groups", [(64, 32), (32, 32), (48, 12), (20, 5), (34, 2), (3, 1)]
)
def test_group_norm_has_32_groups_where_that_divides_and_else_four_channels_to_each(
    channels, groups
):
    x = 3 + 2 * np.random.default_rng(0).normal(size=(2, 4, 4, channels))
    grouped = einops.rearrange(x, "b h w (g c) -> b g (h w c)", g=groups)
    mean, var = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    want = einops.rearrange(
        (grouped - mean) / np.sqrt(var + 1e-5), "b g (h w c) -> b h w (g c)", h=4, w=4
    )
    params = {"scale": np.full(channels, 2.0), "bias": np.full(channels, -1.0)}
    ours = blocks.GroupNorm().apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, 2 * want - 1, atol=1e-4)


def test_autoencoder_downsample_is_an_explicit_pad_below_and_to_the_right():
    x = jax.random.normal(KEY, (1, 6, 8, 4))
    down = blocks.Downsample(padding=blocks.ASYMMETRIC)
    params = {"params": _params(down, x)}
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    want = nn.Conv(4, (3, 3), strides=2, padding="VALID").apply(
        {"params": params["params"]["conv"]}, padded
    )
    np.testing.assert_allclose(down.apply(params, x), want, atol=1e-6)
    assert not np.allclose(blocks.Downsample().apply(params, x), want, atol=1e-3)


def test_nearest_upsampling_is_undone_by_averaging():
    x = jax.random.normal(KEY, (2, 3, 5, 4))
    up = blocks.upsample_nearest(x)
    np.testing.assert_array_equal(up[:, ::2, 1::2], x)
    np.testing.assert_allclose(blocks.downsample_average(up), x, atol=1e-6)


@pytest.mark.parametrize("resample, size", [(None, 4), ("up", 8), ("down", 2)])
def test_zero_initialised_res_block_is_its_skip_branch(resample, size):
    x, emb = jax.random.normal(KEY, (1, 4, 4, 8)), jnp.ones((1, 6))
    block = blocks.ResBlock(8, zero_init=True, scale_shift=True, resample=resample)
    # only what is returned is compiled
    last = jax.jit(lambda: block.init(KEY, x, emb)["params"]["conv_2"])()
    params = _params(block, x, emb) | {"conv_2": last}
    out = jax.jit(block.apply)({"params": params}, x, emb)
    want = {None: lambda x: x, "up": blocks.upsample_nearest, "down": blocks.downsample_average}
    assert out.shape == (1, size, size, 8)
    np.testing.assert_allclose(out, want[resample](x), atol=1e-6)


def test_scale_shift_modulates_the_second_norm():
    x, emb = jax.random.normal(KEY, (1, 4, 4, 8)), jax.random.normal(KEY, (1, 6))
    block = blocks.ResBlock(8, scale_shift=True)
    params = _params(block, x, emb)
    bias = jnp.concatenate([jnp.full(8, -1.0), jnp.zeros(8)])
    params["time"] = {"kernel": jnp.zeros((6, 16)), "bias": bias}  # scale -1: the norm vanishes
    out = jax.jit(block.apply)({"params": params}, x, emb)
    want = jnp.broadcast_to(x + params["conv_2"]["bias"], x.shape)
    np.testing.assert_allclose(out, want, atol=1e-6)


@pytest.mark.parametrize("width, groups, hears", [(8, 32, True), (32, 32, False), (32, 8, True)])
def test_a_group_of_one_channel_cannot_hear_the_timestep(width, groups, hears):
    x, emb = jax.random.normal(KEY, (1, 4, 4, width)), jax.random.normal(KEY, (1, 6))
    block = blocks.ResBlock(width, groups=groups)
    params = {"params": _params(block, x, emb)}
    apply = jax.jit(block.apply)
    assert hears != np.allclose(apply(params, x, emb), apply(params, x, -emb), atol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 100.0, 10_000.0])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(mean):
    x = (np.random.default_rng(0).normal(size=(2, 8, 8, 16)) + mean).astype(np.float32)
    norm = blocks.GroupNorm(groups=4)
    found = norm.apply(norm.init(KEY, x), x)
    grouped = x.astype(np.float64).reshape(2, 64, 4, 4)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=1e-6 + 2e-7 * mean)
