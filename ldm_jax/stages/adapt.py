"""Adapters: few weights that are learnt beside those of a trained network, which stay as they are.

A stage is adapted whole: its player owns the adapter alone, and its losses, evaluation and pictures
see the network's weights with the adapter in them. So modules know nothing of it, and a merged
network costs what the network costs.

`frozen` holds "base", the network's parameters, beside what the stage itself says.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from ldm_jax.base import errors, registry, tree
from ldm_jax.stages import api

BASE = "base"  # key of the network's parameters among the frozen ones
ADAPTERS = registry.Registry("adapter")
A, B = "lora_a", "lora_b"


@ADAPTERS.register("lora")
@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank updates of kernels (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank A B.

    A kernel [..., in, out] has lora_a [..., in, rank] and lora_b [rank, out]: that of a convolution
    a convolution to `rank` channels and a map from there. In a stack of layers each has both.

    rank: of every update. alpha: 0 is the rank, a factor of 1. targets: regexes, each found in the
      path of some kernel ("unet/down_0_attn_0/block_0/self_attn/q/kernel").
    """

    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = ("attn",)

    @property
    def factor(self) -> float:
        return (self.alpha or self.rank) / self.rank

    def kernels(self, shapes) -> dict:
        """{path as a tuple: leaf} of the kernels that are adapted. shapes: of the network.

        Raises:
          UsageError: a target that is no regex, or in no kernel's path.
        """
        flat = traverse_util.flatten_dict(shapes)
        known = {"/".join(path): path for path in flat if path[-1] == "kernel"}
        found = {}
        for target in self.targets:
            try:
                hits = [name for name in known if re.search(target, name)]
            except re.error as e:
                raise errors.UsageError(f"targets={target!r} is no regex ({e}).") from None
            if not hits:
                near = errors.closest(target, known) or next(iter(known), "nothing")
                raise errors.UsageError(
                    f"targets={target!r} is in the path of no kernel of this network; the nearest "
                    f"is {near} (parameters.txt of the base lists all)."
                )
            found |= {known[name]: flat[known[name]] for name in hits}
        if not found:
            raise errors.UsageError("targets=() adapts nothing: give a regex, such as 'attn'.")
        return {path: found[path] for path in sorted(found)}

    def init(self, key, shapes):
        """A uniform within 1 / sqrt(inputs) of a neuron, as PEFT has it, and B of zeros.

        So the network at first does what it did. shapes: of its parameters.
        """
        flat = {}
        for i, (path, kernel) in enumerate(self.kernels(shapes).items()):
            stack, inputs, out = _parts(path, kernel.shape)
            bound = 1 / math.sqrt(math.prod(inputs))
            own, shape = jax.random.fold_in(key, i), (*stack, *inputs, self.rank)
            flat[*path, A] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
            flat[*path, B] = jnp.zeros((*stack, self.rank, out))
        return traverse_util.unflatten_dict(flat)

    def updates(self, own) -> dict:
        """{path of a kernel: (A, B)} with the factor in B: W + A B is what is drawn with."""
        flat = traverse_util.flatten_dict(own)
        paths = [path[:-1] for path in flat if path[-1] == A]
        return {"/".join(p): (flat[*p, A], self.factor * flat[*p, B]) for p in paths}

    def of_updates(self, updates: dict):
        """Undoes `updates`."""
        flat = {}
        for path, (a, b) in updates.items():
            flat |= {(*path.split("/"), A): a, (*path.split("/"), B): b / self.factor}
        return traverse_util.unflatten_dict(flat)

    def merged(self, params, own, weight: float = 1.0):
        """The network's parameters with the adapter `own` in them, so many times; -1 undoes 1."""
        flat, update = traverse_util.flatten_dict(params), traverse_util.flatten_dict(own)
        for *path, name in update:
            if name == A:
                product = jnp.matmul(update[*path, A], update[*path, B], precision="highest")
                flat[tuple(path)] += weight * self.factor * product
        return traverse_util.unflatten_dict(flat)


def adapted(stage: api.Stage, adapter, name: str, shapes) -> api.Stage:
    """The stage in which the player `name` learns an adapter. shapes: of that player's own params.

    stage.frozen[BASE]: the parameters that are adapted.
    """

    def seeing(function):  # of a stage or a player, whose first arguments are params and frozen
        return lambda params, frozen, *rest: function(
            whole(adapter, name, params, frozen), frozen, *rest
        )

    def player(one):
        one = dataclasses.replace(one, loss=seeing(one.loss))
        own = lambda key: adapter.init(key, shapes)
        return dataclasses.replace(one, init=own) if one.name == name else one

    return dataclasses.replace(
        stage,
        players=tuple(map(player, stage.players)),
        evaluate=seeing(stage.evaluate),
        draw=seeing(stage.draw),
    )


def whole(adapter, name: str, params, frozen) -> dict:
    """{player: tree} in which the player `name` has its network's parameters, the adapter in them.

    params: in which it has the adapter's alone.
    """
    return params | {name: adapter.merged(frozen[BASE], params[name])}


def _parts(path, shape) -> tuple[tuple, tuple, int]:
    """(layers of a stack, inputs of a neuron, outputs) of a kernel of this shape."""
    stacked = tree.STACK in path
    return shape[:stacked], shape[stacked:-1], shape[-1]
