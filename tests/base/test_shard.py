import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ldm_jax.base import errors, shard


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 1), (2, 4, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((2, 4, 1), (2, 4, 1)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_minus_one_takes_the_rest(asked, got):
    assert shard.mesh_shape(8, *asked) == got


@pytest.mark.parametrize("asked", [(-1, -1, 1), (3, 1, 1), (0, 1, 1), (-2, 1, 1), (3, -1, 1)])
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(asked):
    with pytest.raises(errors.UsageError, match=r"config\.mesh") as caught:
        shard.mesh_shape(8, *asked)
    assert "\n" not in str(caught.value)


def test_a_mesh_has_auto_axes_and_may_take_some_of_the_devices():
    mesh = shard.make_mesh(data=2, fsdp=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert shard.make_mesh(devices=jax.devices()[:1]).size == 1


def spec(shape, *, fsdp=4, rules=()):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    mesh = shard.make_mesh(data=-1, fsdp=fsdp)
    return shard.infer({"player": {"kernel": leaf}}, mesh, rules)["player"]["kernel"].spec


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((3, 3, 64, 128), (None, None, None, "fsdp")),
        ((3, 3, 128, 64), (None, None, "fsdp", None)),
        ((4, 4, 128, 130), (None, None, "fsdp", None)),  # 130 does not divide by 4
        ((129, 131), ()),  # nothing divides
        ((8, 8), ()),  # too small to be worth a gather
        ((), ()),
    ],
)
def test_infer_takes_the_largest_axis_that_divides(shape, wanted):
    assert spec(shape) == PartitionSpec(*wanted)


def test_without_fsdp_everything_is_replicated():
    assert spec((1024, 1024), fsdp=1) == PartitionSpec()


def test_the_first_rule_that_matches_wins():
    rules = ((r"nothing", PartitionSpec("data")), (r"kernel$", PartitionSpec(None, "tensor")))
    assert spec((1024, 1024), rules=rules) == PartitionSpec(None, "tensor")


def test_optimizer_moments_follow_their_parameter():
    leaf = jax.ShapeDtypeStruct((256, 512), np.float32)
    state = {"params": {"w": leaf}, "opt": ({"mu": {"w": leaf}}, leaf), "ema": {"w": leaf}}
    specs = {s.spec for s in jax.tree.leaves(shard.infer(state, shard.make_mesh(2, 4)))}
    assert specs == {PartitionSpec(None, "fsdp")}


def test_check_batch_names_the_nearest_size_that_works():
    mesh = shard.make_mesh(data=2, fsdp=4)
    shard.check_batch(16, mesh, accumulate=2)
    with pytest.raises(errors.UsageError, match=r"batch_size=20 must divide by 16.*nearest: 16"):
        shard.check_batch(20, mesh, accumulate=2)
    with pytest.raises(errors.UsageError, match="nearest: 8"):
        shard.check_batch(1, mesh)


def test_put_batch_spreads_the_rows_and_keeps_the_values():
    mesh = shard.make_mesh(data=2, fsdp=4)
    rows = np.arange(48, dtype=np.float32).reshape(16, 3)
    x = shard.put_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(x, rows)
    assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
    y = shard.put_replicated({"y": np.float32(3)}, mesh)["y"]
    assert y.sharding.is_fully_replicated and float(y) == 3
