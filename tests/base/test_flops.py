"""The counter of operations, against XLA's own count and by hand."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.cost import flops
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.unet import UNet


def xla(function, *args) -> float:
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def convolve(x, kernel, strides=(1, 1), padding="VALID"):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=names)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
def test_convolutions_without_padding_are_xlas_count(strides):
    args = shape(2, 17, 13, 8), shape(3, 3, 8, 24)
    function = lambda x, k: convolve(x, k, strides)
    assert flops.count(function, *args) == xla(function, *args)


def test_products_are_xlas_count():
    args = shape(4, 16, 32), shape(32, 48), shape(4, 48, 16)
    function = lambda x, w, y: jnp.einsum("bij,bjk->bik", x @ w, y)
    by_hand = 2 * 4 * 16 * 32 * 48 + 2 * 4 * 16 * 48 * 16
    assert flops.count(function, *args) == xla(function, *args) == by_hand


@pytest.mark.parametrize("unroll", [1, 3, 7])
def test_with_the_turns_that_xla_leaves_out_a_loop_is_counted_whole(unroll):
    turn = lambda x, _: (x @ x, None)
    function = lambda x: jax.lax.scan(turn, x, None, length=7, unroll=unroll)[0]
    whole = xla(function, shape(64, 64)) + flops.repeated(function, shape(64, 64))
    assert whole == pytest.approx(7 * 2 * 64**3, rel=1e-4)
    assert flops.count(function, shape(64, 64)) == 7 * 2 * 64**3


def test_a_gradient_costs_three_times_the_function():
    args = shape(64, 32), shape(32, 48)
    loss = lambda x, w: jnp.sum((x @ w) ** 2)
    assert flops.count(jax.grad(loss, (0, 1)), *args) == 3 * flops.count(loss, *args)


def test_a_strided_convolutions_gradient_skips_the_zeros():
    args = shape(1, 33, 33, 8), shape(3, 3, 8, 16)
    loss = lambda x, k: jnp.sum(convolve(x, k, (2, 2)) ** 2)
    ratio = flops.count(jax.grad(loss, (0, 1)), *args) / flops.count(loss, *args)
    assert ratio == pytest.approx(3, rel=0.1)


def test_loops_count_as_often_as_they_run_and_branches_once():
    w = shape(16, 16)

    def loop(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), w, length=7)[0]

    assert flops.count(loop, w) == 7 * 2 * 16**3
    branch = lambda w: jax.lax.cond(w[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, w)
    assert flops.count(branch, w) == 2 * 2 * 16**3


def test_what_is_computed_again_for_the_gradient_counts_again():
    w = shape(16, 16)
    loss = lambda w: jnp.sum(jnp.sin(w @ w) @ w)
    plain, again = jax.grad(loss), jax.grad(jax.checkpoint(loss))
    assert flops.count(again, w) > flops.count(plain, w)


UNETS = [
    UNet(out_channels=4, width=32, mult=(1, 2), blocks=1, attention=(2,), heads=2, groups=8),
    UNet(
        out_channels=4,
        width=32,
        mult=(1, 2),
        blocks=1,
        attention=(1,),
        head_channels=16,
        groups=8,
        cross_attention=True,
    ),
]


@pytest.mark.parametrize("unet", UNETS, ids=["attention", "transformer"])
def test_a_unet_is_within_a_tenth_of_xlas_count(unet):
    """XLA counts every addition too, and spares itself the padding of convolutions."""
    args = [shape(2, 16, 16, 4), jax.ShapeDtypeStruct((2,), jnp.int32)]
    args += [shape(2, 5, 12)] if unet.cross_attention else [None]
    variables = jax.eval_shape(unet.init, jax.random.key(0), *args)
    assert flops.count(unet.apply, variables, *args) == pytest.approx(
        xla(unet.apply, variables, *args), rel=0.1
    )


def test_an_autoencoder_is_within_a_tenth_of_xlas_count():
    model = Autoencoder(bottleneck="kl", width=32, mult=(1, 2), blocks=1, groups=8)
    x = shape(1, 64, 64, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert flops.count(model.apply, variables, x) == pytest.approx(
        xla(model.apply, variables, x), rel=0.1
    )


@pytest.mark.parametrize(
    "recipe, gflop",
    [
        ("ldm_lsun_churches", 41.8),
        pytest.param("ldm_celebahq", 202.4, marks=pytest.mark.slow),
        pytest.param("sd_v1", 803.3, marks=pytest.mark.slow),
    ],
)
def test_the_published_unets_cost_what_others_count(recipe, gflop):
    """By an independent count of the official architectures' convolutions and products."""
    from ldm_jax.base import config as config_lib
    from ldm_jax.runs import kinds

    config = config_lib.load(f"configs/{recipe}.py")
    model = kinds.of(config).model(config)
    x = shape(1, *model.latent_shape(config.data.size, config.data.size))
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    fields = model.example(1, config.data.size, config.data.size)
    variables = jax.eval_shape(model.denoiser.init, jax.random.key(0), x, t, fields)
    assert flops.count(model.denoiser.apply, variables, x, t, fields) / 1e9 == pytest.approx(
        gflop, rel=0.01
    )
