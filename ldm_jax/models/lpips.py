"""LPIPS, the perceptual distance of the first stage's loss (Zhang et al. 2018).

On VGG16 as in the official losses, or on AlexNet or SqueezeNet 1.1. The weights are two public
files, which tell the network themselves, and nothing here works without them: see `load`.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors, tensorfile

# The official scaling layer, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

BACKBONE_HELP = (
    "torchvision's vgg16-397923af.pth, alexnet-owt-7be5be79.pth or squeezenet1_1-b8a52dc0.pth, "
    "https://download.pytorch.org/models/"
)
HEADS_HELP = (
    "lpips/weights/v0.1/{vgg,alex,squeeze}.pth of https://github.com/richzhang/PerceptualSimilarity"
)


class Conv(NamedTuple):
    """A convolution and a relu, at `index` of torchvision's `features`."""

    index: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Fire(NamedTuple):
    """SqueezeNet's: 1x1 to `squeeze`, then 1x1 and 3x3 to half of `width` each, relu after all."""

    index: int
    squeeze: int
    width: int


class Pool(NamedTuple):
    """Max pooling by 2. up: an incomplete last window counts."""

    window: int
    up: bool = False


TAP = "tap"  # the features so far are compared


def _vgg(widths):
    layers, index = [], 0
    for i, stage in enumerate(widths):
        if i:
            layers.append(Pool(2))
            index += 1
        for width in stage:
            layers.append(Conv(index, width))
            index += 2
        layers.append(TAP)
    return tuple(layers)


NETWORKS = {
    "vgg": _vgg(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)),
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

    net: a name of NETWORKS. No dropout in front of the heads: the official code has it and means it
    to be off.
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
                x = self._conv(layer, f"conv_{layer.index}")(x)
            else:
                name, half = f"conv_{layer.index}_", layer.width // 2
                x = self._conv(Conv(0, layer.squeeze, 1, 1, 0), name + "squeeze")(x)
                wide = [(Conv(0, half, 1, 1, 0), "expand1x1"), (Conv(0, half), "expand3x3")]
                x = jnp.concatenate([self._conv(c, name + n)(x) for c, n in wide], axis=-1)
        return features

    @nn.nowrap
    def _conv(self, layer, name):
        side = (layer.kernel, layer.kernel)
        conv = nn.Conv(layer.width, side, layer.stride, layer.padding, dtype=self.dtype, name=name)
        return lambda x: nn.relu(conv(x))


def load(backbone, heads):
    """LPIPS params from the two files, each .pth, .safetensors or .npz; one file may serve as both.

    backbone: torchvision's network (`features.N.weight`) or an LPIPS state dict
    (`net.sliceS.N...`); heads: `linI.model.1.weight`. What is missing is an error: random weights
    never stand in.
    """
    convs, lins = {}, {}
    pattern = r"(?:features|net\.slice\d)\.(\d+)\.(?:(\w+)\.)?(weight|bias)$"
    for key, array in _read(backbone, BACKBONE_HELP).items():
        if match := re.search(pattern, key):
            name = f"conv_{match[1]}" + (f"_{match[2]}" if match[2] else "")
            convs[name, match[3]] = array
    for key, array in _read(heads, HEADS_HELP).items():
        if match := re.search(r"lin(\d)\.model\.1\.weight$", key):
            lins[int(match[1])] = array.reshape(-1)

    net = _network(convs)
    widths = [layer.width for layer, tap in zip(NETWORKS[net], NETWORKS[net][1:]) if tap == TAP]
    params = {net: {}}
    for name, shape in _shapes(net).items():
        kernel, bias = (_need(convs, (name, leaf), net, backbone) for leaf in ("weight", "bias"))
        if kernel.shape != shape:
            raise errors.UsageError(
                f"LPIPS weights {backbone}: {name} is {kernel.shape}, in {net} it is {shape}."
            )
        params[net][name] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    for i, width in enumerate(widths):
        params[f"head_{i}"] = head = _need(lins, i, net, heads)
        if head.size != width:
            raise errors.UsageError(
                f"LPIPS weights {heads}: head {i} has {head.size} channels, in {net} {width}."
            )
    return params


def network(params) -> str:
    """The name of the network whose params these are."""
    return next(name for name in NETWORKS if name in params)


def _network(convs):
    """Which network a state dict is of: they differ in the index of their second convolution."""
    if ("conv_3_squeeze", "weight") in convs:
        return "squeeze"
    return "alex" if ("conv_3", "weight") in convs else "vgg"


def _shapes(net) -> dict:
    """{name of a convolution: its torch shape}."""
    shapes, c = {}, 3
    for layer in NETWORKS[net]:
        if isinstance(layer, Conv):
            shapes[f"conv_{layer.index}"] = (layer.width, c, layer.kernel, layer.kernel)
        elif isinstance(layer, Fire):
            name, s, half = f"conv_{layer.index}_", layer.squeeze, layer.width // 2
            shapes[name + "squeeze"] = (s, c, 1, 1)
            shapes[name + "expand1x1"] = (half, s, 1, 1)
            shapes[name + "expand3x3"] = (half, s, 3, 3)
        c = getattr(layer, "width", c)
    return shapes


def _pool(x, layer):
    rest = [(size - layer.window) % 2 if layer.up else 0 for size in x.shape[1:3]]
    padding = [(0, extra) for extra in rest]
    return nn.max_pool(x, (layer.window,) * 2, strides=(2, 2), padding=padding)


def _unit(x):
    """Unit norm over channels, float32. The inner epsilon keeps the gradient finite at zero."""
    x = x.astype(jnp.float32)
    return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20) + 1e-10)


def _need(weights, key, net, path):
    if key not in weights:
        raise errors.UsageError(f"LPIPS weights {path} lack {key}, which {net} has.")
    return np.asarray(weights[key], np.float32)


def _read(path, origin):
    try:
        return tensorfile.read(path)
    except errors.UsageError as e:
        raise errors.UsageError(f"LPIPS weights: {e} Get {origin}.") from e
