"""Nested dicts of arrays: paths, sizes, digests."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

# The name of a module that scans over layers: each leaf below has a first axis of layers.
STACK = "layers"


def path_name(path) -> str:
    """A jax key path as one readable string: `opt/denoiser/0/mu/unet/conv_in/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rank(path, leaf) -> int:
    """Number of axes of the leaf at a jax key path, of one layer if it is of a stack of layers."""
    return leaf.ndim - (STACK in path_name(path).split("/"))


def named_leaves(tree) -> list[tuple[str, jax.Array]]:
    """`[(path, leaf), ...]` in the tree's own order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def shapes(tree) -> dict[str, tuple]:
    """`{path: shape}` of every leaf."""
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree)}


def count(tree) -> int:
    """Number of scalars in `tree` (works on abstract trees)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree) -> int:
    """Bytes of all leaves of `tree`, wherever they live (works on abstract trees)."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@jax.jit
def checksum(x):
    """uint32: position-weighted sum of the bits of x modulo 2^32.

    Integer arithmetic is exact and its order does not matter, so the value is the same on every
    topology and sharding; the odd weights make every single-bit flip change it.
    """
    x = jax.device_put(x, jax.memory.Space.Device)  # moments may lie in the host's memory
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


def checksums(tree) -> dict[str, int]:
    """`{path: checksum}` of every leaf; independent of how the leaves are sharded."""
    # One program at a time: with many in flight, hosts that share leaves can deadlock (seen on CPUs
    # over gloo).
    return {name: int(checksum(leaf)) for name, leaf in named_leaves(tree)}


def digest(tree) -> str:
    """A short name for the values of `tree`: 16 hex digits over paths, shapes, dtypes and bits."""
    sums = checksums(tree)
    lines = [f"{name} {leaf.shape} {leaf.dtype} {sums[name]}" for name, leaf in named_leaves(tree)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def size(count: float) -> str:
    """A number of bytes as text: "1.25 GiB", "3.5 MiB"."""
    gib = count / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{count / 2**20:.3g} MiB"
