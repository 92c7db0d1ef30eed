"""Two runs that version 0.1 wrote: opened, sampled, trained on and exported by today's code.

They were trained for six steps on one device: a KL first stage, and a second stage on it (which
lies inside) with the conditioners `boxes` (layout) and `class` (a vector). Parameters of
conditioners had numbers in the place of labels then, and configs had fewer keys. `runs_0_1.npz`
holds what the code of that version made of them, with the flags of tests/conftest.py.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import convert, train
from ldm_jax.base import errors, tree
from ldm_jax.base import record as record_lib
from ldm_jax.engine import checkpoint, inherit
from ldm_jax.runs import kinds

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CLOSE = dict(rtol=1e-4, atol=1e-5)  # of other machines' instructions; here they are byte-equal


@pytest.fixture
def runs(tmp_path):
    with tarfile.open(FIXTURES / "runs_0_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture(scope="module")
def expected():
    with np.load(FIXTURES / "runs_0_1.npz") as file:
        return dict(file)


def test_they_open_and_do_what_they_did(runs, expected):
    images = expected["input_images"]
    first, run = ldm_jax.load(runs / "first_stage"), ldm_jax.load(runs / "ldm")
    np.testing.assert_allclose(first.encode(images), expected["first_stage_encode"], **CLOSE)
    z = run.encode(images)
    np.testing.assert_allclose(z, expected["encode"], **CLOSE)
    cond = {"class": expected["input_class"], "layout_ids": expected["input_layout_ids"]}
    found = run.denoise(expected["encode"], expected["input_t"], cond)
    np.testing.assert_allclose(found, expected["denoise"], **CLOSE)
    drawn = run.sample(4, steps=4, seed=0, guidance=2.0, cond=cond)
    np.testing.assert_allclose(drawn, expected["sample"], **CLOSE)


@pytest.mark.slow
def test_parameters_are_read_by_label_and_restored_into_an_optimizer(runs):
    params, step = checkpoint.read_params(runs / "ldm", ("denoiser",))
    assert step == 6 and set(params["denoiser"]) >= {"conditioners_boxes", "conditioners_class"}
    argv = [f"--config={runs}/ldm/config.json", f"--workdir={runs}/ldm", "--config.steps.total=8"]
    assert call(train, *argv, "--allow_config_change=steps.total,first_stage") == 0
    saved = dict(tree.named_leaves(checkpoint.saved(runs / "ldm")))
    numbered = [name for name in saved if "conditioners_0" in name or "conditioners_1" in name]
    assert not numbered and any("/mu/conditioners_class/" in name for name in saved)
    lines = (runs / "ldm" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 8


def test_a_new_run_starts_from_an_old_one_by_label(runs, tmp_path):
    """With one more conditioner, whose label comes first: numbers would have mixed them up."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from ldm_jax.base.record import Record\n"
        "def get_config(arg=None):\n"
        f"    config = Record({str(runs / 'ldm')!r}).config\n"
        "    with config.unlocked():\n"
        "        config.conditioners['a_class'] = config.conditioners['class']\n"
        "        config.steps.total = 1\n"
        f"        config.init_from = {str(runs / 'ldm')!r}\n"
        "    return config\n"
    )
    config = record_lib.load(str(recipe))
    with pytest.raises(errors.UsageError, match="conditioners_a_class"):
        inherit.check(config.init_from, kinds.of(config).shapes(config))


def test_they_are_exported(runs, tmp_path):
    argv = ["export", f"--run={runs}/first_stage", f"--out={tmp_path}/exported"]
    assert convert.run(argv) == 0
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["latent_channels"] == 2
