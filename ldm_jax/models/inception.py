"""The Inception network of FID: InceptionV3 as TensorFlow published it on 2015-12-05.

Szegedy et al. 2015 (arXiv 1512.00567), with what sets that graph apart from later ones: 1008
classes, average pooling that leaves the padding out, and max pooling in the last block. Layers are
named as in the PyTorch conversion of its weights, which weights/inception.py reads.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

SIDE = 299  # pixels, of the input
CLASSES = 1008


class Conv(NamedTuple):
    """Convolution, norm, relu. stride 2 goes without padding, as in the published graph."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """3x3 pooling. kind: "avg", which leaves the padding out of its mean, or "max"."""

    kind: str
    stride: int = 1
    padding: str = "SAME"


DOWN = Pool("max", 2, "VALID")


# A branch is a tuple of layers, one after the other. A tuple of branches is a layer too: each
# branch takes the same input, and their outputs are concatenated over channels.
def _chain(name, *steps, down=False):
    """A branch of convolutions NAME_1, NAME_2, ...: (width, (height, width of the kernel)) each.

    down: the last one has stride 2.
    """
    *first, last = (Conv(f"{name}_{i}", *step) for i, step in enumerate(steps, 1))
    return (*first, last._replace(stride=2, padding="VALID") if down else last)


def _fork(name, width):
    return ((Conv(f"{name}a", width, (1, 3)),), (Conv(f"{name}b", width, (3, 1)),))


def _pooled(kind, width):
    return (Pool(kind), Conv("branch_pool", width))


def _a(pool_width):
    return (
        (Conv("branch1x1", 64),),
        _chain("branch5x5", (48,), (64, (5, 5))),
        _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        _pooled("avg", pool_width),
    )


def _c(w):
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        _chain("branch7x7", (w,), (w, row), (192, column)),
        _chain("branch7x7dbl", (w,), (w, column), (w, row), (w, column), (192, row)),
        _pooled("avg", 192),
    )


def _e(pool):
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), _fork("branch3x3_2", 384)),
        (*_chain("branch3x3dbl", (448,), (384, (3, 3))), _fork("branch3x3dbl_3", 384)),
        _pooled(pool, 192),
    )


STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    DOWN,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    DOWN,
)
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
        _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3)), down=True),
        (DOWN,),
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": (
        _chain("branch3x3", (192,), (320, (3, 3)), down=True),
        _chain("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), down=True),
        (DOWN,),
    ),
    "Mixed_7b": _e("avg"),
    "Mixed_7c": _e("max"),
}


class Inception(nn.Module):
    """Pooled features and logits. x: [b, h, w, 3] in (0..255 - 128) / 128, h and w 75 or more.

    Returns [b, 2048] and [b, 1008], the logits without the last layer's bias, from which the
    Inception Score has always been computed.

    until: a name of BLOCKS, whose output [b, h', w', c] is returned in the place of both.
    """

    until: str = ""

    @nn.compact
    def __call__(self, x):
        x = functools.reduce(_apply, STEM, x)
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
            if name == self.until:
                return x
        pooled = x.mean((1, 2))
        return pooled, nn.Dense(CLASSES, use_bias=False, precision="highest", name="fc")(pooled)


class Block(nn.Module):
    """Branches of one input, concatenated over channels."""

    branches: tuple

    @nn.compact
    def __call__(self, x):
        return _apply(x, self.branches)


class ConvNorm(nn.Module):
    """Convolution, batch norm with the published statistics, relu."""

    layer: Conv

    @nn.compact
    def __call__(self, x):
        _, width, kernel, stride, padding = self.layer
        # at lower precision an accelerator loses digits of the distance
        exact = dict(use_bias=False, precision="highest", name="conv")
        x = nn.Conv(width, kernel, stride, padding, **exact)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def _apply(x, layer):
    """The output of one layer of a table, inside a module's compact method."""
    if isinstance(layer, Conv):
        return ConvNorm(layer, name=layer.name)(x)
    if isinstance(layer, Pool):
        strides = (layer.stride,) * 2
        if layer.kind == "max":
            return nn.max_pool(x, (3, 3), strides, layer.padding)
        return nn.avg_pool(x, (3, 3), strides, layer.padding, count_include_pad=False)
    outputs = [functools.reduce(_apply, branch, x) for branch in layer]
    return jnp.concatenate(outputs, axis=-1)
