import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ldm_jax.base import errors, shard


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (dict(data=-1), (8, 1, 1, 1)),
        (dict(data=2, fsdp=-1), (2, 4, 1, 1)),
        (dict(data=2, fsdp=2, tensor=-1), (2, 2, 1, 2)),
        (dict(data=1, fsdp=2, spatial=-1), (1, 2, 4, 1)),
        (dict(data=8, fsdp=-1), (8, 1, 1, 1)),
    ],
)
def test_minus_one_takes_the_rest(asked, got):
    assert shard.mesh_shape(8, **dict.fromkeys(shard.AXES, 1) | asked) == got


@pytest.mark.parametrize(
    "asked",
    [
        dict(data=-1, fsdp=-1),
        dict(data=3),
        dict(data=0),
        dict(data=-2),
        dict(data=3, fsdp=-1),
        dict(data=-1, tensor=16),
        dict(data=-1, spatial=3),
        dict(data=2, spatial=2, tensor=2),  # XLA computes these wrong
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(asked):
    with pytest.raises(errors.UsageError, match=r"^\(data=") as caught:
        shard.mesh_shape(8, **dict.fromkeys(shard.AXES, 1) | asked)
    assert "\n" not in str(caught.value)


def test_a_mesh_has_auto_axes_and_may_take_some_of_the_devices():
    mesh = shard.make_mesh(data=2, fsdp=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "spatial": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert shard.make_mesh(devices=jax.devices()[:1]).size == 1


def spec(shape, *, fsdp=4, tensor=1, rules=()):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    mesh = shard.make_mesh(data=-1, fsdp=fsdp, tensor=tensor)
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


@pytest.mark.parametrize(
    ("kind", "shape", "wanted"),
    [
        ("columns", (3, 3, 64, 128), (None, None, "fsdp", "tensor")),
        ("stored", (128, 384), ("fsdp", "tensor")),
        ("rows", (128, 256), ("tensor", "fsdp")),
        ("columns", (128, 257), ("fsdp", None)),  # 257 does not divide by 2
        ("columns", (128,), ()),  # a bias is whole
    ],
)
def test_a_rule_names_the_axis_of_tensor_and_fsdp_takes_another(kind, shape, wanted):
    rules = ((r"nothing", "rows"), (r"kernel$", kind), (r"kernel", "rows"))
    assert spec(shape, tensor=2, rules=rules) == PartitionSpec(*wanted)


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
    mesh = shard.make_mesh(data=2, spatial=4)
    for shape, shard_shape in (((4, 8, 6, 3), (2, 2, 6, 3)), ((4, 6, 6, 3), (2, 6, 6, 3))):
        z = shard.put_batch({"z": np.ones(shape)}, mesh)["z"]
        assert {s.data.shape for s in z.addressable_shards} == {shard_shape}
    y = shard.put_replicated({"y": np.float32(3)}, mesh)["y"]
    assert y.sharding.is_fully_replicated and float(y) == 3
