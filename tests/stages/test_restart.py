"""Entries of a codebook that die are put to use again, and only these."""

import functools

import jax
import numpy as np

from ldm_jax.base import config as config_lib
from ldm_jax.engine import optim
from ldm_jax.engine import step as step_lib
from ldm_jax.runs import kinds

KEY = jax.random.key(0)
ENTRIES, PATIENCE = 64, 3


@functools.cache
def trained(restart, steps):
    """State after so many steps, of a codebook most of whose entries lie far from all latents."""
    config = config_lib.load("configs/debug.py:vq")
    config.data.size = 8
    config.model.update(mult=(1,), codebook_size=ENTRIES)
    config.loss.update(restart=restart, disc_weight=0.0)
    stage = kinds.of(config).model(config).stage()
    optimizers = {"autoencoder": optim.make({"name": "adam", "lr": 1e-3}, 100)}
    state = step_lib.make_init(stage.players, optimizers)(KEY)
    model = state["params"]["autoencoder"]["model"]
    model["codebook"] = model["codebook"].at[8:].add(50.0)
    step = jax.jit(step_lib.make_step(stage.players, optimizers))
    metrics, batch = {}, {"image": jax.random.uniform(KEY, (4, 8, 8, 3), minval=-1.0)}
    for _ in range(steps):
        state, metrics = step(state, {}, batch, KEY)
    return state["params"]["autoencoder"], metrics


def test_dead_entries_come_into_use():
    dead, before = trained(0, PATIENCE)
    assert "idle" not in dead and float(before["usage"]) <= 8 / ENTRIES
    waiting, _ = trained(PATIENCE, PATIENCE - 1)
    assert np.all(waiting["model"]["codebook"][8:] > 40), "not before their time"
    revived, _ = trained(PATIENCE, PATIENCE)
    assert np.all(revived["model"]["codebook"] < 40)
    _, after = trained(PATIENCE, PATIENCE + 1)
    assert float(after["usage"]) > 1.5 * float(before["usage"])


def test_an_entry_in_use_is_left_to_its_gradient():
    plain, _ = trained(0, PATIENCE)
    waiting, _ = trained(100, PATIENCE)
    revived, _ = trained(PATIENCE, PATIENCE)
    alive = np.asarray(waiting["idle"]) < PATIENCE
    assert 0 < alive.sum() < ENTRIES
    book = lambda params: np.asarray(params["model"]["codebook"])
    np.testing.assert_array_equal(np.all(book(plain) == book(revived), axis=-1), alive)
