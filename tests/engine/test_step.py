"""The training step against plain arithmetic, with a stage of a few numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.base import shard
from ldm_jax.engine import optim, step
from ldm_jax.stages import api


def fit(params, frozen, batch, key, now, shared):
    error = batch["x"] @ params["fit"]["w"] - frozen["target"]
    return jnp.mean(error**2), ({"error": jnp.mean(error)}, {"error": error})


def follow(params, frozen, batch, key, now, shared):
    """Reads what `fit` shared; a gradient into `fit` would show in fit's own."""
    loss = jnp.mean(shared["error"] * params["follow"]["v"] + params["fit"]["w"].sum())
    return loss, ({}, shared)


FIT = api.Player("fit", lambda key: {"w": jax.random.normal(key, (3,))}, fit)
FOLLOW = api.Player("follow", lambda key: {"v": jnp.float32(2.0)}, follow)
FROZEN = {"target": jnp.float32(1.0)}
BATCH = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}


def make(players=(FIT, FOLLOW), accumulate=1, decay=0.5, **optimizer):
    settings = {"lr": 0.1, "name": "adam"} | optimizer
    optimizers = {player.name: optim.make(settings, 10) for player in players}
    optimizers |= {"fit": optim.make(settings | {"ema": decay}, 10)}
    train = step.make_step(players, optimizers, accumulate=accumulate)
    return step.make_init(players, optimizers)(jax.random.key(0)), jax.jit(train)


