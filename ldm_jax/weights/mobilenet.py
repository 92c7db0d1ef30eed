"""MobileNetV2's published weights, folded: an .npz of convolutions."""

import pathlib

import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors
from ldm_jax.models import mobilenet


def load(path):
    """Reads the 52 convolutions: a tuple of {"kernel": [h, w, in, out], "bias": [out]}, in order.

    The file holds `conv_<i>_weight` [out, in, h, w] and `conv_<i>_bias`, batch norm folded in, `i`
    rising through the network.
    """
    path = pathlib.Path(path)
    expected = "a MobileNetV2 1.0 .npz of 52 convs named conv_<i>_weight, conv_<i>_bias"
    if not path.is_file():
        raise errors.UsageError(f"No file {str(path)!r}; expected {expected}.")
    with np.load(path) as arrays:
        indices = sorted(int(k.split("_")[1]) for k in arrays if k.endswith("_weight"))
        if len(indices) != mobilenet.CONVS:
            raise errors.UsageError(
                f"{str(path)!r} holds {len(indices)} convs; expected {expected}."
            )
        kernel = lambda i: jnp.asarray(arrays[f"conv_{i}_weight"].transpose(2, 3, 1, 0))
        bias = lambda i: jnp.asarray(arrays[f"conv_{i}_bias"])
        return tuple({"kernel": kernel(i), "bias": bias(i)} for i in indices)
