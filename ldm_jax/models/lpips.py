"""LPIPS, the perceptual distance of the first stage's loss (Zhang et al. 2018), on VGG16.

The weights are two public files, and nothing here works without them: see `load`.
"""

import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors

# VGG16: the channels of the convolutions of each of its five stages.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The official scaling layer, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

BACKBONE_HELP = "torchvision's vgg16-397923af.pth, https://download.pytorch.org/models/"
HEADS_HELP = "lpips/weights/v0.1/vgg.pth of https://github.com/richzhang/PerceptualSimilarity"


class LPIPS(nn.Module):
    """Perceptual distance of two images in [-1, 1]. x, y: [b, h, w, 3] -> [b] float32.

    No dropout in front of the heads: the official code has it and means it to be off.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y):
        backbone = VGG16(self.dtype, name="vgg")
        distance = 0.0
        # Two passes, not one of both images: no gradient then goes through the features of data.
        for i, (a, b) in enumerate(zip(backbone(x), backbone(y), strict=True)):
            head = self.param(f"head_{i}", nn.initializers.ones, (a.shape[-1],))
            distance += jnp.mean(jnp.sum((_unit(a) - _unit(b)) ** 2 * head, axis=-1), axis=(1, 2))
        return distance


class VGG16(nn.Module):
    """Features after relu1_2, 2_2, 3_3, 4_3, 5_3. [b, h, w, 3] -> [b, h/2**i, w/2**i, c_i] each."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
        features = []
        for i, widths in enumerate(STAGES):
            if i:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for j, width in enumerate(widths):
                conv = nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{i}_{j}")
                x = nn.relu(conv(x))
            features.append(x)
        return features


def load(backbone, heads):
    """LPIPS params from the two files, each .pth, .safetensors or .npz; one file may serve as both.

    backbone: torchvision's VGG16 (`features.N.weight`) or an LPIPS state dict (`net.sliceS.N...`);
    heads: `linI.model.1.weight`. What is missing is an error: random weights never stand in.
    """
    convs, lins = {}, {}
    for key, array in _read(backbone, BACKBONE_HELP).items():
        if match := re.search(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)$", key):
            convs[int(match[1]), match[2]] = array
    for key, array in _read(heads, HEADS_HELP).items():
        if match := re.search(r"lin(\d)\.model\.1\.weight$", key):
            lins[int(match[1])] = array.reshape(-1)

    params = {"vgg": {}}
    index = 0  # in torchvision's list of layers: conv and relu take two places, a pool one
    for i, widths in enumerate(STAGES):
        for j, width in enumerate(widths):
            kernel, bias = (_need(convs, (index, leaf), backbone) for leaf in ("weight", "bias"))
            _fits(kernel.shape[0], width, f"convolution {index}", backbone)
            params["vgg"][f"conv_{i}_{j}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            index += 2
        index += 1
        params[f"head_{i}"] = _need(lins, i, heads)
        _fits(params[f"head_{i}"].size, widths[-1], f"head {i}", heads)
    return params


def _unit(x):
    """Unit norm over channels, float32. The inner epsilon keeps the gradient finite at zero."""
    x = x.astype(jnp.float32)
    return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20) + 1e-10)


def _need(weights, key, path):
    if key not in weights:
        raise errors.UsageError(f"LPIPS weights {path} lack {key}; expected a VGG16 file.")
    return weights[key]


def _fits(size, width, what, path):
    if size != width:
        raise errors.UsageError(
            f"LPIPS weights {path}: {what} has {size} channels, VGG16 has {width} there."
        )


def _read(path, origin):
    """A state dict {key: float32 array} from a .safetensors, .npz or torch file."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.UsageError(f"LPIPS weights not found: {path}. Get {origin}.")
    if path.suffix == ".npz":
        with np.load(path) as data:
            return {key: data[key].astype(np.float32) for key in data}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {key: array.astype(np.float32) for key, array in load_file(path).items()}
    try:
        import torch
    except ImportError as error:
        raise errors.UsageError(
            f"Reading {path} needs torch: pip install torch (or convert it to .safetensors)."
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: tensor.float().numpy() for key, tensor in state.items()}
