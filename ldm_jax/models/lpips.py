"""LPIPS, the perceptual distance of the first stage's loss (Zhang et al. 2018).

On VGG16 as in the official losses, or on AlexNet or SqueezeNet 1.1. weights/lpips.py reads the
weights, two public files, and finds the network in them.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

# The official scaling layer, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Conv(NamedTuple):
    """A convolution and a relu, at `index` of torchvision's `features`."""

    index: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Fire(NamedTuple):
    """SqueezeNet's: 1x1 to `squeeze`, then 1x1 and 3x3 to half of `width` each; with relus."""

    index: int
    squeeze: int
    width: int


class Pool(NamedTuple):
    """Max pooling by 2. up: an incomplete last window makes a pixel too (torch's ceil_mode)."""

    window: int
    up: bool = False


TAP = "tap"  # the features so far are compared
NETWORKS = {
    "vgg": (
        *(Conv(0, 64), Conv(2, 64), TAP, Pool(2), Conv(5, 128), Conv(7, 128), TAP, Pool(2)),
        *(Conv(10, 256), Conv(12, 256), Conv(14, 256), TAP, Pool(2)),
        *(Conv(17, 512), Conv(19, 512), Conv(21, 512), TAP, Pool(2)),
        *(Conv(24, 512), Conv(26, 512), Conv(28, 512), TAP),
    ),
    "alex": (
        *(Conv(0, 64, 11, 4, 2), TAP, Pool(3), Conv(3, 192, 5, 1, 2), TAP, Pool(3)),
        *(Conv(6, 384), TAP, Conv(8, 256), TAP, Conv(10, 256), TAP),
    ),
    "squeeze": (
        *(Conv(0, 64, 3, 2, 0), TAP, Pool(3, True), Fire(3, 16, 128), Fire(4, 16, 128), TAP),
        *(Pool(3, True), Fire(6, 32, 256), Fire(7, 32, 256), TAP, Pool(3, True)),
        *(Fire(9, 48, 384), TAP, Fire(10, 48, 384), TAP, Fire(11, 64, 512), TAP),
        *(Fire(12, 64, 512), TAP),
    ),
}


class LPIPS(nn.Module):
    """Perceptual distance of two images in [-1, 1]. x, y: [b, h, w, 3] -> [b] float32.

    net: a name of NETWORKS. The official code has dropout in front of the heads, which is switched
    off wherever the distance is used; here there is none.
    """

    net: str = "vgg"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y):
        backbone = Backbone(self.net, self.dtype, name=self.net)
        distance = 0.0
        # Two passes, not one of both images: no gradient then goes through the features of data.
        for i, (a, b) in enumerate(zip(backbone(x), backbone(y), strict=True)):
            head = self.param(f"head_{i}", nn.initializers.ones, (a.shape[-1],))
            distance += jnp.mean(jnp.sum((_unit(a) - _unit(b)) ** 2 * head, axis=-1), axis=(1, 2))
        return distance


class Backbone(nn.Module):
    """[b, h, w, 3] in [-1, 1] -> the features at every TAP, [b, h_i, w_i, c_i] each."""

    net: str = "vgg"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
        features = []
        for layer in NETWORKS[self.net]:
            if layer == TAP:
                features.append(x)
            elif isinstance(layer, Pool):
                x = _pool(x, layer)
            elif isinstance(layer, Conv):
                x = self._conv(layer, f"conv_{layer.index}", x)
            else:
                name, half = f"conv_{layer.index}_", layer.width // 2
                x = self._conv(Conv(0, layer.squeeze, 1, 1, 0), name + "squeeze", x)
                wide = [(Conv(0, half, 1, 1, 0), "expand1x1"), (Conv(0, half), "expand3x3")]
                x = jnp.concatenate([self._conv(c, name + n, x) for c, n in wide], axis=-1)
        return features

    @nn.nowrap
    def _conv(self, layer, name, x):
        how = layer.width, (layer.kernel,) * 2, layer.stride, layer.padding
        return nn.relu(nn.Conv(*how, dtype=self.dtype, name=name)(x))


def network(params) -> str:
    """The name of the network whose params these are."""
    return next(name for name in NETWORKS if name in params)


def _pool(x, layer):
    padding = [(0, (side - layer.window) % 2 if layer.up else 0) for side in x.shape[1:3]]
    return nn.max_pool(x, (layer.window,) * 2, strides=(2, 2), padding=padding)


def _unit(x):
    """Unit norm over channels, float32. The inner epsilon keeps the gradient finite at zero."""
    x = x.astype(jnp.float32)
    return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20) + 1e-10)
