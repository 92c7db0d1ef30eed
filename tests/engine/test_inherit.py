"""What a run takes from another one's weights, with players of a few numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors, tree
from ldm_jax.engine import checkpoint, inherit, optim
from ldm_jax.engine import step as step_lib
from ldm_jax.models import conditioners
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.models.unet import UNet
from ldm_jax.stages import api

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def player(name, **shapes):
    return api.Player(
        name, lambda key: {leaf: jax.random.normal(key, s) for leaf, s in shapes.items()}, None
    )


NET, JUDGE = player("net", w=(3, 2), b=(2,)), player("judge", v=(4,))


def begin(players, ema, seed=0):
    optimizers = {name: optim.make({"lr": 0.1, "ema": decay}, 10) for name, decay in ema.items()}
    state = step_lib.make_init(players, optimizers)(jax.random.key(seed))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=PLACE), state)
    return state, shapes


def save(folder, state, step=7):
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    checkpoints.save(step, state, {})
    checkpoints.wait()
    checkpoints.close()
    return folder


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.fixture
def source(tmp_path):
    """A run of the net alone, whose average differs from its weights."""
    state, _ = begin([NET], {"net": 0.9}, seed=1)
    state["ema"] = jax.tree.map(lambda x: x / 2, state["ema"])
    return save(tmp_path / "source", state), state


def test_a_player_may_start_from_the_average_alone(source):
    run, theirs = source
    for decay in (0.99, 0.0):  # whether or not the new run keeps an average
        ours, shapes = begin([NET], {"net": decay})
        state, origin = inherit.weights(ours, run, shapes, averaged=["net"])
        assert origin["digest"] == tree.digest({"net": theirs["ema"]["net"]})
        assert same(state["params"]["net"], theirs["ema"]["net"])
        assert state["ema"].keys() == ours["ema"].keys()
        assert all(same(own, theirs["ema"]["net"]) for own in state["ema"].values())


def test_weights_and_averages_come_along_and_the_rest_starts_anew(source):
    run, theirs = source
    ours, shapes = begin([NET, JUDGE], {"net": 0.99, "judge": 0.0})
    state, origin = inherit.weights(ours, run, shapes)
    assert same(state["params"]["net"], theirs["params"]["net"])
    assert same(state["ema"]["net"], theirs["ema"]["net"])
    assert same(state["params"]["judge"], ours["params"]["judge"])
    assert int(state["step"]) == 0
    assert origin["step"] == 7 and origin["players"] == origin["ema"] == ["net"]
    assert origin["digest"] == tree.digest({"net": theirs["params"]["net"]})
    assert json.dumps(origin)


def test_an_average_that_one_side_lacks_is_made_or_left_out(source, tmp_path):
    run, _ = source
    ours, shapes = begin([NET], {"net": 0.0})
    state, _ = inherit.weights(ours, run, shapes)
    assert state["ema"] == {}
    plain = save(tmp_path / "plain", begin([NET], {"net": 0.0}, seed=2)[0])
    ours, shapes = begin([NET], {"net": 0.9})
    state, origin = inherit.weights(ours, plain, shapes)
    assert same(state["ema"], state["params"]) and origin["ema"] == []
    assert not same(state["params"], ours["params"])
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), "a buffer under two names cannot be donated"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (player("net", w=(3, 4), b=(2,)), r"net/w has shape \(3, 2\) there and has shape \(3, 4\)"),
        (player("net", w=(3, 2)), r"net/b has shape \(2,\) there and does not exist in"),
        (player("net", w=(3, 2), b=(2,), c=(1,)), "net/c does not exist there"),
        (JUDGE, "holds weights of net, this run trains judge"),
    ],
)
def test_networks_that_differ_are_refused_by_name_and_shape(source, other, words):
    with pytest.raises(errors.UsageError, match=words):
        inherit.check(source[0], {other.name: jax.eval_shape(other.init, jax.random.key(0))})


def layer(name, inputs, **more):
    def init(key):
        kernel = jax.random.normal(key, (3, 3, inputs, 2))
        return {"conv": {"kernel": kernel}} | {
            leaf: {"w": jax.random.normal(key, shape)} for leaf, shape in more.items()
        }

    return api.Player(name, init, None)


def test_a_network_may_grow(tmp_path):
    """New inputs start at zero, new layers at random, others are left behind; averages likewise."""
    old, _ = begin([layer("net", 4, same=(2,), gone=(3,))], {"net": 0.9}, seed=1)
    old["ema"] = jax.tree.map(lambda x: x / 2, old["ema"])
    run = save(tmp_path / "small", old)
    ours, shapes = begin([layer("net", 7, same=(2,), new=(5,))], {"net": 0.99})
    state, origin = inherit.weights(ours, run, shapes, grow=True)
    for kind in ("params", "ema"):
        net, theirs = state[kind]["net"], old[kind]["net"]
        kernel = np.asarray(net["conv"]["kernel"])
        np.testing.assert_array_equal(kernel[:, :, :4], theirs["conv"]["kernel"])
        assert np.all(kernel[:, :, 4:] == 0)
        assert same(net["same"], theirs["same"])
        assert same(net["new"], ours["params"]["net"]["new"])
        assert "gone" not in net
    assert origin["grown"] == ["net/conv/kernel"]
    assert origin["fresh"] == ["net/new/w"] and origin["left"] == ["net/gone/w"]
    assert len(inherit.news(origin)) == 4 and json.dumps(origin)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.slow
def test_a_model_of_pictures_becomes_one_of_inpainting_that_draws_as_it_did(tmp_path):
    shape = dict(width=8, mult=(1, 2), blocks=1, attention=(2,), heads=2, groups=4)
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([5, 700])
    hole = {"masked_latents": 2 + x, "mask": jnp.ones((2, 16, 16, 1))}
    plain, painter = (
        Denoiser(UNet(**shape, name="unet"), conds) for conds in ((), (conditioners.Inpainting(),))
    )

    def as_player(model, fields):
        init = jax.jit(lambda key: model.initial(key, x, t, fields)["params"])
        return api.Player("net", init, None)

    def begun(model, fields, seed):
        state, _ = begin([as_player(model, fields)], {"net": 0.0}, seed)
        noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape)
        state["params"] = jax.tree.map(noise, state["params"])  # the last layer starts at zero
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=PLACE)
        return state, jax.tree.map(shape, state)

    old, _ = begun(plain, {}, 0)
    run = save(tmp_path / "plain", old)
    fresh, shapes = begun(painter, hole, 1)
    state, origin = inherit.weights(fresh, run, shapes, grow=True)
    assert origin["grown"] == ["net/unet/conv_in/kernel"] and not origin["fresh"] + origin["left"]
    drop = jnp.zeros(2, bool)
    draw = lambda model, state, fields: jax.jit(model.apply)(
        {"params": state["params"]["net"]}, x, t, fields, drop
    )
    want = draw(plain, old, {})
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(draw(painter, state, hole), want, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (layer("net", 3), r"net/conv/kernel has shape \(3, 3, 4, 2\) .* cannot be inherited"),
        (layer("net", 4, same=(3,)), "net/same/w .* cannot be inherited"),
    ],
)
def test_a_network_does_not_shrink_or_change(tmp_path, other, words):
    run = save(tmp_path / "small", begin([layer("net", 4, same=(2,))], {"net": 0.0})[0])
    shapes = {"net": jax.eval_shape(other.init, jax.random.key(0))}
    with pytest.raises(errors.UsageError, match=words):
        inherit.check(run, shapes, grow=True)
    with pytest.raises(errors.UsageError, match=r"or config.init_grow=True"):
        inherit.check(run, shapes)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="no readable checkpoint"):
        inherit.check(tmp_path, [NET])


def test_a_damaged_newest_checkpoint_is_passed_over(source):
    run, theirs = source
    other = jax.tree.map(jnp.zeros_like, theirs)
    save(run, other, step=8)
    data = next(p for p in (run / "checkpoints" / "8" / "state").rglob("d/*") if p.is_file())
    data.write_bytes(b"x" * data.stat().st_size)
    state, origin = inherit.weights(*_with_run(run))
    assert origin["step"] == 7 and same(state["params"]["net"], theirs["params"]["net"])


def _with_run(run):
    ours, shapes = begin([NET], {"net": 0.9})
    return ours, run, shapes
