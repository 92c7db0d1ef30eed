"""Official diffusion transformers, and the stacks of layers that their arrays become."""

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import convert
from ldm_jax.base import errors, tree
from ldm_jax.models.dit import DiT
from ldm_jax.weights import dit, rules

MODEL = dict(name="dit", width=16, depth=3, heads=2, patch=2)
CLASSES, CHANNELS, SIDE = 5, 3, 8
X = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, CHANNELS)).astype(np.float32)
T, IDS = np.array([3, 700]), np.array([4, 5])  # the last is the null class


def params():
    model = network()
    table = {"embedding": np.zeros((CLASSES + 1, 16))}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), X, T))["params"]
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    return jax.tree.map(draw, {"dit": shapes, "conditioners_class": {"table": table}})


def network():
    return DiT(out_channels=CHANNELS, **{k: v for k, v in MODEL.items() if k != "name"})


def official(own) -> dict:
    """The state dict of an official checkpoint, which also says a variance."""
    state = rules.export(own, dit.official_table(MODEL))
    for name in ("weight", "bias"):
        array = state[f"final_layer.linear.{name}"]
        pairs = array.reshape(4, 1, CHANNELS, *array.shape[1:])
        both = np.concatenate([pairs, np.full_like(pairs, 9.0)], axis=1)
        state[f"final_layer.linear.{name}"] = both.reshape(-1, *array.shape[1:])
    return state | {"pos_embed": np.zeros((1, 16, 16), np.float32)}


def test_an_official_checkpoint_becomes_a_run(tmp_path):
    own = params()
    np.savez(tmp_path / "model.npz", **official(own))
    argv = ["dit", f"--checkpoint={tmp_path}/model.npz", f"--out={tmp_path}/run", "--heads=2"]
    assert convert.run(argv) == 0
    run = ldm_jax.load(tmp_path / "run")
    assert run.num_classes == CLASSES and run.config.data.size == SIDE
    assert (run.config.process.schedule, run.config.process.beta_start) == ("linear", 1e-4)
    vector = own["conditioners_class"]["table"]["embedding"][IDS]
    want = jax.jit(network().apply)({"params": own["dit"]}, X, T, None, vector)
    np.testing.assert_allclose(run.denoise(X, T, {"class": IDS}), want, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_the_table_of_diffusers_works_both_ways(separate):
    model = MODEL | {"separate": separate}
    own = params()
    if separate:
        time = own["dit"].pop("time")
        stacked = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, 3 * leaf]), time)
        own["dit"][tree.STACK]["time"] = stacked
        table = own["conditioners_class"]["table"]
        own["conditioners_class"] = {"table": {"embedding": np.tile(table["embedding"], 3)}}
    table = dit.diffusers_table(model)
    state = rules.export(own, table)
    assert f"transformer_blocks.2.norm1.emb.{'timestep_embedder.linear_1'}.weight" in state
    back = rules.convert(state, table, expected=own)
    jax.tree.map(np.testing.assert_array_equal, back, own)
    del state["transformer_blocks.1.attn1.to_k.weight"]
    with pytest.raises(errors.UsageError, match=r"8 of the 9 parts of dit/layers/attn/qkv/kernel"):
        rules.convert(state, table)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda state: state.pop("pos_embed"), "is no official DiT: it has no pos_embed"),
        (lambda state: None, "no published DiT is 16 wide; give --heads"),
        (lambda state: state.update(strange=np.zeros(3)), "strange"),
    ],
)
def test_what_is_no_official_dit_is_refused_in_one_line(tmp_path, spoil, line, capfd):
    state = official(params())
    spoil(state)
    np.savez(tmp_path / "model.npz", **state)
    heads = ["--heads=2"] if line == "strange" else []
    argv = ["dit", f"--checkpoint={tmp_path}/model.npz", f"--out={tmp_path}/run", *heads]
    assert convert.run(argv) == 2
    said = capfd.readouterr().err.strip()
    assert line in said and "\n" not in said
    assert not (tmp_path / "run").exists()
