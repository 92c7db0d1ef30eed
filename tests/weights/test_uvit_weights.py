"""Official U-ViTs against what their own code computes (tests/make_uvit_golden.py)."""

import json

import numpy as np
import pytest
from make_control_golden import filled
from make_uvit_golden import CASES, FILE, IDS, T, given

import ldm_jax
from ldm_jax import convert

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
