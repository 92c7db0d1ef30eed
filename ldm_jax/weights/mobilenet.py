"""MobileNetV2's published weights, folded: an .npz of convolutions."""

import re

import jax.numpy as jnp

from ldm_jax.base import errors, tensorfile
from ldm_jax.models import mobilenet


def load(path):
    """Reads the 52 convolutions: a tuple of {"kernel": [h, w, in, out], "bias": [out]}, in order.

    The file holds `conv_<i>_weight` [out, in, h, w] and `conv_<i>_bias`, batch norm folded in, `i`
    rising through the network.
    """
    with errors.of("MobileNetV2 1.0, an .npz of 52 convs named conv_<i>_weight, conv_<i>_bias"):
        arrays = tensorfile.read(path)
        indices = sorted(int(k[5:-7]) for k in arrays if re.fullmatch(r"conv_\d+_weight", k))
        if len(indices) != mobilenet.CONVS:
            raise errors.UsageError(f"{path} holds {len(indices)} convs.")
    kernel = lambda i: jnp.asarray(arrays[f"conv_{i}_weight"].transpose(2, 3, 1, 0))
    bias = lambda i: jnp.asarray(arrays[f"conv_{i}_bias"])
    return tuple({"kernel": kernel(i), "bias": bias(i)} for i in indices)
