"""The device mesh, and where every array lives on it. Models know nothing of this module.

Axes: `data` (batch rows), `fsdp` (batch rows and parameter shards), `tensor` (reserved for the
widest layers). Parameters follow rules on their path, then the largest axis that divides; the rules
run on the whole state, so optimizer moments and EMA follow their parameter.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldm_jax.base import errors, tree

AXES = ("data", "fsdp", "tensor")
MIN_SHARD_SIZE = 2**14  # below this many scalars a parameter is cheaper replicated than gathered


def mesh_shape(devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """Resolves at most one -1 ("the rest") so that the product is `devices`."""
    sizes = [data, fsdp, tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or min(known, *(s for s in sizes if s != -1), 1) < 1:
        raise errors.UsageError(
            f"config.mesh={tuple(sizes)}: sizes are positive, and at most one is -1 (the rest)."
        )
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if int(np.prod(sizes)) != devices:
        raise errors.UsageError(
            f"config.mesh (data={data}, fsdp={fsdp}, tensor={tensor}) does not fit {devices} "
            f"device(s): the product must be {devices}; try --config.mesh.data=-1."
        )
    return tuple(sizes)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh with the axes of `AXES` over `devices`; all devices of all hosts by default."""
    shape = mesh_shape(jax.device_count() if devices is None else len(devices), data, fsdp, tensor)
    # jax's default axis type is Explicit now, which wants sharding words inside the models.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over (data, fsdp); the other axes whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1, key: str = "config.batch_size"):
    """A batch must split into `accumulate` parts that the batch axes of the mesh divide.

    key: what the user calls the batch size.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        micro = f" x config.accumulate={accumulate}" if accumulate > 1 else ""
        raise errors.UsageError(
            f"{key}={batch_size} must divide by {parts} (devices on the batch axes{micro}); "
            f"nearest: {nearest}."
        )


def infer(abstract, mesh: Mesh, rules: tuple = ()):
    """A NamedSharding for every leaf of an abstract tree.

    rules: ((regex, PartitionSpec), ...) tried in order on the leaf's path with `re.search`; a leaf
    that none matches goes over `fsdp` along its largest divisible axis, or is replicated.
    """

    def place(path, leaf):
        name = tree.path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _largest_axis(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, abstract)


def _largest_axis(shape, parts: int) -> PartitionSpec:
    if parts > 1 and np.prod(shape) >= MIN_SHARD_SIZE:
        for axis in np.argsort(shape, kind="stable")[::-1]:
            if shape[axis] % parts == 0:
                spec = [None] * len(shape)
                spec[axis] = "fsdp"
                return PartitionSpec(*spec)
    return PartitionSpec()


def abstract(shapes, sharding):
    """Shapes that say where they live. sharding: one, or a tree of them like `shapes`."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
    return jax.tree.map(place, shapes, sharding)


def gather(params, mesh: Mesh):
    """Whole copies of sharded weights, to be called inside the loss.

    Merely sharding convolution kernels makes XLA split the convolutions themselves; asking for the
    whole weight turns that into one all-gather per weight, whose transpose is the reduce-scatter.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    whole = replicated(mesh)
    return jax.tree.map(lambda w: jax.lax.with_sharding_constraint(w, whole), params)


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """Host-local numpy rows -> global arrays, rows over (data, fsdp)."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_replicated(values, mesh: Mesh):
    """The same host values on every device of the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), values
    )


def random_key(seed: int, mesh: Mesh):
    """jax.random.key(seed), made on every device: no host can put it on another's."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()
