"""Silent corruption: devices that should hold the same bits, and do not.

A device that computes wrongly, or a bit of its memory that flips, raises no error: its replica of a
weight drifts from the others', and gradients carry that into all of them. Replicas of a shard went
through the same arithmetic on the same gradients, so they are equal to the bit as long as nothing
broke. (Dixit et al. 2021, arXiv 2102.11245, on how often something does.)
"""

import collections

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ldm_jax.base import errors, tree
from ldm_jax.engine import hosts
from ldm_jax.engine import step as step_lib


class Replicas:
    """Compares the replicas of every leaf of a tree: `Replicas(mesh, arrays)(step, arrays)`.

    One program over all devices, made for the first arrays: a checksum of each shard where it lies
    (tree.checksum), then a gather of devices x leaves integers. Every host sees all of them and
    decides alike.
    """

    def __init__(self, mesh, arrays):
        leaves, self._mesh = _near(arrays), mesh
        specs = {name: leaf.sharding.spec for name, leaf in leaves.items()}

        def digests(leaves):
            own = jnp.stack([tree.checksum(leaf) for leaf in jax.tree.leaves(leaves)])
            return jax.lax.all_gather(own, mesh.axis_names)

        how = dict(in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False)
        program = jax.jit(jax.shard_map(digests, mesh=mesh, **how))
        self._program = hosts.compiled(program, leaves)

    def __call__(self, step: int, arrays):
        """Raises Restart where replicas differ, naming leaves, devices and hosts."""
        leaves = _near(arrays)
        digests = jax.device_get(self._program(leaves))
        names = sorted(leaves)  # as jax orders a dict
        found = {name: self._odd(leaves[name], own) for name, own in zip(names, digests.T)}
        if wrong := {name: odd for name, odd in found.items() if odd}:
            name, odd = next(iter(wrong.items()))
            others = f" (and of {len(wrong) - 1} other leaves)" if len(wrong) > 1 else ""
            raise errors.Restart(
                f"Silent corruption at step {step}: {' or '.join(odd)} holds other bits of "
                f"{name}{others} than its replicas. Starting again goes on from the newest "
                "checkpoint, whose replicas were equal; where it comes back, replace that device."
            )

    def _odd(self, leaf, values) -> list[str]:
        """The devices outside the majority of their replicas; of two that differ, both."""
        shards, parts = collections.defaultdict(list), leaf.sharding.devices_indices_map(leaf.shape)
        for device, value in zip(self._mesh.devices.flat, values.tolist()):
            shards[str(parts[device])].append((device, value))
        odd = []
        for replicas in shards.values():
            votes = collections.Counter(value for _, value in replicas).most_common()
            if len(votes) > 1:
                right = votes[0][0] if votes[0][1] > votes[1][1] else None
                odd += [device for device, value in replicas if value != right]
        return [f"device {d.id} ({d.device_kind}, host {d.process_index})" for d in odd]


def _near(arrays) -> dict:
    """{name: leaf} of the devices' own memory: what is offloaded is beyond the program's reach."""
    near = lambda leaf: leaf.sharding.memory_kind != step_lib.HOST
    return {name: leaf for name, leaf in tree.named_leaves(arrays) if near(leaf)}
