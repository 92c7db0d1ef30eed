"""Every task trains from its recipe; a conditioner's own dropout; what a config may say of it."""

import copy
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calling import call
from PIL import Image

from ldm_jax import adherence, train
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, upgrade
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASKS = {
    "text": {"text_ids"},
    "text_one": {"text_ids"},
    "layout": {"layout_ids"},
    "semantic": {"segmentation"},
    "superres": {"low_res"},
    "inpaint": {"masked_image", "mask"},
    "uncond": set(),
}
SMALL = {
    "first_stage": "identity",
    "batch_size": 8,
    "data.size": 16,
    "data.count": 64,
    "data.holdout": 0.25,
    "model.width": 16,
    "model.mult": (1,),
    "model.attention": (),
    "model.head_channels": 8,
    "latents.batches": 1,
    "eval.records": 8,
    "eval.batch_size": 8,
    "sample.steps": 2,
    "optim.denoiser.warmup": 0,
    "steps.total": 2,
    "steps.log": 1,
    "steps.eval": 2,
    "steps.checkpoint": 2,
}


def load(task, **overrides):
    overrides = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    small = {key: str(value) for key, value in SMALL.items()}
    return config_lib.load(f"{ROOT}/configs/tasks.py:{task}", small | overrides)


def resolved(task, **overrides):
    config = load(task, **overrides)
    source = data_lib.open_source(config.data)
    return data_lib.resolve(config, source), source


def run(task, workdir, *more):
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    argv = [f"--config={ROOT}/configs/tasks.py:{task}", f"--workdir={workdir}"]
    assert call(train, *argv, *flags, *more) == 0
    return json.loads((workdir / "summary.json").read_text())


# The map's stages belong to f = 4; the transformer is as small as they come.
MORE = {
    "semantic": ["--config.conditioners.map.stages=0"],
    "text": ["--config.conditioners.text.depth=1", "--config.conditioners.text.vector=64"],
    "text_one": ["--config.conditioners.text.vector=64"],
    "layout": ["--config.conditioners.layout.vector=64"],
}
QUICK = ("inpaint",)
SCORES = {
    "text": ["caption_accuracy", "objects_accuracy"],
    "text_one": ["caption_accuracy"],
    "layout": ["box_iou"],
    "semantic": ["map_agreement"],
    "superres": ["psnr_db", "bicubic_psnr_db"],
    "inpaint": ["hole_psnr_db", "same_objects"],
}


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in TASKS]
)
def test_a_task_trains_from_its_recipe(task, tmp_path):
    summary = run(task, tmp_path / "run", *MORE.get(task, ()))
    assert summary["steps"] == 2 and np.isfinite(summary["error"])
    argv = [f"--run={tmp_path}/run", f"--out={tmp_path}/out", "--num=8", "--batch_size=8"]
    several = ["--guidance=1,2.5"] if task == "text_one" else []
    assert call(adherence, *argv, *several) == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(scores.get("by_guidance", {})) == (["1", "2.5"] if several else [])
    assert scores.keys() >= {"objects_found", *SCORES.get(task, ())}
    # Pixels have no first stage to lose anything in.
    assert scores["real_objects_found"] >= 0.75


@pytest.mark.parametrize("task", TASKS)
def test_held_out_batches_have_the_fields_that_the_task_reads(task):
    config, source = resolved(task, first_stage=f"{ROOT}/configs/tasks.py:first_stage")
    stage = kinds.of(config).model(config)
    assert set(stage.fields) == TASKS[task]
    assert set(conditions_of.make(config, source).fields) == TASKS[task]
    fields = ("image", *stage.fields)
    batch, again = (next(data_lib.held_out_batches(config, source, fields)) for _ in range(2))
    example = jax.eval_shape(lambda: stage.example(8, 16, 16))
    for field in TASKS[task]:
        np.testing.assert_array_equal(batch[field], again[field])
        if field in example:
            assert batch[field].shape == example[field].shape


def test_the_first_stage_says_how_small_the_small_image_is():
    config, source = resolved("superres", first_stage=f"{ROOT}/configs/tasks.py:first_stage")
    fields, _ = conditions_of.make(config, source).of_source(source, 2)
    assert fields["low_res"].shape == (2, 4, 4, 3)


def test_the_vocabulary_decides_the_size_of_the_text_conditioner():
    config, source = with_keys("text", vector=64)
    text = config.conditioners.text
    assert (text.vocab_size, text.null, text.pad) == (19, (2, 3), 0)
    check_lib.check(config, source)
    with pytest.raises(errors.UsageError, match="cannot be read"):
        resolved("text", data__vocabulary="nowhere.txt")


def with_keys(task, **changes):
    config, source = resolved(task)
    with config.unlocked():
        [group] = config.conditioners.values()
        group.update(changes)
    return config, source


