"""The device mesh, and how every array is sharded on it.

Models know nothing of this module, but for one kernel (nn/tpu_attention.py).

Axes: `data` (batch rows), `fsdp` (batch rows and parameter shards), `spatial` (the height of
images), `tensor` (channels of the layers that rules name). `infer` shards the whole training state
by the paths and shapes of its leaves, so optimizer moments and EMA are sharded as their parameter.

A rule is (regex, kind); the first whose regex `re.search` finds in a parameter's path applies:

    "columns"  the kernel's output axis is split over `tensor`: a device computes some channels;
    "rows"     its input axis is split: a device reads some channels, and the results are summed;
    "stored"   the output axis is split in memory only: the layer gathers the whole kernel.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldm_jax.base import errors, tree

# Neighbours along the last axes are physically closest, so the axes that communicate most are last.
AXES = ("data", "fsdp", "spatial", "tensor")
ROWS = ("data", "fsdp")
SPLIT_AXIS = {"columns": -1, "rows": -2, "stored": -1}
MIN_SHARD_SIZE = 2**14  # a parameter of fewer scalars is cheaper to replicate than to gather


def mesh_shape(devices: int, **sizes: int) -> tuple[int, ...]:
    """The sizes in the order of `AXES`; one may be -1, which is what the others leave."""
    known = [size for size in sizes.values() if size != -1]
    asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if len(sizes) - len(known) > 1 or min(known, default=1) < 1:
        raise errors.UsageError(
            f"({asked}) is no mesh: sizes are positive, and at most one is -1 (the rest)."
        )
    if sizes["spatial"] != 1 and sizes["tensor"] != 1:
        # Kernel gradients come out multiplied by a factor (jax 0.10.2, both partitioners).
        raise errors.UsageError(
            f"({asked}): spatial and tensor exclude one another, as XLA gets the "
            "gradients of such convolutions wrong; set one to 1 (fsdp goes with either)."
        )
    rest = max(1, devices // math.prod(known))
    sizes = {name: rest if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise errors.UsageError(
            f"({asked}) does not fit {devices} device(s): the product must be {devices}; "
            "data=-1 takes what the others leave."
        )
    return tuple(sizes[name] for name in AXES)


def make_mesh(
    data: int = -1, fsdp: int = 1, spatial: int = 1, tensor: int = 1, devices=None
) -> Mesh:
    """A mesh with the axes of `AXES` over `devices`; all devices of all hosts by default."""
    count = jax.device_count() if devices is None else len(devices)
    shape = mesh_shape(count, data=data, fsdp=fsdp, spatial=spatial, tensor=tensor)
    # With jax's default axis type, Explicit, models would have to spell out shardings.
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    for group in mesh.devices.reshape(-1, shape[2] * shape[3]):
        if len({device.process_index for device in group}) > 1:
            raise errors.UsageError(
                f"(spatial={shape[2]}, tensor={shape[3]}): the {len(group)} devices of these axes "
                "read the same batch rows, so one host must hold them; take less."
            )
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, shape: tuple = ()) -> NamedSharding:
    """Axis 0 is split over (data, fsdp), and the height of images [b, h, w, c] over `spatial`.

    A height that `spatial` does not divide is not split, nor is it where no shape is given.
    """
    divides = len(shape) == 4 and shape[1] % mesh.shape["spatial"] == 0
    return NamedSharding(mesh, PartitionSpec(ROWS, "spatial") if divides else PartitionSpec(ROWS))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1, key: str = "batch_size"):
    """Raises UsageError unless (data x fsdp x accumulate) divides the batch size.

    key: the name of the batch size in the message.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        micro = f" x accumulate={accumulate}" if accumulate > 1 else ""
        raise errors.UsageError(
            f"{key}={batch_size} must divide by {parts} (devices on the batch axes{micro}); "
            f"nearest: {nearest}."
        )


def infer(abstract, mesh: Mesh, rules: tuple = ()):
    """A NamedSharding for every leaf of an abstract tree.

    The axis that a rule names is split over `tensor`. The largest of the other axes that `fsdp`
    divides is split over it. Small leaves (MIN_SHARD_SIZE) are replicated.
    """

    def place(path, leaf):
        spec, _ = _tensor_spec(path, leaf.shape, mesh, rules)
        if (parts := mesh.shape["fsdp"]) > 1 and np.prod(leaf.shape) >= MIN_SHARD_SIZE:
            for axis in np.argsort(leaf.shape, kind="stable")[::-1]:
                if leaf.shape[axis] % parts == 0 and spec[axis] is None:
                    spec[axis] = "fsdp"
                    break
        return NamedSharding(mesh, _partition(spec))

    return jax.tree_util.tree_map_with_path(place, abstract)


def _tensor_spec(path, shape, mesh: Mesh, rules: tuple) -> tuple[list, str]:
    """([axis name or None, ...], the kind of the rule that applies or "")."""
    spec, parts = [None] * len(shape), mesh.shape["tensor"]
    if parts == 1 or len(shape) < 2 or np.prod(shape) < MIN_SHARD_SIZE:
        return spec, ""
    name = tree.path_name(path)
    kind = next((kind for pattern, kind in rules if re.search(pattern, name)), "")
    if not kind or shape[SPLIT_AXIS[kind]] % parts:
        return spec, ""
    spec[SPLIT_AXIS[kind]] = "tensor"
    return spec, kind


def _partition(spec: list) -> PartitionSpec:
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def abstract(shapes, sharding):
    """ShapeDtypeStructs with shardings. sharding: one for all, or a tree like `shapes`."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
    return jax.tree.map(place, shapes, sharding)


def gather(params, mesh: Mesh, rules: tuple = ()):
    """Weights gathered over `fsdp`, still split over `tensor`; to be called inside the loss.

    Without it, XLA would split the convolutions themselves along their sharded kernels. Gathering
    costs one all-gather per weight, whose transpose is the reduce-scatter of its gradient.
    """
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return params

    def whole(path, weight):
        spec, kind = _tensor_spec(path, weight.shape, mesh, rules)
        spec = [] if kind == "stored" else spec
        return jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, _partition(spec)))

    return jax.tree_util.tree_map_with_path(whole, params)


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """Host-local numpy rows -> global arrays, placed by `batch_sharding`."""
    return {
        k: jax.make_array_from_process_local_data(batch_sharding(mesh, v.shape), v)
        for k, v in batch.items()
    }


def put_replicated(values, mesh: Mesh):
    """The same host values on every device of the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), values
    )


def random_key(seed: int, mesh: Mesh):
    """jax.random.key(seed), computed on every device, as no host can write to another's devices."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def place(params, mesh: Mesh | None):
    """Weights replicated over the mesh; without a mesh, on the default device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    return jax.device_put(params, replicated(mesh))
