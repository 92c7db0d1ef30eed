import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ldm_jax.base import shard, tree


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "int8"])
def test_every_single_bit_flip_changes_the_checksum(dtype):
    values = np.asarray(jnp.linspace(-3, 100, 7).astype(dtype))
    sound = tree.checksums({"x": jnp.asarray(values)})["x"]
    for bit in range(8 * values.nbytes):
        raw = bytearray(values.tobytes())
        raw[bit // 8] ^= 1 << (bit % 8)
        flipped = np.frombuffer(bytes(raw), values.dtype)
        assert tree.checksums({"x": jnp.asarray(flipped)})["x"] != sound, f"bit {bit}"


def test_bools_zeros_and_swaps_are_seen():
    checksum = lambda x: tree.checksums([jnp.asarray(x)])["0"]
    assert checksum([True, False, True]) != checksum([True, True, True])
    assert checksum([0.0]) != checksum([-0.0]), "bits count, not values"
    assert checksum([1.0, 2.0]) != checksum([2.0, 1.0])
    assert checksum(np.float32(np.nan)) == checksum(np.float32(np.nan))


@pytest.mark.parametrize("spec", [("data", None), (None, "fsdp"), (("data", "fsdp"), None)])
def test_checksums_do_not_depend_on_the_sharding(spec):
    x = jax.random.normal(jax.random.key(0), (8, 12))
    mesh = shard.make_mesh(data=2, fsdp=4)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert tree.checksums({"x": spread}) == tree.checksums({"x": x})


def test_digest_sees_names_shapes_and_dtypes():
    x = jnp.zeros((2, 3))
    trees = [{"a": x}, {"b": x}, {"a": x.T}, {"a": x.astype(jnp.int32)}, {"a": x.at[0, 0].set(1)}]
    assert len({tree.digest(t) for t in trees}) == len(trees)
    assert tree.digest({"a": x}) == tree.digest({"a": jnp.zeros((2, 3))})


def test_paths_and_counts():
    values = {"b": [jnp.full((2, 2), 3.0)], "a": {"c": jnp.full((4,), 4.0, jnp.bfloat16)}}
    assert [name for name, _ in tree.named_leaves(values)] == ["a/c", "b/0"]
    assert tree.count(values) == 8 == tree.count(jax.eval_shape(lambda: values))
