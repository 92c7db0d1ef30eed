"""MobileNetV2 1.0 as a fixed feature extractor (Sandler et al. 2018, arXiv 1801.04381, table 2).

A pure function of a tuple of convolutions, which contain their batch norms: nothing here is trained
or initialised, weights/mobilenet.py reads them.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

# (expansion, stride of the first block, blocks): the widths are those of the weights.
_GROUPS = ((1, 1, 1), (6, 2, 2), (6, 2, 3), (6, 2, 4), (6, 1, 3), (6, 2, 3), (6, 1, 1))
CONVS = 52

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def features(params, images):
    """Globally pooled last activations, [b, 1280] float32. images: [b, h, w, 3] in [-1, 1]."""
    x = ((images.astype(jnp.float32) + 1.0) / 2.0 - _MEAN) / _STD
    convs = iter(params)
    x = _relu6(_conv(next(convs), x, stride=2))
    for expansion, stride, blocks in _GROUPS:
        for i in range(blocks):
            x = _inverted_residual(convs, x, expansion, stride if i == 0 else 1)
    return _relu6(_conv(next(convs), x)).mean((1, 2))


def _inverted_residual(convs, x, expansion, stride):
    """Widen, filter each channel, narrow linearly; with a skip where the shape allows one."""
    h = x if expansion == 1 else _relu6(_conv(next(convs), x))
    h = _relu6(_depthwise(next(convs), h, stride))
    h = _conv(next(convs), h)
    return x + h if h.shape == x.shape else h


def _conv(conv, x, stride=1):
    pad = conv["kernel"].shape[0] // 2  # on both sides, where SAME would shift an even input
    how = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")
    strides, padding = (stride, stride), [(pad, pad)] * 2
    y = jax.lax.conv_general_dilated(x, conv["kernel"], strides, padding, **how)
    return y + conv["bias"]


def _depthwise(conv, x, stride):
    """Nine shifted products: XLA's grouped convolution is many times slower on a CPU."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = lambda i, j: x[:, i : i + height : stride, j : j + width : stride]
    shifts = itertools.product(range(3), range(3))
    return sum(shifted(*at) * conv["kernel"][*at, 0] for at in shifts) + conv["bias"]


def _relu6(x):
    return jnp.clip(x, 0.0, 6.0)
