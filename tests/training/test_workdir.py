"""Which changes of its config a run in training takes, and which it refuses."""

import functools
import pathlib
import types

import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.base.record import Record
from ldm_jax.diffusion import loss_weights
from ldm_jax.runs import data, keys
from ldm_jax.training import workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DATA = types.SimpleNamespace(fingerprint="0123")


def load(**changes):
    """changes: {"a.b": "text"}."""
    config = config_lib.load(f"{ROOT}/configs/debug.py:ldm", changes)
    return keys.complete(data.resolved(config))


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint."""
    workdir.claim(Record(tmp_path), load(), DATA)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    Record(tmp_path).write(latents={"scale": 1.0})
    return Record(tmp_path)


CANNOT_MATTER = {"data.workers": "3", "data.threads": "5", "data.path": "elsewhere"}
CANNOT_MATTER |= {"checkpoints.keep": "7", "checkpoints.keep_every": "10"}
CANNOT_MATTER |= {"limits.data": "1", "mesh.fsdp": "2", "data.max_bad_fraction": "0.5"}
CANNOT_MATTER |= {"track.name": "wandb", "track.project": "other"}
CANNOT_MATTER |= {"max_rollbacks": "9", "check_replicas": "5", "offload": "True"}

MATTERS = {"model.norm_kernel": "pallas", "model.attention_kernel": "cudnn", "batch_size": "16"}
MATTERS |= {"model.remat": "True", "model.remat_saves": "products"}
MATTERS |= {"eval.records": "8", "steps.total": "99", "data.flip": "False", "plugins": "re"}
MATTERS |= {"optim.denoiser.lr": "1.0", "first_stage": "elsewhere", "accumulate": "2"}


@pytest.mark.parametrize("key", CANNOT_MATTER)
def test_a_change_that_no_number_depends_on_is_taken(key, run):
    config = load(**{key: CANNOT_MATTER[key]})
    workdir.claim(run, config, DATA)
    workdir.describe(run, config, DATA)
    assert run.config == config


@pytest.mark.parametrize("key", MATTERS)
def test_a_change_that_numbers_depend_on_is_refused_unless_it_is_allowed(key, run):
    before = run.config
    config = load(**{key: MATTERS[key]})
    with pytest.raises(errors.UsageError, match=f"--allow_config_change={key}$"):
        workdir.claim(run, config, DATA)
    assert run.config == before
    workdir.claim(run, config, DATA, allow=[key])
    assert run.config == before, "until its state is restored, which may be refused"


@pytest.mark.parametrize("variant", ["first_stage", "ldm"])
def test_every_key_that_may_change_is_one(variant):
    config = config_lib.load(f"{ROOT}/configs/debug.py:{variant}").to_dict()
    for key in workdir.MAY_CHANGE:
        functools.reduce(lambda group, part: group[part], key.split("."), config)


def test_data_may_lie_elsewhere_and_not_be_others(run):
    with pytest.raises(errors.UsageError, match=r"fingerprint 0123, now 4567"):
        workdir.claim(
            run, load(**{"data.path": "moved"}), types.SimpleNamespace(fingerprint="4567")
        )


def test_a_run_without_a_checkpoint_may_become_another(tmp_path):
    record = Record(tmp_path)
    workdir.claim(record, load(), DATA)
    for name in ("latents.json", "rollbacks.jsonl"):
        (tmp_path / name).touch()
    workdir.claim(record, load(), types.SimpleNamespace(fingerprint="4567"))
    assert not (tmp_path / "latents.json").exists()
    assert (tmp_path / "rollbacks.jsonl").exists(), "of the same run: it began with a rollback"
    workdir.claim(record, load(seed="1"), DATA)
    assert not (tmp_path / "rollbacks.jsonl").exists()


def test_options_that_a_recipe_leaves_out_are_recorded_as_they_were(tmp_path, monkeypatch):
    def steep(slope):
        """A weight of a module of one's own, whose option has the default `slope`."""
        return lambda process, *, slope=slope, of=np.asarray: of(process.snr) ** slope

    monkeypatch.setitem(loss_weights.WEIGHTS._entries, "steep", steep(0.5))
    begun = lambda: workdir.claim(Record(tmp_path), load(**{"loss.weight": "steep"}), DATA)
    begun()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    Record(tmp_path).write(latents={"scale": 1.0})
    assert Record(tmp_path).config.loss.slope == 0.5
    assert "of" not in Record(tmp_path).config.loss, "which JSON does not hold"
    workdir.claim(
        Record(tmp_path), load(**{"loss.weight": "steep", "loss.slope": "0.5"}), DATA
    )  # which says the same
    monkeypatch.setitem(loss_weights.WEIGHTS._entries, "steep", steep(0.7))
    with pytest.raises(errors.UsageError, match=r"loss\.slope: 0\.5 -> 0\.7"):
        begun()


def test_a_run_that_recorded_fewer_options_goes_on(run):
    config = run.config
    with config.unlocked():
        del config.model.resample_conv
    run.write_config(config)
    workdir.claim(run, load(), DATA)
