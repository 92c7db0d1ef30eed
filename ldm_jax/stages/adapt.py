"""Adapters: few weights that are learnt beside those of a trained network, which stay as they are.

A stage is adapted whole: its player owns the adapter alone, and its losses, evaluation and pictures
see the network's weights with the adapter in them. So modules do not know what of them is learnt,
and a network with low-rank updates in it costs what it costs without.

`frozen` holds "base", the network's parameters, beside what the stage itself says.
"""

import dataclasses
import math
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from ldm_jax.base import errors, registry, tree
from ldm_jax.models import backbones
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
    keep: the part of a mix that stays as the base draws it, see stages/kept.py; "" keeps none.
    keep_weight: how many times a row counts that is kept so.
    """

    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = ("attn",)
    keep: str = ""
    keep_weight: float = 3.0

    adds: ClassVar[tuple] = ()  # names of conditioners that it may have beside its base's

    def check(self, shapes, base):
        """Raises UsageError where nothing is learnt. shapes: of the network; base: of its base."""
        self.kernels(shapes)

    def learning(self, player: api.Player, base) -> api.Player:
        """`player`, whose network has the parameters `base`, with the adapter's in their place."""
        return dataclasses.replace(player, init=lambda key: self.init(key, base))

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


@ADAPTERS.register("control")
@dataclasses.dataclass(frozen=True)
class Control:
    """The parts that a network has beside its base's: a ControlNet, and the network of its hint.

    Zhang et al. 2023, arXiv 2302.05543. The copy of the backbone's encoder starts as the base's;
    what its outputs pass through starts at zero.
    """

    adds: ClassVar[tuple] = ("control",)

    def check(self, shapes, base):
        """Raises UsageError where nothing is learnt. shapes: of the network; base: of its base."""
        if not self._origins(shapes, base):
            raise errors.UsageError(
                "name=control learns nothing: config.conditioners has no conditioner named control "
                "that its base lacks; start from configs/control.py:RUN."
            )

    def learning(self, player: api.Player, base) -> api.Player:
        """`player`, whose network has the parameters `base` and others, with the others alone."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        origins = self._origins(jax.eval_shape(player.init, key), base)
        known = traverse_util.flatten_dict(base)

        def init(key, begun=None):
            fresh = traverse_util.flatten_dict(player.init(key))
            own = {path: fresh[path] for path in origins} | (begun or {})
            return traverse_util.unflatten_dict(own)

        begun = {path: origin for path, origin in origins.items() if origin}
        copies = lambda: {path: known[origin] for path, origin in begun.items()}
        return dataclasses.replace(player, init=init, measure=copies)

    def merged(self, params, own, weight: float = 1.0):
        """The network's parameters, those of its base beside the adapter's `own`."""
        flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(own)
        return traverse_util.unflatten_dict(flat)

    def _origins(self, shapes, base) -> dict:
        """{path of a parameter that the base lacks: the base's that it is a copy of, or None}."""
        known = traverse_util.flatten_dict(base)
        own = [path for path in traverse_util.flatten_dict(shapes) if path not in known]
        origin = lambda path: tuple(part for part in path if part != backbones.CONTROL)
        return {path: origin(path) if origin(path) in known else None for path in own}


def adapted(stage: api.Stage, adapter, name: str) -> api.Stage:
    """The stage in which the player `name` learns an adapter.

    stage.frozen[BASE]: the parameters that are adapted, or their shapes.
    """

    def seeing(function):  # of a stage or a player, whose first arguments are params and frozen
        return lambda params, frozen, *rest: function(
            whole(adapter, name, params, frozen), frozen, *rest
        )

    def player(one):
        one = dataclasses.replace(one, loss=seeing(one.loss))
        return adapter.learning(one, stage.frozen[BASE]) if one.name == name else one

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
