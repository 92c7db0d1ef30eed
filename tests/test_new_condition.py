"""A new kind of condition or source is one file of its own, and nothing else is touched."""

import json
import sys

import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import check_data, train
from ldm_jax.data import conditions, sources
from ldm_jax.models import conditioners
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib

BRIGHTNESS = """
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from configs import debug
from ldm_jax.data import conditions
from ldm_jax.models import conditioners
from ldm_jax.nn import blocks


@conditions.MAKERS.register("brightness")
class Mean(conditions.Maker):
    def __call__(self, record, rng):
        light = record["brightness"] if "brightness" in record else record["image"].mean() / 255
        return record | {"brightness": np.float32(light)}


@conditioners.CONDITIONERS.register("brightness")
class Brightness(conditioners.Conditioner):
    width: int
    fields: ClassVar[tuple] = ("brightness",)

    def example(self, image, latent):
        return {"brightness": jnp.zeros(image[:1])}

    @conditioners.nn.compact
    def __call__(self, batch, drop):
        shown = jnp.stack([batch["brightness"], jnp.ones(drop.shape)], -1)
        shown = jnp.where(drop[:, None], 0, shown)
        return conditioners.Cond(vector=blocks.dense(self.width, "out", dtype=self.dtype)(shown))


def get_config(arg=None):
    config = debug.ldm()
    config.plugins = ("brightness_of_mine",)
    config.first_stage = "identity"
    config.model.update(mult=(1,), attention=())
    config.steps.update(total=2, log=1, eval=2)
    config.eval.records = 8
    config.latents.batches = 1
    light = dict(name="brightness", width=4 * config.model.width)
    config.conditioners = {"light": light, "kind": dict(config.conditioners["class"])}
    return config
"""

GREYS = """
import numpy as np

from ldm_jax.data import sources


@sources.SOURCES.register("greys")
class Greys(sources.Source):
    def __init__(self, size, count):
        self._size, self._count = size, count
        self.fingerprint = sources.digest("greys", f"{size} {count}")

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return {"image": np.full((self._size, self._size, 3), i, np.uint8)}

    def name(self, i):
        return f"grey {i}"
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The file, where Python finds it; what it registers is gone afterwards."""
    (tmp_path / "brightness_of_mine.py").write_text(BRIGHTNESS)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (conditions.MAKERS, conditioners.CONDITIONERS, sources.SOURCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield tmp_path / "brightness_of_mine.py"
    sys.modules.pop("brightness_of_mine", None)


@pytest.mark.slow
def test_a_condition_in_a_file_of_ones_own_is_trained_and_drawn(module, tmp_path):
    # As a recipe the file is executed under another name: there it must not register anything.
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from brightness_of_mine import get_config\n")
    assert call(train, f"--config={recipe}", f"--workdir={tmp_path}/run") == 0
    run = ldm_jax.load(tmp_path / "run")
    made = conditions_of.make(run.config, data_lib.open_source(run.config.data))
    cond = made.of([{"brightness": 0.1, "class": "blue cross"}])
    assert run.num_classes == 16, "under another label than `class`"
    noise = np.zeros((1, *run.encode(np.zeros((1, 16, 16, 3))).shape[1:]), np.float32)
    assert np.isfinite(run.sample(1, cond=cond, steps=2, guidance=2.0, noise=noise)).all()


def test_a_source_in_a_file_of_ones_own_is_read(module, tmp_path, refused):
    (tmp_path / "greys_of_mine.py").write_text(GREYS)
    argv = ["--config=configs/debug.py:first_stage", f"--out={tmp_path}", "--config.data.count=9"]
    argv += ["--config.plugins=greys_of_mine", "--config.data.source=greys"]
    assert call(check_data, *argv) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["with"] == {"image": 9}
    assert "objects=2" in refused(call(check_data, *argv, "--config.data.objects=2"))
    sys.modules.pop("greys_of_mine")


def test_a_module_that_is_not_there_is_one_line(tmp_path, refused):
    argv = ["--config=configs/debug.py:ldm", f"--workdir={tmp_path}/run"]
    line = refused(call(train, *argv, "--config.plugins=nowhere_at_all"))
    assert "nowhere_at_all" in line and "PYTHONPATH" in line
