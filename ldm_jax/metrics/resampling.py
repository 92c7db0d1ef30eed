"""How sure a Frechet distance is, and what it tends to: many distances of parts of one set."""

import numpy as np

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics import frechet


class Resampled:
    """`distance(rows)`: the Frechet distance of some rows of `features` [n, d] to `reference`.

    The reference's half of the trace term is multiplied in once, so that a distance costs one
    symmetric eigenvalue problem of size min(len(rows), d).
    """

    def __init__(self, features, reference):
        covariance = reference.covariance
        self._features = np.asarray(features, np.float64) - reference.mean
        self._projected = self._features @ frechet.root(covariance)
        self._trace = np.trace(covariance)

    def __len__(self):
        return len(self._features)

    def __call__(self, rows) -> float:
        x, y = self._features[rows], self._projected[rows]
        delta, freedom = x.mean(0), len(x) - 1
        y = y - y.mean(0)
        gram = y @ y.T if len(y) < y.shape[1] else y.T @ y
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(0) / freedom).sum()
        trace = np.square(x - delta).sum() / freedom
        return float(delta @ delta + trace + self._trace - 2.0 * overlap)


def bootstrap(distance: Resampled, rounds=20, seed=0) -> float:
    """Standard error of the distance under other draws of as many samples (Efron 1979).

    The reference is held fixed. The bias of a finite n is not in it; see `infinity`.
    """
    rng = np.random.RandomState(seed)
    n = len(distance)
    return float(np.std([distance(rng.randint(n, size=n)) for _ in range(rounds)], ddof=1))


def infinity(distance: Resampled, points=15, seed=0) -> tuple[float, float]:
    """The distance for n -> infinity and its standard error (Chong & Forsyth 2020, sec. 4).

    A line through the distances of n/10 .. n random samples over 1/n, read at 0. It holds where
    n/10 is well above the number of features, as for 50,000 images; with fewer it is a hint.
    """
    n = len(distance)
    if n < 20:
        raise UsageError(f"fd_infinity needs 20 samples or more, for a line; there are {n}.")
    rng = np.random.RandomState(seed)
    sizes = np.linspace(n // 10, n, points).astype(int)
    values = np.array([distance(rng.permutation(n)[:size]) for size in sizes])
    design = np.stack([np.ones(points), 1.0 / sizes], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ coefficients
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / (points - 2)
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))
