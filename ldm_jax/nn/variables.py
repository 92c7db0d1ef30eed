"""The first variables of a network."""

import functools

import jax
from flax import linen as nn


@functools.partial(jax.jit, static_argnums=0)
def initial(network: nn.Module, key, *example) -> dict:
    """`network.init(key, *example)`, traced once in a process.

    A command asks for the shapes of the same variables at several places before it makes them, and
    to trace a large network takes seconds.
    """
    return network.init(key, *example)
