"""Low-rank updates: what a network with one computes, and where they begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors, tree
from ldm_jax.stages import adapt, api

SHAPES = {
    "unet": {
        "conv": {"kernel": (3, 3, 4, 6), "bias": (6,)},
        "mid_attn": {"q": {"kernel": (6, 8)}},
        tree.STACK: {"mlp": {"kernel": (2, 5, 7)}},
    }
}
ALL = adapt.Lora(rank=3, alpha=1.5, targets=("unet/",))


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    fill = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return jax.tree.map(fill, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def noise(own, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), own)


def test_at_first_the_network_does_what_it_did_and_every_kernel_can_learn(params):
    own = jax.jit(ALL.init)(jax.random.key(0), params)
    jax.tree.map(np.testing.assert_array_equal, ALL.merged(params, own), params)
    loss = lambda own: sum(jnp.sum(x**2) for x in jax.tree.leaves(ALL.merged(params, own)))
    grads = dict(tree.named_leaves(jax.jit(jax.grad(loss))(own)))
    learn = {name: bool(np.any(np.asarray(g))) for name, g in grads.items()}
    assert len(learn) == 6 and learn == {name: name.endswith(adapt.B) for name in learn}


def test_of_a_convolution_it_is_one_to_the_rank_and_a_map_from_there(params):
    own = noise(jax.eval_shape(ALL.init, jax.random.key(0), params))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 8, 8, 4)), jnp.float32)
    numbers = dict(window_strides=(1, 1), padding="SAME")
    numbers |= dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")
    conv = lambda kernel: jax.lax.conv_general_dilated(x, kernel, **numbers)
    a, b = (own["unet"]["conv"]["kernel"][name] for name in ("lora_a", "lora_b"))
    want = conv(params["unet"]["conv"]["kernel"]) + 0.5 * jnp.matmul(
        conv(a), b, precision="highest"
    )
    got = conv(ALL.merged(params, own)["unet"]["conv"]["kernel"])
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_stack_of_layers_has_an_update_of_each(params):
    own = noise(jax.eval_shape(ALL.init, jax.random.key(0), params))
    got = ALL.merged(params, own)["unet"][tree.STACK]["mlp"]["kernel"]
    one = own["unet"][tree.STACK]["mlp"]["kernel"]
    for i in (0, 1):
        want = (
            params["unet"][tree.STACK]["mlp"]["kernel"][i]
            + 0.5 * one["lora_a"][i] @ one["lora_b"][i]
        )
        np.testing.assert_allclose(got[i], want, atol=1e-5)


def test_weights_add_up_and_minus_one_takes_it_out_again(params):
    own = jax.eval_shape(ALL.init, jax.random.key(0), params)
    one, other = (noise(own, seed) for seed in (1, 2))
    both = ALL.merged(ALL.merged(params, one, 0.7), other, 0.5)
    turned = ALL.merged(ALL.merged(params, other, 0.5), one, 0.7)
    back = ALL.merged(ALL.merged(both, other, -0.5), one, -0.7)
    for got, want in ((both, turned), (back, params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    folded = ALL.updates(one)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ALL.of_updates(folded), one
    )


def test_only_the_adapter_of_a_stage_learns_and_losses_see_whole_weights(params):
    lora = adapt.Lora(rank=2, targets=("attn",))
    seen = lambda params, *rest: (jnp.sum(params["net"]["unet"]["conv"]["bias"]), ({}, {}))
    stage = api.Stage(
        fields=(),
        players=(api.Player("net", lambda key: params, seen),),
        frozen={"base": params},
        evaluate=lambda params, frozen, batch, key: {"n": params["net"]["unet"]["mid_attn"]},
        draw=lambda params, frozen, batch, key: {},
    )
    adapted = adapt.adapted(stage, lora, "net")
    [player] = adapted.players
    own = {"net": player.init(jax.random.key(0))}
    names = {"unet/mid_attn/q/kernel/lora_a": (6, 2), "unet/mid_attn/q/kernel/lora_b": (2, 8)}
    assert tree.shapes(own["net"]) == names
    loss, _ = player.loss(own, adapted.frozen, {}, None, 0, {})
    assert loss == jnp.sum(params["unet"]["conv"]["bias"])
    found = adapted.evaluate(own, adapted.frozen, {}, None)["n"]["q"]["kernel"]
    np.testing.assert_array_equal(found, params["unet"]["mid_attn"]["q"]["kernel"])


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (("mid_atn/q",), "nearest is unet/mid_attn/q/kernel"),
        (("bias",), "in the path of no kernel"),
        (("(",), "is no regex"),
        ((), "adapts nothing"),
    ],
)
def test_a_target_that_adapts_nothing_is_refused(params, targets, line):
    with pytest.raises(errors.UsageError, match=line):
        adapt.Lora(targets=targets).kernels(params)
