"""A run that is conditioned by a frozen text encoder: what it trains, keeps and draws."""

import json
import pathlib

import jax
import numpy as np
import pytest
from calling import call
from tokenizers.pre_tokenizers import ByteLevel

import ldm_jax
from ldm_jax import train
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.base.record import Record
from ldm_jax.data import bytepairs
from ldm_jax.engine import checkpoint
from ldm_jax.models import clip
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

ROOT = pathlib.Path(__file__).resolve().parent.parent
LETTERS = sorted(ByteLevel.alphabet())
TOKENS = [*LETTERS, *(f"{c}</w>" for c in LETTERS), bytepairs.START, bytepairs.END]
RECIPE = """
from configs import tasks

def get_config(arg=None):
    config = tasks.text_one()
    config.conditioners = {"text": dict(name="clip", vocab_size=514, length=20, width=8, depth=1,
        heads=2, start=512, end=513, pad=513, weights="WEIGHTS", tokenizer="TOKENIZER")}
    config.first_stage = "identity"
    config.batch_size = 8
    config.data.update(size=16, count=64, holdout=0.25)
    config.model.update(width=16, mult=(1,), attention=(1,), head_channels=8)
    config.latents.batches = 1
    config.eval.update(records=8, batch_size=8)
    config.optim.denoiser.warmup = 0
    config.sample.update(steps=2)
    config.steps.update(total=2, log=1, eval=2, checkpoint=2)
    return config
"""


def random_weights(seed, width=8):
    """A text encoder of one layer, in Hugging Face's layout."""
    encoder = clip.ClipText(vocab_size=514, length=20, width=width, depth=1, heads=1).encoder()
    ids = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), ids))["params"]
    rng = np.random.default_rng(seed)
    state = {
        "embeddings.token_embedding.weight": shapes["table"]["embedding"].shape,
        "embeddings.position_embedding.weight": shapes["positions"].shape,
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for name, (rows, columns) in dict(
        [(f"self_attn.{n}_proj", (width, width)) for n in ("q", "k", "v", "out")]
        + [("mlp.fc1", (4 * width, width)), ("mlp.fc2", (width, 4 * width))]
    ).items():
        state[f"encoder.layers.0.{name}.weight"] = (rows, columns)
        state[f"encoder.layers.0.{name}.bias"] = (rows,)
    for i in (1, 2):
        names = [f"encoder.layers.0.layer_norm{i}.{kind}" for kind in ("weight", "bias")]
        state |= dict.fromkeys(names, (width,))
    return {k: rng.normal(size=shape).astype(np.float32) for k, shape in state.items()}


def write_vocabulary(folder):
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_vocabulary(folder)
    np.savez(folder / "weights.npz", **random_weights(seed=0))
    recipe = RECIPE.replace("WEIGHTS", str(folder / "weights.npz"))
    (folder / "recipe.py").write_text(recipe.replace("TOKENIZER", str(folder)))
    argv = (f"--config={folder / 'recipe.py'}", f"--workdir={folder / 'run'}")
    read, really = [], clip.ClipText.read_frozen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.ClipText, "read_frozen", lambda own: read.append(own) or really(own))
        assert call(train, *argv) == 0
    assert len(read) == 1, "a text encoder is large"
    return folder


@pytest.mark.slow
def test_the_encoder_is_neither_trained_nor_kept_with_the_run(run):
    params, _ = checkpoint.read_params(run / "run", ("denoiser",))
    assert set(params["denoiser"]) == {"unet"}
    summary = json.loads((run / "run" / "summary.json").read_text())
    assert np.isfinite(summary["error"])


@pytest.mark.slow
def test_samples_follow_prompts(run):
    opened = ldm_jax.load(run / "run")
    conditions = conditions_of.make(opened.config)

    def draw(*prompts):
        cond = conditions.of_prompts(prompts)
        return np.asarray(opened.sample(2, steps=2, guidance=2.0, cond=cond))

    first, again = draw("a red circle", "a blue cross"), draw("a blue cross", "a blue cross")
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.allclose(first[0], again[0], atol=1e-5)


@pytest.mark.slow
def test_other_weights_of_the_encoder_are_refused(run):
    config = config_lib.load(str(run / "recipe.py"), {"steps.total": "3"})
    config = data_lib.resolve(config, source := data_lib.open_source(config.data))
    kept = (run / "weights.npz").read_bytes()
    try:
        np.savez(run / "weights.npz", **random_weights(seed=1))
        with pytest.raises(errors.UsageError, match="other weights of its conditioners"):
            kinds.of(config).begin(config, source, Record(run / "run"))
    finally:
        (run / "weights.npz").write_bytes(kept)


def test_a_recipe_without_weights_is_refused_in_one_line():
    without = {"first_stage": "identity:4", "conditioners.text.weights": ""}
    config = config_lib.load(f"{ROOT}/configs/sd_v1.py:captions", without)
    assert set(kinds.of(config).model(config).fields) == {"clip_ids"}
    with pytest.raises(errors.UsageError, match=r"conditioners.text: weights is empty.*hf:openai"):
        check_lib.check(config, range(100))
