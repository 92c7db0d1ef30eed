"""Bits that really flip in the memory of one device."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollback import Rows, train

from ldm_jax.base import errors, shard
from ldm_jax.engine import loop, replicas


def flip(array, device: int, byte: int = 0, bit: int = 0):
    """In place, behind JAX's back, as hardware does it."""
    part = next(s.data for s in array.addressable_shards if s.device.id == device)
    address = part.block_until_ready().unsafe_buffer_pointer() + byte
    ctypes.c_ubyte.from_address(address).value ^= 1 << bit


@pytest.fixture
def mesh():
    return shard.make_mesh(data=4, fsdp=2)


@pytest.fixture
def arrays(mesh, monkeypatch):
    monkeypatch.setattr(shard, "MIN_SHARD_SIZE", 8)
    tree = {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.ones(3, jnp.bfloat16), "n": jnp.int32(7)}
    return jax.device_put(tree, shard.infer(jax.eval_shape(lambda: tree), mesh))


def test_replicas_that_are_equal_pass(mesh, arrays):
    assert not arrays["w"].sharding.is_fully_replicated
    replicas.Replicas(mesh, arrays)(1, arrays)


@pytest.mark.parametrize(("name", "byte", "bit"), [("w", 0, 0), ("w", 127, 7), ("b", 3, 4)])
@pytest.mark.parametrize("device", [0, 5])
def test_one_bit_names_leaf_and_device(mesh, arrays, name, byte, bit, device):
    compare = replicas.Replicas(mesh, arrays)
    compare(1, arrays)
    flip(arrays[name], device, byte, bit)
    with pytest.raises(
        errors.Restart, match=rf"at step 2: device {device} .*host 0.* bits of {name} "
    ):
        compare(2, arrays)


def test_of_two_replicas_that_differ_either_may_be_wrong():
    mesh = shard.make_mesh(devices=jax.devices()[:2])
    parts = [jax.device_put(np.float32(x), device) for x, device in zip((1, 2), jax.devices())]
    differing = jax.make_array_from_single_device_arrays((), shard.replicated(mesh), parts)
    with pytest.raises(errors.Restart, match=r"device 0 .* or device 1 .* bits of w "):
        replicas.Replicas(mesh, {"w": differing})(1, {"w": differing})


def test_shards_of_one_device_each_have_nothing_to_differ_from(monkeypatch):
    monkeypatch.setattr(shard, "MIN_SHARD_SIZE", 8)
    mesh = shard.make_mesh(data=1, fsdp=8)
    tree = {"w": jnp.arange(64.0)}
    arrays = jax.device_put(tree, shard.infer(jax.eval_shape(lambda: tree), mesh))
    flip(arrays["w"], 3)
    replicas.Replicas(mesh, arrays)(1, arrays)


@pytest.mark.parametrize(("every", "byte", "bit"), [(7, 1, 0), (1000, 3, 6)])
def test_a_run_leaves_before_it_saves_what_is_corrupt(every, byte, bit, tmp_path):
    """Or goes back: the second flip makes a NaN, which is not to be taken for one of the data."""

    class Strike(loop.Evaluator):
        def __call__(self, step, params, frozen):
            if step == 24:
                flip(params["line"]["w"], device=6, byte=byte, bit=bit)
            return {}

    how = {"mesh": shard.make_mesh(), "check_replicas": every, "evaluators": (Strike(),)}
    steps = {"log": 4, "eval": 12, "checkpoint": 10, "total": 30}
    with pytest.raises(errors.Restart, match=r"at step 28: device 6 .* bits of params/line/w"):
        train(tmp_path / "run", Rows({}), steps=steps, **how)
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(saved) == ["10", "20"]
