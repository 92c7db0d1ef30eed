"""What a new loss term and a new bottleneck cost: one file of one's own, which a recipe names."""

import json
import sys

import numpy as np
import pytest
from calling import call

import ldm_jax
from ldm_jax import train
from ldm_jax.models import bottleneck
from ldm_jax.stages import autoencode

MINE = """
import dataclasses

import jax.numpy as jnp

from configs import debug
from ldm_jax.models import bottleneck
from ldm_jax.stages import autoencode


@autoencode.TERMS.register("edges")
def edges(x, x_hat, step):
    return jnp.mean(jnp.abs(jnp.diff(x, axis=2) - jnp.diff(x_hat, axis=2)))


@dataclasses.dataclass(frozen=True)
class Bounded(bottleneck.Bottleneck):
    def quantise(self, params, z):
        return bottleneck.straight_through(z, jnp.round(2 * jnp.tanh(z)) / 2)


bottleneck.BOTTLENECKS.register("bounded")(Bounded())


def get_config(arg=None):
    config = debug.first_stage()
    config.plugins = ("edges_of_mine",)
    config.data.size = 16
    config.model.update(mult=(1,), bottleneck="bounded")
    config.loss.update(disc_weight=0.0, terms=dict(edges=0.5))
    config.steps.update(total=2, log=1, eval=2)
    config.eval.records = 8
    return config
"""


@pytest.mark.slow
def test_a_term_and_a_bottleneck_in_a_file_of_ones_own_are_trained_and_logged(
    tmp_path, monkeypatch
):
    (tmp_path / "edges_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (autoencode.TERMS, bottleneck.BOTTLENECKS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    # As a recipe the file is executed under another name: there it must not register anything.
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from edges_of_mine import get_config\n")
    assert call(train, f"--config={recipe}", f"--workdir={tmp_path}/run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    logged = [line["term_edges"] for line in lines if "term_edges" in line]
    assert len(logged) == 2 and all(value > 0 for value in logged)
    run, images = ldm_jax.load(tmp_path / "run"), np.linspace(-1, 1, 768).reshape(1, 16, 16, 3)
    z = run.encode(images)
    np.testing.assert_array_equal(
        run.decode(z), run.decode(np.asarray(run.codec.bottleneck.quantise({}, z)))
    )
    sys.modules.pop("edges_of_mine", None)
