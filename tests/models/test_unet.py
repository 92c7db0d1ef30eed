"""Laws of the denoiser's network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.models.unet import UNet

KEY = jax.random.key(0)


def _tiny(**kwargs):
    return UNet(**{"width": 8, "mult": (1, 2), "blocks": 1, "attention": (2,), "heads": 2} | kwargs)


def _x(size=8, channels=3):
    return jax.random.normal(KEY, (2, size, size, channels))


T = jnp.array([3, 700])
TOKENS = jax.random.normal(KEY, (2, 3, 6))


TEXT = {"attention": (4, 2, 1), "cross_attention": True, "out_channels": 4}
SD = {"width": 320, "mult": (1, 2, 4, 4), "heads": 8} | TEXT
CHURCHES = {"width": 192, "mult": (1, 2, 2, 4, 4), "attention": (1, 2, 4, 8), "heads": 8}
ADM = {"scale_shift": True, "resblock_updown": True, "out_channels": 4}
PUBLISHED = {  # millions of parameters, input channels, token width, arguments
    "celeba": (274.06, 3, None, {"head_channels": 32}),
    "churches": (294.97, 4, None, CHURCHES | ADM),
    "cin256-v2": (400.92, 3, 512, {"width": 192, "mult": (1, 2, 3, 5), "cross_attention": True}),
    "txt2img": (872.30, 4, 1280, SD),
    "semantic": (215.23, 6, None, {"width": 128, "mult": (1, 4, 8), "attention": (32, 16, 8)}),
}


@pytest.mark.parametrize("millions, channels, tokens, kwargs", PUBLISHED.values(), ids=PUBLISHED)
def test_published_unets_have_their_parameter_count(millions, channels, tokens, kwargs):
    cond = {} if tokens is None else {"tokens": jnp.zeros((1, 1, tokens))}
    x = jnp.zeros((1, 16, 16, channels))
    shapes = jax.eval_shape(lambda: UNet(**kwargs).init(KEY, x, jnp.zeros(1), **cond))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    np.testing.assert_allclose(count, millions, rtol=0.005)


def test_output_and_residual_branches_start_at_exactly_zero():
    model = _tiny(cross_attention=True)

    def last_layers():
        # only what is returned is compiled
        params = model.init(KEY, _x(), T, TOKENS)["params"]
        blocks = [params[name]["conv_2"]["kernel"] for name in ("down_0_block_0", "up_1_block_1")]
        return params["conv_out"], params["mid_attn"]["proj_out"], blocks

    zeros = jax.tree.leaves(jax.jit(last_layers)())
    assert len(zeros) == 6
    assert not any(jnp.any(leaf != 0) for leaf in zeros)


@pytest.fixture(scope="module")
def conditional(filled):
    """A one-level UNet as a function of everything that it takes."""
    model = _tiny(mult=(1,), attention=(), cross_attention=True, out_channels=5)
    cond = {
        "tokens": TOKENS,
        "vector": jax.random.normal(KEY, (2, 32)),
        "concat": _x(4, 2),
        "mask": jnp.array([[1, 1, 0], [1, 0, 0]], bool),
    }
    params = filled(model, _x(4), T, **cond)
    return jax.jit(lambda t, cond: model.apply({"params": params}, _x(4), t, **cond)), cond


def test_every_input_matters(conditional):
    unet_fn, cond = conditional
    out = unet_fn(T, cond)
    assert out.shape == (2, 4, 4, 5)
    assert not np.allclose(out, unet_fn(T + 50, cond), atol=1e-3)
    for name in ("tokens", "vector", "concat", "mask"):
        changed = cond | {name: jnp.roll(cond[name], 1, axis=-1)}
        assert not np.allclose(out, unet_fn(T, changed), atol=1e-3), name


def test_masked_tokens_do_not_matter(conditional):
    unet_fn, cond = conditional
    changed = jnp.where(cond["mask"][..., None], cond["tokens"], 9.0)
    want = unet_fn(T, cond)
    np.testing.assert_allclose(unet_fn(T, cond | {"tokens": changed}), want, atol=1e-5)


def test_attention_stands_at_the_factors_asked_for_and_in_the_middle():
    shapes = jax.eval_shape(lambda: _tiny(mult=(1, 1, 1), attention=(4,)).init(KEY, _x(), T))
    names = sorted(name for name in shapes["params"] if "attn" in name)
    assert names == ["down_2_attn_0", "mid_attn", "up_2_attn_0", "up_2_attn_1"]


@pytest.mark.parametrize("fill, width", [(True, 24), (False, 20)])
def test_heads_fill_a_transformer_or_keep_their_channels(fill, width):
    model = _tiny(width=24, heads=None, head_channels=20, cross_attention=True, fill_heads=fill)
    shapes = jax.eval_shape(lambda: model.init(KEY, _x(), T, jnp.zeros((2, 1, 4))))["params"]
    assert shapes["down_1_attn_0"]["proj_in"]["kernel"].shape == (48, 48 if fill else 40)
    small = jax.eval_shape(
        lambda: model.clone(mult=(1, 1)).init(KEY, _x(), T, jnp.zeros((2, 1, 4)))
    )["params"]
    assert small["mid_attn"]["proj_in"]["kernel"].shape == (24, width)


def test_bfloat16_compute_keeps_float32_params_and_output():
    model = _tiny(dtype=jnp.bfloat16, remat=True, dropout=0.1)
    shapes = jax.eval_shape(lambda: model.init(KEY, _x(), T))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    plain = jax.eval_shape(lambda: model.clone(remat=False).init(KEY, _x(), T))
    assert jax.tree.structure(shapes) == jax.tree.structure(plain)
    apply = lambda p: model.apply(p, _x(), T, train=True, rngs={"dropout": KEY})
    assert jax.eval_shape(apply, shapes).dtype == jnp.float32


@pytest.mark.parametrize(
    "kwargs, size, message",
    [
        ({"mult": (1, 1, 1)}, 10, "divide by 4; got 10x10, nearest: 8x8"),
        ({"heads": 2, "head_channels": 4}, 8, "set one of them"),
        ({"heads": 3}, 8, "16 channels .level 1. cannot be split by heads=3"),
        ({"heads": None, "head_channels": 5}, 8, "head_channels=5"),
        ({"heads": None, "head_channels": 32, "cross_attention": True}, 8, "heads=None"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(kwargs, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: _tiny(**kwargs).init(KEY, _x(size), T))


def test_widths_come_in_steps_that_all_levels_heads_divide():
    assert UNet(groups=4, heads=(2, 3), mult=(1, 2)).width_unit == 12
    assert UNet(groups=4, head_channels=32).width_unit == 32
    assert UNet(groups=4, heads=2, heads_up=3).width_unit == 12


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"heads": (2, 2, 2)}, "2 levels of mult"),
        ({"heads": (2, 3)}, "16 channels.*heads=3"),
        ({"heads_up": 3}, "heads=3"),
    ],
)
def test_heads_that_do_not_fit_the_levels_are_known_before_it_is_called(kwargs, message):
    _tiny(heads=(2, 4)).check()
    with pytest.raises(errors.UsageError, match=message):
        _tiny(**kwargs).check()
