"""Averages of the weights along a power function, whose length may be chosen after training.

Karras et al. 2024 (arXiv 2312.02696), section 3 and appendix C. At step t, the profile
p(s) = (g + 1) s^g / t^(g + 1) says how much the average holds of the weights at time s in (0, t].
Its length is its standard deviation as a share of t (the paper's sigma_rel), from which the
exponent g follows; 0.05 is an average over the last tenth or so of training, whatever t is.

Snapshots of averages of a few lengths, taken at several steps, span the profiles of many other
lengths: `coefficients` says how much of each snapshot makes the average that was not kept.
"""

import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors

LONGEST = 12**-0.5  # of g = 0, the mean of all weights
TOLERANCE = 0.05  # most of a profile, by its root mean square, that a combination may miss


def exponent(length: float) -> float:
    """g of a length: the largest root of length^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Raises:
      UsageError: a length that no rising profile has.
    """
    if not 0 < length <= LONGEST:
        raise errors.UsageError(
            f"ema={length:g} is no length of an average: a length is above 0 and at most "
            f"{LONGEST:.3f} of the training, e.g. 0.05."
        )
    t = float(length) ** -2
    return max(0.0, float(np.roots([1, 7, 16 - t, 12 - t]).real.max()))


def length(exponent: float) -> float:
    """The inverse of `exponent`."""
    return ((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))) ** 0.5


def share(exponent: float, t):
    """Share of the weights of step t, counted from 1, in the average: 1 - (1 - 1/t)^(g + 1).

    1 at t = 1, where nothing of what the average was before is left.
    """
    # 1 - 1/t itself would lose most digits of 1/t in a long training.
    return -jnp.expm1((exponent + 1) * jnp.log1p(-1 / t))


def coefficients(steps, lengths, step: int, length: float) -> tuple[np.ndarray, float]:
    """How much of each snapshot makes the average of another length at `step`.

    Least squares between the profiles (appendix C.3), for coefficients whose sum is 1. The paper
    leaves the sum free; held to 1, what all weights have in common is reproduced exactly.

    Args:
      steps, lengths: of each snapshot, [n].

    Returns:
      The coefficients [n], float64, and the share of the profile that they miss, as the root mean
      square of the difference over that of the profile.
    """
    t = np.asarray(steps, np.float64) / step
    g = np.array([exponent(own) for own in lengths])
    wanted = exponent(length)
    among = _product(t[:, None], g[:, None], t, g)
    with_wanted, norm = _product(t, g, 1.0, wanted), _product(1.0, wanted, 1.0, wanted)
    # The last row says that the sum is 1; the last unknown is its Lagrange multiplier.
    system = np.block([[among, np.ones((len(t), 1))], [np.ones((1, len(t))), np.zeros((1, 1))]])
    x = np.linalg.solve(system, np.append(with_wanted, 1.0))[:-1]
    missed = (x @ among @ x - 2 * x @ with_wanted + norm) / norm
    return x, max(0.0, missed) ** 0.5


def reach(steps, lengths, step: int) -> tuple[float, float] | None:
    """The shortest and the longest length that these snapshots give, to two digits.

    None where they give only those that were kept.
    """
    tried = [float(f"{length:.2g}") for length in np.geomspace(0.002, LONGEST, 60)[:-1]]
    given = [one for one in tried if coefficients(steps, lengths, step, one)[1] <= TOLERANCE]
    return (given[0], given[-1]) if given else None


def _product(t, g, s, h):
    """The integral of the product of two profiles, at t with exponent g and at s with h (C.3)."""
    ratio = (t / s) ** np.where(t < s, h, -g)
    return (g + 1) * (h + 1) * ratio / ((g + h + 1) * np.maximum(t, s))
