"""The width of a denoiser: what follows from it, and which one has a wanted size."""

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.base import errors, tree
from ldm_jax.runs import kinds
from ldm_jax.stages.codec import Codec

MOST = 4096  # channels


def backbone(ldm: ConfigDict, codec: Codec):
    return kinds.of(ldm).model(ldm, codec).denoiser.backbone


def parameters(ldm: ConfigDict, codec: Codec) -> int:
    """Scalars of the denoiser and its conditioners."""
    model = kinds.of(ldm).model(ldm, codec)
    return tree.count(jax.eval_shape(model.init, jax.random.key(0)))


def fit_vectors(ldm: ConfigDict, codec: Codec):
    """Makes the vectors of conditioners as wide as the backbone adds them, if it adds any."""
    for label, conditioner in kinds.of(ldm).conditioners(ldm).items():
        key = conditioner.vector_key
        if key and getattr(conditioner, key) and (width := backbone(ldm, codec).vector_width):
            ldm.conditioners[label][key] = width


def with_width(ldm: ConfigDict, codec: Codec, width: int) -> ConfigDict:
    """A copy of another width."""
    ldm = ConfigDict(ldm.to_dict())
    ldm.model.width = width
    fit_vectors(ldm, codec)
    return ldm


def solve(ldm: ConfigDict, codec: Codec, target: int, tolerance: float) -> ConfigDict:
    """The config with the width whose parameters come nearest to `target`.

    Raises:
      UsageError: no width, in steps that its groups and heads allow, comes within `tolerance`; or
        the backbone has no key `width`.
    """
    if "width" not in ldm.model:
        raise errors.UsageError(
            f"config.parameters={target}: {ldm.model.name} has no width to choose: set the sizes "
            "of every network by hand, and config.parameters=0."
        )
    unit = backbone(ldm, codec).width_unit
    of_width = lambda k: with_width(ldm, codec, k * unit)
    count = lambda k: parameters(of_width(k), codec)
    # All channels are multiples of the width, so the number of parameters is a quadratic function
    # of it, which three points determine.
    quadratic = np.polynomial.Polynomial.fit((1, 2, 3), [count(k) for k in (1, 2, 3)], 2)
    widths = np.arange(1, MOST // unit + 1)
    best = int(widths[np.argmin(np.abs(quadratic(widths) - target))])
    off = count(best) / target - 1
    if abs(off) > tolerance:
        raise errors.UsageError(
            f"config.parameters={target}: the nearest width of this {ldm.model.name} is "
            f"{best * unit}, {off:+.0%} off, in steps of {unit}: change another of its sizes, or "
            "raise config.tolerance."
        )
    return of_width(best)
