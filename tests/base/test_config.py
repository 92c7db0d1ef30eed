import json

import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import keys

DEBUG = "configs/debug.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


def refused(spec, overrides=None) -> str:
    with pytest.raises(errors.UsageError) as caught:
        config_lib.load(spec, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("text, words", [("fd", ("fd",)), ("fd,kid", ("fd", "kid")), ("", ())])
def test_a_list_of_words_is_said_with_commas(text, words):
    config = config_lib.load("configs/debug.py", {"eval.metrics": text})
    assert config.eval.metrics == words


def test_overrides_keep_the_type_of_the_value_that_stands_there():
    config = config_lib.load(
        f"{DEBUG}:first_stage",
        {
            "batch_size": "16",
            "data.flip": "false",
            "data.path": "12",
            "model.mult": "(1,2,3)",
            "model.attention": "2",
            "optim.autoencoder.lr": "1",
            "loss.kl_weight": "1e-3",
        },
    )
    assert config.batch_size == 16 and config.data.flip is False
    assert config.data.path == "12", "a path may look like a number"
    assert config.model.mult == (1, 2, 3) and config.model.attention == (2,)
    assert config.optim.autoencoder.lr == 1.0 and isinstance(config.optim.autoencoder.lr, float)
    assert config.loss.kl_weight == 1e-3


WRONG = {
    "model.widht": "config.model has no key 'widht'; did you mean 'width'",
    "model.parent": "config.model has no key 'parent'",
    "model.out_channels": "config.model has no key 'out_channels'",
    "optim.denoiser.nssteps": "config.optim.denoiser has no key 'nssteps'; did you mean 'ns_steps'",
    "data.cuont": "config.data has no key 'cuont'; did you mean 'count'",
    "track.projct": "config.track has no key 'projct'; did you mean 'project'",
    "adapt.rnak": "config.adapt has no key 'rnak'; did you mean 'rank'",
    "process.larges": "config.process has no key 'larges'",
    "distil.calsl": "config.distil has no key 'calsl'; did you mean 'calls'",
}


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("batchsize", "8", ["config.batchsize", "did you mean 'batch_size'?"]),
        ("loss.kl_wieght", "8", ["config.loss has no key", "did you mean 'kl_weight'?"]),
        ("seed.x", "8", ["config.seed has no key 'x'", "it is a value"]),
        ("batch_size", "many", ["config.batch_size=many", "wants int", "got str"]),
        ("batch_size", "1.5", ["wants int", "got float"]),
        ("data.flip", "maybe", ["wants bool", "got str"]),
        ("optim.autoencoder.lr", "fast", ["wants float", "got str"]),
        ("model", "8", ["this is a group", "model.width"]),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_remedy(key, text, words):
    message = refused(f"{DEBUG}:first_stage", {key: text})
    assert all(word in message for word in words), message


def test_what_a_group_names_may_be_given_keys_that_the_recipe_leaves_out():
    config = config_lib.load(f"{DEBUG}:ldm", {"optim.denoiser.ns_steps": "3"})
    assert config.optim.denoiser.ns_steps == 3
    config_lib.assign(config, "model.fill_heads", True)
    keys.check(config, decided=False)
    with pytest.raises(AttributeError):
        config.optim.denoiser.other = 1
    for key, said in WRONG.items():
        with pytest.raises(errors.UsageError, match=said):
            keys.check(config_lib.load(f"{DEBUG}:ldm", {key: "8"}), decided=False)


def test_a_missing_file_and_an_unknown_variant_name_the_nearest():
    assert "did you mean 'configs/debug.py'?" in refused("configs/debgu.py")
    assert "no file" in refused("nowhere/at_all.py")
    assert "not a python file" in refused("pyproject.toml")
    assert "did you mean 'first_stage'?" in refused(f"{DEBUG}:frist_stage")


def test_a_config_file_that_breaks_says_how(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(arg=None):\n    return 1 / 0\n")
    assert "ZeroDivisionError" in refused(str(tmp_path / "broken.py"))
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    assert "SyntaxError" in refused(str(tmp_path / "syntax.py"))
    (tmp_path / "empty.py").write_text("")
    assert "get_config" in refused(str(tmp_path / "empty.py"))
    (tmp_path / "nothing.py").write_text("def get_config(arg=None):\n    pass\n")
    assert "ConfigDict" in refused(str(tmp_path / "nothing.py"))


def test_a_loaded_config_is_locked():
    config = config_lib.load(DEBUG)
    with pytest.raises((AttributeError, KeyError)):
        config.model.new_key = 1


@pytest.mark.parametrize("variant", ["first_stage", "vq", "ldm"])
def test_json_brings_back_the_same_config(variant):
    config = config_lib.load(f"{DEBUG}:{variant}")
    text = config_lib.to_json(config)
    again = config_lib.from_dict(json.loads(text))
    assert again == config
    assert isinstance(again.model.mult, tuple) and again.is_locked
    assert config_lib.to_json(again) == text
    assert json.loads(text) == config_lib.plain(config)


def test_difference_names_each_key_that_differs():
    old = {"a": 1, "b": {"c": (1, 2), "d": 0.1}, "gone": None}
    new = {"a": 1, "b": {"c": [1, 3], "d": 0.1}, "came": {}}
    assert config_lib.difference(old, old) == []
    assert config_lib.difference({"t": (1, 2)}, {"t": [1, 2]}) == [], "JSON knows no tuples"
    assert config_lib.difference(old, new) == [
        "b.c: [1, 2] -> [1, 3]",
        "came: (absent) -> {}",
        "gone: None -> (absent)",
    ]


def test_the_config_of_a_run_is_a_recipe(tmp_path):
    text = config_lib.to_json(config_lib.load(f"{DEBUG}:ldm"))
    (tmp_path / "config.json").write_text(text.replace('  "init_from": "",\n', ""))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "config.json").write_text("{}")
    spec = f"{tmp_path}/config.json"
    config = record_lib.load(spec, {"init_from": "x", "first_stage": "inside"})
    assert config.init_from == "x" and config.model == config_lib.load(f"{DEBUG}:ldm").model
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert record_lib.read(tmp_path).first_stage == str(tmp_path / "inside")


def test_a_dict_changes_a_group_and_with_a_name_replaces_it():
    config = config_lib.load(f"{DEBUG}:ldm")
    config_lib.assign(config, "process", {"prediction": "eps", "density_mean": 1})
    assert config.process.prediction == "eps" and config.process.density_mean == 1.0
    assert config.process.schedule == "scaled_linear"
    config_lib.assign(config, "model", {"name": "other", "depth": 3})
    assert config.model.to_dict() == {"name": "other", "depth": 3}
    config_lib.assign(config, "batch_size", "16")
    assert config.batch_size == 16
    for key, value in {"latents.bathes": 2, "latents": {"bathes": 2}}.items():
        with pytest.raises(errors.UsageError, match="did you mean 'batches'"):
            config_lib.assign(config, key, value)
    with pytest.raises(errors.UsageError, match="wants int"):
        config_lib.assign(config, "batch_size", (1, 2))
