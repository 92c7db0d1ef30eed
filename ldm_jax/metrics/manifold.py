"""Whether samples lie where data lies and the other way round: neighbourhoods of features.

Around every feature of a set stands a ball that reaches to its k-th neighbour in that set; the
balls are the set's manifold. Host side, float64, in blocks: no [n, n] array is ever whole.
"""

import numpy as np

from ldm_jax.base.errors import UsageError

BLOCK = 1024


def precision_recall(fake, real, k=3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-2). fake, real: [n, d].

    Precision: share of the samples inside a ball of the data. Recall: the reverse.
    """
    inside = lambda points, centres: np.concatenate(
        [hits.any(1) for hits in _hits(points, centres, radii(centres, k))]
    )
    return float(inside(fake, real).mean()), float(inside(real, fake).mean())


def density_coverage(fake, real, k=5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eq. 3-4), which outliers of the data move less.

    Density: balls of the data that hold a sample, over k, averaged over samples; it may exceed 1.
    Coverage: share of the balls of the data that hold a sample. fake, real: [n, d].
    """
    total, covered = 0, np.zeros(len(real), bool)
    for hits in _hits(fake, real, radii(real, k)):
        total += hits.sum()
        covered |= hits.any(0)
    return float(total / (k * len(fake))), float(covered.mean())


def radii(x, k: int):
    """Distance of every feature to its k-th neighbour, itself not counted. [n, d] -> [n]."""
    if len(x) <= k:
        raise UsageError(f"A {k}-th neighbour needs {k + 1} images or more; there are {len(x)}.")
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(x, x)])


def _hits(points, centres, radii):
    """Blocks [b, n]: whether point i is in the ball of centre j."""
    return (d <= radii for d in _distances(points, centres))


def _distances(points, centres):
    """Blocks [b, n] of Euclidean distances."""
    points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    squares = np.square(centres).sum(1)
    for i in range(0, len(points), BLOCK):
        part = points[i : i + BLOCK]
        d = np.square(part).sum(1)[:, None] + squares - 2.0 * part @ centres.T
        yield np.sqrt(np.maximum(d, 0.0))
