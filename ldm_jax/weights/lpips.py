"""LPIPS's two public files: a network of torchvision's, and the heads trained on top of it."""

import re

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, tensorfile
from ldm_jax.models import lpips
from ldm_jax.weights import rules
from ldm_jax.weights.rules import Rule

BACKBONE = (
    r".*(?:features|net\.slice\d)\.",
    "vgg16, alexnet or squeezenet fetch torchvision's vgg16-397923af.pth and its like",
)
HEADS = (
    r".*lin\d\.",
    "lpips:vgg, lpips:alex or lpips:squeeze fetch richzhang/PerceptualSimilarity's",
)


def load(backbone, heads):
    """LPIPS params from the two files, each .pth, .safetensors or .npz; one file may serve as both.

    Each is given as a path or a public name.

    backbone: torchvision's network (`features.N.weight`) or an LPIPS state dict
    (`net.sliceS.N...`); heads: `linI.model.1.weight`. What is missing is an error: random weights
    never stand in.
    """
    state = _read(backbone, *BACKBONE) | _read(heads, *HEADS)
    net, image = _network(state), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lpips.LPIPS(net).init, jax.random.key(0), image, image)["params"]
    with errors.of(f"LPIPS weights {backbone} and {heads}, of {net}"):
        return rules.convert(state, table(net), expected=shapes)


def table(net):
    """The table, for torchvision's keys and LPIPS's alike: both number the layers the same."""
    key = BACKBONE[0] + r"(\d+)"
    return [
        Rule(key, rf"{net}/conv_\1", "conv"),
        Rule(rf"{key}\.(\w+)", rf"{net}/conv_\1_\2", "conv"),
        Rule(r".*lin(\d)\.model\.1", r"head_\1", "array", reorder=lambda head: head.reshape(-1)),
    ]


def _network(state):
    """Which network a state dict is of: they differ in the index of their second convolution."""
    has = lambda layer: any(re.fullmatch(BACKBONE[0] + layer, key) for key in state)
    return "squeeze" if has(r"3\.squeeze\.weight") else "alex" if has(r"3\.weight") else "vgg"


def _read(path, keys, origin):
    """The arrays of a file whose names begin as `keys`."""
    with errors.of(f"LPIPS weights ({origin})"):
        return {k: v for k, v in tensorfile.read(path).items() if re.match(keys, k)}
