"""Laws of weight conversion."""

import jax
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.weights import compvis
from ldm_jax.weights.rules import Rule, convert

RULES = [
    Rule(r"c(?P<i>\d)", r"conv_\g<i>", "conv"),
    Rule("q", "qk", "dense", part=0, parts=2),
    Rule("k", "qk", "dense", part=1, parts=2),
]
STATE = {
    "c3.weight": np.arange(2 * 4 * 3 * 3).reshape(2, 4, 3, 3),
    "c3.bias": np.arange(2),
    "q.weight": np.ones((2, 4, 1, 1)),
    "k.weight": np.zeros((2, 4)),
}


def test_layouts_change_and_parts_join():
    params = convert(STATE, RULES)
    assert params["conv_3"]["kernel"].shape == (3, 3, 4, 2)
    np.testing.assert_array_equal(
        params["conv_3"]["kernel"][1, 2, 3], STATE["c3.weight"][:, 3, 1, 2]
    )
    np.testing.assert_array_equal(params["qk"]["kernel"], [[1, 1, 0, 0]] * 4)


def test_every_key_and_every_parameter_is_accounted_for():
    expected = jax.eval_shape(lambda: convert(STATE, RULES))
    assert convert(STATE | {"noise": 0}, RULES, ignore=("noise",), expected=expected)
    with pytest.raises(errors.UsageError, match="no rule knows: noise"):
        convert(STATE | {"noise": 0}, RULES)
    with pytest.raises(errors.UsageError, match="1 of the 2 parts of qk/kernel"):
        convert({k: v for k, v in STATE.items() if k[0] != "k"}, RULES)
    with pytest.raises(errors.UsageError, match=r"lacks .* conv_3/bias"):
        convert({k: v for k, v in STATE.items() if k != "c3.bias"}, RULES, expected=expected)
    with pytest.raises(
        errors.UsageError, match=r"c3\.bias makes conv_3/bias \(5,\) instead of \(2,\)"
    ):
        convert(STATE | {"c3.bias": np.zeros(5)}, RULES, expected=expected)


def test_official_qkv_rows_regroup_from_heads_to_blocks():
    heads, d = 2, 3
    names = [f"{x}{head}{i}" for head in range(heads) for x in "qkv" for i in range(d)]
    rules = compvis.unet(1, 1, heads=heads)
    params = convert({"middle_block.1.qkv.bias": np.array(names)}, rules)
    want = [f"{x}{head}{i}" for x in "qkv" for head in range(heads) for i in range(d)]
    assert params["mid_attn"]["qkv"]["bias"].tolist() == want


def test_discriminator_table_follows_torch_positions():
    shapes = jax.eval_shape(
        lambda: PatchDiscriminator(8).init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    )["params"]
    positions = {"conv_0": 0, "conv_1": 2, "norm_1": 3, "conv_2": 5, "norm_2": 6, "conv_3": 8}
    positions |= {"norm_3": 9, "conv_4": 11}
    state = {}
    for name, position in positions.items():
        for leaf, shape in shapes[name].items():
            order = (3, 2, 0, 1) if leaf == "kernel" else (0,)
            key = f"main.{position}.{'bias' if leaf == 'bias' else 'weight'}"
            state[key] = np.zeros([shape.shape[i] for i in order])
    state["main.3.running_mean"] = np.zeros(16)
    convert(state, compvis.discriminator(3), compvis.RUNNING_STATISTICS, shapes)
