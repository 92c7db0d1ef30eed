"""The devices of a config as a mesh, once it is known that all of it can be laid over them."""

import jax

from ldm_jax.base import errors, shard
from ldm_jax.engine import step
from ldm_jax.runs import kinds
from ldm_jax.runs.check import divides


def make_mesh(config, devices=None) -> jax.sharding.Mesh:
    """The mesh of a config, and all that must divide by its axes.

    devices: in the place of those that are there.

    Raises:
      UsageError: a batch, an image or a network that does not divide, or a kernel that cannot.
    """
    kind = kinds.of(config)
    with errors.of("config.mesh"):
        mesh = shard.make_mesh(**config.mesh, devices=devices)
    shard.check_batch(config.batch_size, mesh, config.accumulate, "config.batch_size")
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    if (parts := mesh.shape["spatial"]) > 1:
        lowest, _ = kind.divisor(config)
        what = f"config.mesh.spatial={parts} times {lowest}, so that devices share every level"
        divides(config.data.size, parts * lowest, what)
    if mesh.shape["tensor"] > 1:
        own = kind.shapes(config)[kind.player]
        rules = kind.stage(config, kind.frozen_shapes(config)).rules
        placed = jax.tree.leaves(shard.infer(own, mesh, rules))
        if not any("tensor" in where.spec for where in placed):
            raise errors.UsageError(
                f"config.mesh.tensor={mesh.shape['tensor']} has nothing to split: no layer of at "
                f"least {shard.MIN_SHARD_SIZE} weights has so many even parts; set it to 1."
            )
    if mesh.size > 1 and config.model.get("norm_kernel", "xla") != "xla":
        raise errors.UsageError(
            f"config.model.norm_kernel={config.model.norm_kernel} with {mesh.size} devices: XLA "
            "would gather every batch on all of them; use xla, or one device."
        )
    with errors.of("config.offload"):
        step.check_offload(config.offload, mesh)
    return mesh