def test_conditioners_keep_to_their_own_dropout():
    config, source = with_keys("text", dropout=0.5, vector=64)
    with config.unlocked():
        config.conditioners.other = copy.deepcopy(config.conditioners.text)
        config.conditioners.third = copy.deepcopy(config.conditioners.text)
        for name in ("other", "third"):
            del config.conditioners[name]["dropout"]
    check_lib.check(config, source)
    denoiser = kinds.of(config).model(config).denoiser  # in the order of names
    other, own, third = np.asarray(denoiser.draw_drop(jax.random.key(0), 4_000, 0.1)).T
    np.testing.assert_array_equal(other, third)
    assert other.mean() == pytest.approx(0.1, abs=0.02)
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(own, other)[0, 1] == pytest.approx(0, abs=0.05)


def test_without_rates_of_their_own_all_rows_are_drawn_as_ever():
    """Runs that began before conditioners had a dropout go on with the same numbers."""
    config, _ = resolved("text")
    key = jax.random.key(3)
    drop = kinds.of(config).model(config).denoiser.draw_drop(key, 64, 0.3)
    np.testing.assert_array_equal(drop[:, 0], jax.random.bernoulli(key, 0.3, (64,)))
    uncond = resolved("uncond")[0]
    plain = kinds.of(uncond).model(uncond).denoiser.draw_drop(key, 64, 0.3)
    np.testing.assert_array_equal(plain, jax.random.bernoulli(key, 0.3, (64,)))


def test_each_conditioner_gets_its_own_null():
    config, source = with_keys("text", vector=64)
    with config.unlocked():
        config.conditioners.map = dict(name="rescaler", stages=0, classes=17, channels=0)
    model = kinds.of(config).model(config)
    fields, _ = conditions_of.make(config, source).of_source(source, 2)
    params = jax.jit(model.init)(jax.random.key(0))
    condition = jax.jit(model.condition)
    whole = condition(params, fields, jnp.zeros(2, bool))
    null = condition(params, fields, jnp.ones(2, bool))
    # In the order of names: the map, then the text.
    mixed = condition(params, fields, jnp.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(mixed.concat[0], null.concat[0])
    np.testing.assert_array_equal(mixed.concat[1], whole.concat[1])
    np.testing.assert_array_equal(mixed.tokens[0], whole.tokens[0])
    np.testing.assert_array_equal(mixed.tokens[1], null.tokens[1])


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("text", dict(dropout=1.5), "text.dropout=1.5 must be a number from 0 to 1"),
        ("text", dict(lenght=3), "no key 'lenght'; did you mean 'length'"),
        ("text", dict(vocab_size=7, vector=64), "has 19 tokens"),
        ("superres", dict(degradation="bicubik"), "did you mean 'bicubic'"),
        ("inpaint", dict(holes=dict(box=0.0, stroke=0.0, half=0.0)), "weight of 0 or more"),
        ("layout", dict(places="middle", vector=64), "choose box or centre"),
    ],
)
def test_a_wrong_key_is_one_line_before_any_device_is_touched(task, changes, message):
    with pytest.raises(errors.UsageError, match=message) as caught:
        check_lib.check(*with_keys(task, **changes))
    assert "\n" not in str(caught.value)


def test_a_config_saved_before_these_keys_still_loads():
    config, source = resolved("inpaint")
    saved = json.loads(config_lib.to_json(config))
    for key in ("vocabulary", "relations", "combinations"):
        del saved["data"][key]
    del saved["conditioners"]["hole"]["holes"]
    old = config_lib.from_dict(upgrade.config(saved))
    check_lib.check(old, data_lib.open_source(old.data))
    fields, _ = conditions_of.make(old, source).of_source(source, 1)
    assert fields["mask"].shape == (1, 16, 16, 1)


@pytest.mark.parametrize("guidance", ["much", "-1", "1,inf"])
def test_guidance_scales_that_are_none_are_one_line(guidance, pixel_run, tmp_path, refused):
    argv = [f"--run={pixel_run}", f"--out={tmp_path}/out", f"--guidance={guidance}"]
    assert f"--guidance={guidance}" in refused(call(adherence, *argv))


def test_classes_of_photographs_are_checked_by_nobody(pixel_run, tmp_path, refused):
    photos = tmp_path / "photos"
    for i in range(32):
        (photos / f"{i % 16}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 8 * i, np.uint8)).save(photos / f"{i % 16}/{i}.png")
    argv = [f"--run={pixel_run}", f"--out={tmp_path}/out", "--num=4"]
    data = ["--config.data.source=folder", f"--config.data.path={photos}"]
    assert "asked for class" in refused(call(adherence, *argv, *data))


@pytest.mark.slow
def test_the_null_condition_is_scored_without_the_conditions(pixel_run, tmp_path):
    argv = [f"--run={pixel_run}", f"--out={tmp_path}/out", "--num=8", "--batch_size=8", "--null"]
    assert call(adherence, *argv) == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "class_accuracy" not in scores and 0 <= scores["marginal_distance"] <= 1
