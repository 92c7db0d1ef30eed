"""Official U-ViTs against what their own code computes (tests/make_uvit_golden.py)."""

import json

import jax
import numpy as np
import pytest
from make_control_golden import filled
from make_uvit_golden import CASES, FILE, IDS, T, given

import ldm_jax
from ldm_jax import convert
from ldm_jax.base import config as config_lib
from ldm_jax.base import record as record_lib
from ldm_jax.runs import conversion, kinds

GOLDEN = json.loads(FILE.read_text())


def state_of(name):
    return filled(name, GOLDEN[name]["shapes"])


@pytest.mark.parametrize("name", CASES)
def test_a_converted_run_computes_what_the_official_code_does(name, tmp_path):
    np.savez(tmp_path / "model.npz", **state_of(name))
    argv = ["uvit", f"--checkpoint={tmp_path}/model.npz", f"--out={tmp_path}/run", "--heads=2"]
    assert convert.run(argv) == 0
    run = ldm_jax.load(tmp_path / "run")
    assert (run.config.process.beta_start, run.config.data.size) == (0.00085, 8)
    fields = {"class": np.array(IDS)} if name == "classes" else {}
    out = run.denoise(given(), np.array(T), fields)
    np.testing.assert_allclose(out, GOLDEN[name]["out"], atol=1e-5)


def test_with_a_first_stage_it_draws_pictures_of_f_times_its_latents(tmp_path):
    first = config_lib.load("configs/debug.py:first_stage")
    first.model.update(z_channels=4, latent_channels=4)
    record_lib.Record(tmp_path / "first").write_config(first)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), kinds.of(first).shapes(first))
    conversion.save(tmp_path / "first", 0, {"params": zeros, "ema": {}})
    np.savez(tmp_path / "model.npz", **state_of("classes"))
    argv = ["uvit", f"--checkpoint={tmp_path}/model.npz", f"--out={tmp_path}/run", "--heads=2"]
    assert convert.run([*argv, f"--config.first_stage={tmp_path}/first"]) == 0
    assert ldm_jax.load(tmp_path / "run").sample(1, steps=1, guidance=1.0).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda state: state.pop("pos_embed"), "is no official U-ViT: it has no pos_embed"),
        (lambda state: None, "no published U-ViT is 16 wide; give --heads"),
        (lambda state: state.update({"context_embed.weight": np.zeros(3)}), "U-ViT of captions"),
        (
            lambda state: state.update({"patch_embed.proj.weight": np.zeros((512, 3, 2, 2))}),
            "denoises pixels in continuous time",
        ),
        (lambda state: state.update(strange=np.zeros(3)), "strange"),
    ],
)
def test_what_is_no_official_uvit_is_refused_in_one_line(tmp_path, spoil, line, capfd):
    state = state_of("classes")
    spoil(state)
    np.savez(tmp_path / "model.npz", **state)
    heads = ["--heads=2"] if line == "strange" else []
    argv = ["uvit", f"--checkpoint={tmp_path}/model.npz", f"--out={tmp_path}/run", *heads]
    assert convert.run(argv) == 2
    said = capfd.readouterr().err.strip()
    assert line in said and "\n" not in said
    assert not (tmp_path / "run").exists()
