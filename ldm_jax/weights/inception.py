"""The published weights of the Inception network of FID, by their names in the PyTorch file."""

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, tensorfile
from ldm_jax.models import inception
from ldm_jax.weights import rules
from ldm_jax.weights.rules import Rule, within

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
HELP = (
    "inception:fid, which fetches pt_inception-2015-12-05-6726825d.pth (96 MB) of "
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, or the path of that file or "
    "of weights-inception-2015-12-05-6726825d.pth, the same bytes, of "
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
)

_STEM, _MIXED = r"(Conv2d_\w+)\.", r"(Mixed_\w+)\.(branch\w+)\."
TABLE = [
    *within(
        [(_STEM, r"params/\1/"), (_MIXED, r"params/\1/\2/")],
        [Rule("conv", "conv", "conv"), Rule("bn", "bn", "norm")],
    ),
    *within(
        [(_STEM, r"batch_stats/\1/"), (_MIXED, r"batch_stats/\1/\2/")],
        [Rule(r"bn\.running_mean", "bn/mean", "bare"), Rule(r"bn\.running_var", "bn/var", "bare")],
    ),
    Rule("fc", "params/fc", "dense"),
]
IGNORED = (r".*\.num_batches_tracked", r"fc\.bias", "global_step")


def load(path, sha256=SHA256):
    """Variables of models.inception.Inception; any file but the published one is refused."""
    with errors.of("Inception weights (inception:fid fetches them)"):
        found = tensorfile.digest(path)
    if found != sha256:
        raise errors.UsageError(
            f"Inception weights {str(path)!r} are not the published ones (sha256 {found[:12]}..., "
            f"expected {sha256[:12]}...), and no other make a FID. Give {HELP}."
        )
    return convert(tensorfile.read(path))


def convert(state):
    """A state dict of that layout -> variables."""
    blank = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    expected = jax.eval_shape(inception.Inception().init, jax.random.key(0), blank)
    return rules.convert(state, TABLE, IGNORED, expected)