def test_each_player_gets_the_gradient_of_its_own_loss():
    state, train = make()
    w = np.asarray(state["params"]["fit"]["w"], np.float64)
    x = BATCH["x"].astype(np.float64)
    new, metrics = train(state, FROZEN, BATCH, jax.random.key(1))
    error = x @ w - 1
    assert float(metrics["fit/loss"]) == pytest.approx(np.mean(error**2), rel=1e-5)
    gradient = 2 * x.T @ error / len(x)
    assert float(metrics["fit/grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert float(metrics["follow/grad_norm"]) == pytest.approx(abs(error.mean()), rel=1e-5)
    # The first step of Adam is lr * sign(gradient).
    moved = np.asarray(new["params"]["fit"]["w"]) - w
    np.testing.assert_allclose(moved, -0.1 * np.sign(gradient), rtol=1e-4)
    assert int(new["step"]) == 1


def test_a_parameters_own_rate_scales_its_step():
    slow = dataclasses.replace(FIT, rates=lambda params: {"w": jnp.array([1.0, 0.25, 0.0])})
    (before, one), (_, other) = make(), make((slow, FOLLOW))
    key, w = jax.random.key(1), before["params"]["fit"]["w"]
    move = lambda train: train(before, FROZEN, BATCH, key)[0]["params"]["fit"]["w"] - w
    np.testing.assert_allclose(move(other), move(one) * np.array([1, 0.25, 0]), rtol=1e-4)


def test_accumulating_two_halves_is_one_batch():
    (state, whole), (_, halves) = make(), make(accumulate=2)
    one, two = (train(state, FROZEN, BATCH, jax.random.key(1)) for train in (whole, halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, two)


def test_only_players_with_a_decay_keep_an_average():
    state, train = make()
    assert set(state["ema"]) == {"fit"}
    new, _ = train(state, FROZEN, BATCH, jax.random.key(1))
    keep = min(0.5, 2 / 11)
    expected = keep * state["params"]["fit"]["w"] + (1 - keep) * new["params"]["fit"]["w"]
    np.testing.assert_allclose(new["ema"]["fit"]["w"], expected, rtol=1e-6)
    averaged = step.averaged(new)
    assert averaged["fit"] is new["ema"]["fit"] and averaged["follow"] is new["params"]["follow"]


def test_a_player_that_begins_later_rests_with_its_optimizer():
    """Its first step is Adam's first, lr * sign(gradient), whatever number it has in the run."""
    late = dataclasses.replace(FIT, begins=3)
    state, train = make((late, FOLLOW))
    begun = np.asarray(state["params"]["fit"]["w"])
    for _ in range(3):
        state, _ = train(state, FROZEN, BATCH, jax.random.key(1))
        np.testing.assert_array_equal(state["params"]["fit"]["w"], begun)
    new, _ = train(state, FROZEN, BATCH, jax.random.key(1))
    gradient = BATCH["x"].T @ (BATCH["x"] @ begun - 1)
    moved = np.asarray(new["params"]["fit"]["w"]) - begun
    np.testing.assert_allclose(moved, -0.1 * np.sign(gradient), rtol=1e-4)
    counts = {int(x) for _, x in optax.tree.get_all_with_path(new["opt"]["fit"], "count")}
    assert counts == {1, 4}  # the schedule of its learning rate counts the run's steps


def test_an_average_is_a_registered_value():
    @optim.AVERAGES.register("half_way_in_this_test")
    def half_way(decay, warmup):
        return lambda average, params, step: jax.tree.map(
            lambda a, p: decay * a + step + p, average, params
        )

    state, train = make((FIT,), average="half_way_in_this_test")
    state, _ = train(state, FROZEN, BATCH, jax.random.key(1))
    new, _ = train(state, FROZEN, BATCH, jax.random.key(1))
    expected = 0.5 * state["ema"]["fit"]["w"] + 1 + new["params"]["fit"]["w"]
    np.testing.assert_allclose(new["ema"]["fit"]["w"], expected, rtol=1e-6)


def test_the_state_has_no_buffer_twice():
    state, _ = make()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_randomness_follows_the_step_and_the_micro_batch():
    def draw(params, frozen, batch, key, now, shared):
        return jax.random.normal(key) + 0 * params["fit"]["w"].sum(), ({}, shared)

    noise = api.Player("fit", FIT.init, draw)
    seen = set()
    for accumulate in (1, 2):
        state, train = make((noise,), accumulate)
        for _ in range(3):
            state, metrics = train(state, FROZEN, BATCH, jax.random.key(1))
            seen.add(float(metrics["fit/loss"]))
    assert len(seen) == 6
    again, train = make((noise,))
    assert float(train(again, FROZEN, BATCH, jax.random.key(1))[1]["fit/loss"]) in seen


def test_a_value_that_is_not_finite_changes_nothing_but_the_step():
    state, train = make()
    bad = {"x": BATCH["x"].copy()}
    bad["x"][3, 1] = np.inf
    new, metrics = train(state, FROZEN, bad, jax.random.key(1))
    assert not np.isfinite(metrics["fit/loss"]) and int(new["step"]) == 1
    for part in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, new[part], state[part])
    good, _ = train(new, FROZEN, BATCH, jax.random.key(1))
    assert not np.array_equal(good["params"]["fit"]["w"], state["params"]["fit"]["w"])


def test_moments_kept_in_the_hosts_memory_train_alike():
    # Widths that a mesh of two can share.
    fit_wide = api.Player("fit", lambda key: {"w": jax.random.normal(key, (3, 1))}, fit_column)
    stage = api.Stage(("x",), (fit_wide,), FROZEN, None, None)
    mesh = shard.make_mesh(data=2, devices=jax.devices()[:2])
    results = []
    for offload in (False, True):
        settings = {"fit": dict(lr=0.1, name="adam", ema=0.5)}
        programs = step.programs(stage, settings, mesh=mesh, total=10, offload=offload)
        state, frozen = programs.init(shard.random_key(0, mesh)), shard.put_replicated(FROZEN, mesh)
        batch, key = shard.put_batch(BATCH, mesh), shard.random_key(1, mesh)
        before = jax.tree.map(lambda x: x, state)
        program = programs.step.lower(state, frozen, batch, key).compile()
        for _ in range(2):
            state, metrics = program(state, frozen, batch, key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "donated"
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim}
        assert kinds == {step.HOST} if offload else step.HOST not in kinds
        results.append(jax.device_get((state, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def fit_column(params, frozen, batch, key, now, shared):
    error = (batch["x"] @ params["fit"]["w"])[:, 0] - frozen["target"]
    return jnp.mean(error**2), ({}, {})


def test_a_player_that_learns_now_and_then_rests_with_its_optimizer_in_between():
    """Every third step is Adam's next one, and the means of its metrics over three are true."""
    state, train = make((dataclasses.replace(FIT, every=3), FOLLOW))
    plain, each = make((FIT, FOLLOW))
    for now in range(7):
        before = state["params"]["fit"]["w"]
        state, metrics = train(state, FROZEN, BATCH, jax.random.key(1))
        if now % 3 == 0:
            plain, expected = each(plain, FROZEN, BATCH, jax.random.key(1))
            np.testing.assert_allclose(
                state["params"]["fit"]["w"], plain["params"]["fit"]["w"], rtol=1e-5
            )
            for name in ("fit/loss", "fit/grad_norm", "error"):
                assert float(metrics[name]) == pytest.approx(3 * float(expected[name]), rel=1e-5)
        else:
            np.testing.assert_array_equal(state["params"]["fit"]["w"], before)
            assert metrics["fit/loss"] == metrics["fit/grad_norm"] == 0
    assert int(state["step"]) == 7
