"""The frozen text encoder against transformers' (5.23.0, random weights), and its two layouts."""

import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.models import clip, conditioners
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.models.unet import UNet
from ldm_jax.weights import clip as weights
from ldm_jax.weights import readers

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "clip_text.npz"
SIZES = dict(vocab_size=24, length=7, width=8, depth=2, heads=2, start=22, end=23, pad=23)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(golden):
    return {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}


def openai(state):
    """The same weights as OpenAI names and joins them."""
    names = [("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("fc1", "c_fc")]
    names += [("fc2", "c_proj"), ("self_attn", "attn"), ("final_ln_", "ln_final")]
    names += [("embeddings.token", "token"), ("embeddings.position_embedding.weight", "x")]
    out = {}
    for key, value in state.items():
        for theirs, name in names:
            key = key.replace(theirs, name)
        out["positional_embedding" if key == "x" else key] = value
    for i in range(2):
        for kind in ("weight", "bias"):
            at = f"transformer.resblocks.{i}.attn."
            parts = [out.pop(f"{at}{name}_proj.{kind}") for name in "qkv"]
            out[f"{at}in_proj_{kind}"] = np.concatenate(parts)
    return out


def save(path, state):
    np.savez(path, **state)
    return str(path)


@pytest.mark.parametrize("activation", clip.ACTIVATIONS)
def test_hidden_states_are_those_of_transformers(golden, state, activation):
    own = clip.ClipText(**SIZES, activation=activation)
    variables = {"frozen": {"encoder": weights.from_state(state, 2)}}
    apply = jax.jit(lambda ids: own.apply(variables, {"clip_ids": ids}, jnp.zeros(3, bool)))
    cond = apply(golden["ids"])
    np.testing.assert_allclose(cond.tokens, golden[activation], atol=1e-5)
    # Up to the first end: rows of 2, 5 and 7 tokens.
    assert cond.mask.sum(1).tolist() == [2, 5, 7]


def test_the_layouts_hold_the_same_weights_whatever_lies_around_them(state):
    plain = weights.from_state(state, 2)
    wrapped = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in state.items()}
    around = {"visual.transformer.resblocks.0.ln_1.weight": np.ones(3), "logit_scale": np.ones(())}
    for other in (wrapped | around, openai(state) | around):
        jax.tree.map(np.testing.assert_array_equal, plain, weights.from_state(other, 2))


def test_a_dropped_row_is_the_empty_caption_without_regard_to_padding_ids(state):
    own = clip.ClipText(**SIZES)
    variables = {"frozen": {"encoder": weights.from_state(state, 2)}}
    apply = jax.jit(lambda ids, drop: own.apply(variables, {"clip_ids": ids}, drop))
    ids = jnp.array([[22, 4, 5, 23, 23, 23, 23], [22, 23, 23, 23, 23, 23, 23]])
    dropped, kept = apply(ids, jnp.array([True, False])), apply(ids, jnp.zeros(2, bool))
    np.testing.assert_array_equal(dropped.tokens[0], kept.tokens[1])
    np.testing.assert_array_equal(dropped.mask[0], kept.mask[1])
    assert not np.allclose(kept.tokens[0], kept.tokens[1])
    seen = lambda: clip.ClipText(**SIZES, mask_padding=False).apply(
        variables, {"clip_ids": ids}, jnp.zeros(2, bool)
    )
    assert jax.eval_shape(seen).mask is None


def test_its_weights_are_no_parameters_of_the_denoiser(state, tmp_path):
    weights = save(tmp_path / "w.npz", state)
    own = clip.ClipText(**SIZES, weights=weights, name="conditioners_text")
    shape = dict(width=8, mult=(1,), blocks=1, attention=(1,), heads=2)
    unet = UNet(**shape, cross_attention=True, name="unet")
    model = Denoiser(unet, (own,))
    x, fields = jnp.zeros((1, 8, 8, 3)), model.example((1, 8, 8, 3), (1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, jnp.zeros(1, int), fields))
    assert set(shapes["params"]) == {"unet"}
    frozen = readers.read_conditioners(model)
    same = lambda shape, leaf: shape.shape == leaf.shape
    assert all(jax.tree.leaves(jax.tree.map(same, shapes["frozen"], frozen)))


def test_a_conditioner_names_its_reader_and_is_given_to_it(monkeypatch):
    class Given(conditioners.GivenTokens):
        reader: ClassVar[str] = "given"

    monkeypatch.setattr(readers.READERS, "_entries", {"given": lambda own: {"width": own.width}})
    plain, own = conditioners.GivenTokens(), Given(width=5, name="conditioners_mine")
    model = Denoiser(UNet(), (plain, own))
    assert readers.read_conditioners(model) == {"conditioners_mine": {"width": 5}}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(weights=""), "weights is empty.*hf:openai"),
        (dict(weights="nowhere.safetensors"), "no such file"),
        (dict(depth=3), r"depth=3.*lacks.*block_2/"),
        (dict(depth=1), r"depth=1.*encoder\.layers\.1"),
        (dict(width=16), r"width=16.*\(8,\) instead of \(16,\)"),
        (dict(vocab_size=25), r"table/embedding \(24, 8\) instead of \(25, 8\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(state, tmp_path, changes, message):
    given = SIZES | {"weights": save(tmp_path / "w.npz", state)} | changes
    with pytest.raises(errors.UsageError, match=message) as caught:
        weights.read(clip.ClipText(**given))
    assert "\n" not in str(caught.value)
