"""The small files of a run, and runs of earlier versions."""

import collections
import json

import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, upgrade
from ldm_jax.base.record import Record

OLD = {
    "seed": 3,
    "stage": "diffuse",
    "data": {"source": "scenes"},
    "conditioners": {"kind": {"name": "class"}, "a_map": {"name": "rescaler"}},
    "model": {"transformer_depth": 1, "groups": 8, "width": 16},
    "loss": {"weight": "uniform"},
    "sample": {"sampler": "ddim"},
    "process": {"schedule": "linear"},
    "optim": {"denoiser": {"ema": 0.9}},
    "first_stage": "inside",
}


@pytest.fixture
def old(tmp_path):
    run = tmp_path / "run"
    (run / "inside").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(OLD))
    return run


def test_an_old_config_says_what_the_program_did_then(old):
    config = Record(old).config
    assert config.max_rollbacks == 0  # today's default is 3, and runs of then knew none
    assert config.model.name == "unet" and config.process.density == "uniform"
    assert config.optim.denoiser.average == "ema" and config.optim.denoiser.ema == 0.9
    assert "kl_weight" not in config.loss and "halved" not in config.loss.terms


def test_a_run_that_trained_its_decoder_alone_has_the_encoder_it_began_from(old):
    saved = {"discriminator": {}, "init_from": "first", "loss": {"decoder_only": True}}
    config = upgrade.config(json.loads(json.dumps(OLD)) | saved)
    assert config["encoder"] == "first" and "decoder_only" not in config["loss"]


@pytest.mark.parametrize("text, words", [("fd", ("fd",)), ("fd,kid", ("fd", "kid")), ("", ())])
def test_names_that_were_a_text_with_commas_are_read_as_a_tuple(old, text, words):
    (old / "config.json").write_text(json.dumps(OLD | {"eval": {"metrics": text}}))
    config = Record(old).config
    assert config.eval.metrics == words and config.plugins == ()


def test_a_first_stage_inside_a_run_is_found_where_the_run_is(old):
    moved = old.rename(old.with_name("moved"))
    assert Record(moved).config.first_stage == str(moved / "inside")


def test_upgrading_changes_nothing_of_today(old):
    once = upgrade.config(json.loads(json.dumps(OLD)))
    assert upgrade.config(json.loads(json.dumps(once))) == once


def test_numbered_parameters_are_found_by_their_label(old):
    assert Record(old).parameter_names == {
        "conditioners_0": "conditioners_a_map",
        "conditioners_1": "conditioners_kind",
    }


@pytest.mark.parametrize("labels", [("0",), ("0", "1"), ("1", "0")])
def test_labels_that_are_numbers_are_not_renamed(labels):
    assert upgrade.parameter_names(labels) == {}


def test_renaming_reaches_into_an_optimizers_state_and_back():
    State = collections.namedtuple("State", "count mu")
    names = {"conditioners_0": "conditioners_kind"}
    state = {"opt": (State(1, {"unet": 2, "conditioners_0": 3}), [{"conditioners_0": 4}])}
    new = upgrade.renamed(state, names)
    assert new["opt"][0].mu == {"unet": 2, "conditioners_kind": 3}
    assert new["opt"][1] == [{"conditioners_kind": 4}]
    assert upgrade.renamed(new, {v: k for k, v in names.items()}) == state


def test_what_is_written_is_read_back(tmp_path):
    record = Record(tmp_path)
    config = config_lib.from_dict({"a": {"b": (1, 2)}, "optim": {}})
    record.write_config(config)
    assert Record(tmp_path).config.to_dict() == config.to_dict()
    record.write(latents={"scale": 2.0, "origin": {"digest": "x"}})
    assert record.frozen == {"digest": "x"}
    record.forget("latents.json")
    assert record.latents == {} and record.frozen == {}


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(errors.UsageError, match="is not a run"):
        _ = Record(tmp_path).config


@pytest.mark.parametrize("text", ['{"stage": "\\ud800"}', '{"a": 1, "a": 2}', "[]", ""])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(errors.UsageError, match=r"config\.json") as e:
        _ = Record(tmp_path).config
    assert "\n" not in str(e.value)


def test_what_latents_json_lacks_is_said(tmp_path):
    (tmp_path / "latents.json").write_text('{"mean": [0.0]}')
    with pytest.raises(errors.UsageError, match=r"latents.json: scale"):
        _ = Record(tmp_path).latents
