"""A decoder trained anew for the latents of an older first stage, and used by a second stage."""

import jax
import numpy as np
import pytest
from calling import call
from test_commands import DEBUG

from ldm_jax import cli, sample, train
from ldm_jax.base import errors
from ldm_jax.engine import checkpoint
from ldm_jax.runs import opened

SHORT = ["--config.steps.total=2", "--config.eval.records=8", "--config.data.size=16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config, first = f"--config={DEBUG}:first_stage", folder / "first"
    fast = ["--config.optim.autoencoder.ema=0.5", "--config.loss.disc_weight=0.0"]
    fast += ["--config.model.mult=(1, 1)"]
    assert call(train, config, f"--workdir={first}", *SHORT, *fast) == 0
    later = [f"--config.init_from={first}", "--config.optim.autoencoder.lr=0.01", *fast, *SHORT]
    only = "--config.loss.decoder_only=True"
    assert call(train, config, f"--workdir={folder / 'decoder'}", *later, only) == 0
    ldm = [f"--config={DEBUG}:ldm", f"--workdir={folder / 'ldm'}", f"--config.first_stage={first}"]
    assert call(train, *ldm, *SHORT) == 0
    return folder


def weights(run, ema):
    return checkpoint.read_params(run, ("autoencoder",), ema=ema)[0]["autoencoder"]["model"]


def test_the_averages_encoder_is_kept_bit_for_bit(runs):
    before = weights(runs / "first", True)
    assert not np.array_equal(
        before["encoder"]["conv_in"]["kernel"],
        weights(runs / "first", False)["encoder"]["conv_in"]["kernel"],
    ), "the law would be empty if the average were the weights"
    for ema in (False, True):
        after = weights(runs / "decoder", ema)
        for name in ("encoder", "to_latent"):
            jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
        moved = jax.tree.map(np.array_equal, after["decoder"], before["decoder"])
        assert not all(jax.tree.leaves(moved))


def test_a_second_stage_draws_the_same_latents_with_it(runs, tmp_path, capfd):
    argv = [f"--run={runs / 'ldm'}", "--num=8", "--batch_size=8", "--format=npz"]
    drawn = {}
    for name, more in (("own", []), ("new", [f"--decoder={runs / 'decoder'}"])):
        assert call(sample, *argv, f"--out={tmp_path / name}", *more) == 0
        with np.load(tmp_path / name / "samples.npz") as file:
            drawn[name] = file["arr_0"]
    assert not np.array_equal(drawn["own"], drawn["new"])
    again = f"--out={tmp_path / 'own'}"
    assert call(sample, *argv, again, f"--decoder={runs / 'decoder'}") == cli.EXIT_USAGE
    assert "other" in capfd.readouterr().err, "half-done jobs are not mixed"


def test_a_first_stage_of_other_latents_is_refused(runs):
    beneath = weights(runs / "first", True)
    opened.read_decoder(runs / "decoder", beneath)
    beneath["to_latent"]["bias"] = beneath["to_latent"]["bias"] + 1
    with pytest.raises(errors.UsageError, match=r"other latents .*\(to_latent/bias differs"):
        opened.read_decoder(runs / "decoder", beneath)
