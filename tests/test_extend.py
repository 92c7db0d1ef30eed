"""docs/extend.md, carried out: one module of one's own with an idea of every kind."""

import json
import pathlib
import re
import sys
import textwrap

import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import convert, train
from ldm_jax.base import registry
from ldm_jax.data import conditions, sources
from ldm_jax.diffusion import guidance, loss_weights, process, schedules
from ldm_jax.engine import optim
from ldm_jax.evaluation import suite
from ldm_jax.metrics import features
from ldm_jax.models import backbones, conditioners
from ldm_jax.shell import registries
from ldm_jax.stages import autoencode
from ldm_jax.sweeps import axes, cells
from ldm_jax.weights import readers

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "extend.md"
TOUCHED = (
    *(backbones.BACKBONES, schedules.SCHEDULES, process.PREDICTIONS, process.DENSITIES),
    *(guidance.GUIDANCES, optim.OPTIMIZERS, optim.AVERAGES, autoencode.TERMS, sources.SOURCES),
    *(suite.METRICS, features.EXTRACTORS, readers.READERS),
    *(loss_weights.WEIGHTS, conditioners.CONDITIONERS, conditions.MAKERS),
)
SHORT = ["--config.steps.total=2", "--config.steps.log=1", "--config.steps.eval=2"]
SHORT += ["--config.eval.records=8", "--config.eval.batch_size=8"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe(variant) -> a file; the page's module lies where Python finds it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "mine.py").write_text("\n\n".join(blocks[1:]))  # the first one names the module
    monkeypatch.syspath_prepend(tmp_path)
    registries.of("sources")  # imports all that registers: what came later would be lost below
    for one in TOUCHED:
        assert isinstance(one, registry.Registry)
        monkeypatch.setattr(one, "_entries", dict(one._entries))

    def write(variant):
        file = tmp_path / f"{variant}.py"
        file.write_text(f"from mine import {variant}\ndef get_config(arg=None):\n")
        file.write_text(file.read_text() + f"    return {variant}()\n")
        return file

    yield write
    sys.modules.pop("mine", None)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_objective_and_a_backbone_of_ones_own_are_trained_and_drawn(
    recipe, tmp_path, capfd, refused
):
    run = tmp_path / "run"
    argv = [f"--config={recipe('ldm')}", f"--workdir={run}", *SHORT]
    assert call(train, *argv, "--config.latents.batches=1", "--config.loss.softness=2") == 0
    assert json.loads((run / "config.json").read_text())["loss"]["softness"] == 2
    [measured] = [line for line in lines(run) if "val/error" in line]
    # The metric sees what the samples are and what the data is; two steps draw no ramps.
    assert np.isfinite(measured["val/brightness_means"]) and measured["val/error"] > 0
    opened = ldm_jax.load(run)
    assert set(opened.weights["params"]) == {"mixer", "conditioners_light"}
    images = opened.sample(2, steps=3, sampler="heun", guidance=1.0)
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    capfd.readouterr()
    code = convert.run(["export", f"--run={run}", f"--out={tmp_path / 'exported'}"])
    assert "model.name=mixer: diffusers has no such network" in refused(code)


@pytest.mark.slow
def test_a_loss_term_an_optimizer_and_an_average_of_ones_own_train(recipe, tmp_path):
    run = tmp_path / "run"
    argv = [f"--config={recipe('first_stage')}", f"--workdir={run}", *SHORT]
    assert call(train, *argv, "--config.steps.checkpoint=1", "--config.checkpoints.keep=3") == 0
    assert all(line["term_edges"] > 0 for line in lines(run) if "term_edges" in line)
    assert any("term_edges" in line for line in lines(run))
    averaged = ldm_jax.load(run).digest
    assert averaged != ldm_jax.load(run, ema=False).digest


def test_a_sweep_of_ones_own_is_one_of_all_its_combinations(recipe):
    found = axes.load(str(recipe("study")), {})
    names = ["unet_uniform", "unet_soft-snr", "mixer_uniform", "mixer_soft-snr"]
    assert [cell.variant for cell in cells.cells(found)] == [f"f2_kl_c2_{name}" for name in names]


WRONG = {
    "flat": """
        import flax.linen as nn
        from ldm_jax.models.backbones import BACKBONES, Backbone
        @BACKBONES.register("flat")
        class Flat(Backbone):
            @nn.compact
            def __call__(self, x, t, **conditions):
                return nn.Dense(1)(x)
        """,
    "nameless": """
        from ldm_jax.data import sources
        @sources.SOURCES.register("nameless")
        class Nameless(sources.Source):
            pass
        """,
    "open": """
        from ldm_jax.diffusion.loss_weights import WEIGHTS
        WEIGHTS.register("open")(lambda process, *, gain: gain * process.snr)
        """,
    "broken": "\n1 / 0",
}


@pytest.mark.parametrize(
    ("module", "key", "words"),
    [
        ("flat", "model", r"backbone Flat returns \(.*, 1\) for an input of \(.*, 3\): make it"),
        ("nameless", "data.source", "Data source 'nameless' has no fingerprint"),
        ("open", "loss.weight", r"loss weight 'open': option 'gain' has no default.*open.py:3"),
        ("broken", "plugins", r"broken cannot be imported \(ZeroDivisionError: .*broken.py:2"),
        ("missing", "plugins", "missing cannot be imported .*put its folder on PYTHONPATH"),
    ],
)
def test_what_ones_own_module_gets_wrong_is_one_line(module, key, words, recipe, tmp_path, refused):
    if module in WRONG:
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(WRONG[module]))
    value = {"model": dict(name=module), "plugins": (module,)}.get(key, module)
    (tmp_path / "wrong.py").write_text(
        "from configs import debug\ndef get_config(arg=None):\n    c = debug.ldm()\n"
        f"    c.plugins = ({module!r},)\n    c.{key} = {value!r}\n"
        "    c.first_stage, c.conditioners = 'identity', {}\n    return c\n"
    )
    argv = [f"--config={tmp_path / 'wrong.py'}", f"--workdir={tmp_path / 'run'}", *SHORT]
    assert re.search(words, refused(call(train, *argv, "--config.latents.batches=1")))
