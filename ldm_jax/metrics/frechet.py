"""The Frechet distance between Gaussians fitted to sets of features (Heusel et al. 2017, eq. 6).

Host side, float64: the trace term is a small difference of large numbers.
"""

import dataclasses

import numpy as np

from ldm_jax.base.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a stream of features: all that the distance needs of a set.

    count: int; mean: [d]; scatter: [d, d], the sum of outer products about the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features):
        """The moments of one batch, [b, d]."""
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise UsageError("Features hold NaN or infinity; no distance can be computed.")
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other):
        """The moments of the union, whatever the order (Chan et al. 1979, eq. 2.1)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        correction = np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + correction)

    @property
    def covariance(self):
        """Unbiased, [d, d]: divided by count - 1, as in every FID code."""
        if self.count < 2:
            raise UsageError(f"A covariance needs 2 features or more; there are {self.count}.")
        return self.scatter / (self.count - 1)


def frechet_distance(a, b) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)).

    a, b: Moments, or anything that has a `mean` [d] and a `covariance` [d, d].

    tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2): real, and exact to rounding
    even where fewer images than features make A and B singular, which upsets `sqrtm`.
    """
    cov_a, cov_b = a.covariance, b.covariance
    if len(a.mean) != len(b.mean):
        raise UsageError(f"Features of widths {len(a.mean)} and {len(b.mean)} don't compare.")
    overlap = np.linalg.svd(root(cov_a) @ root(cov_b), compute_uv=False).sum()
    delta = a.mean - b.mean
    return float(delta @ delta + np.trace(cov_a) + np.trace(cov_b) - 2.0 * overlap)


def root(covariance):
    """The symmetric square root, [d, d]; eigenvalues that are rounding noise become 0."""
    values, vectors = np.linalg.eigh(covariance)
    noise = values[-1] * len(values) * np.finfo(np.float64).eps
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T
