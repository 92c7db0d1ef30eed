"""Kernel distances between sets of features: KID on Inception's, CMMD on CLIP's.

Unlike a Frechet distance they assume no Gaussians. Host side, float64.
"""

import numpy as np

from ldm_jax.base.errors import UsageError


def kernel_distance(a, b, subsets=100, subset_size=1000, seed=2020) -> tuple[float, float]:
    """Mean and standard deviation of the squared MMD over random subsets. a, b: [n, d].

    The mean does not depend on how many images there are (Binkowski et al. 2018).
    torch-fidelity's draws and defaults. The deviation is that of one subset, not of the mean.
    Sets smaller than subset_size give subsets of their own size.
    """
    rng = np.random.RandomState(seed)
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise UsageError(f"A kernel distance needs 2 images or more on each side; got {size}.")
    distances = [
        squared_mmd(
            a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def squared_mmd(x, y) -> float:
    """The unbiased estimate (Gretton et al. 2012, eq. 3), which may fall below 0. x, y: [m, d].

    The kernel is (x . y / d + 1)^3.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kernel = lambda u, v: (u @ v.T / x.shape[1] + 1.0) ** 3
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return within(kernel(x, x)) + within(kernel(y, y)) - 2.0 * kernel(x, y).mean()


BANDWIDTH, SCALE = 10.0, 1000.0  # of CMMD
BLOCK = 1024  # rows of a kernel matrix that are in memory at a time


def cmmd(x, y) -> tuple[float, float]:
    """SCALE times the squared MMD with a Gaussian kernel, and its standard error. x, y: [n, d].

    Jayasumana et al. 2024 (arXiv 2401.09603), sec. 4.1; x and y are CLIP's unit embeddings. As in
    their code the estimate is the biased one (Gretton et al. 2012, eq. 5), which counts each vector
    as its own neighbour and is not below 0. The error is that over other draws of x to first order,
    twice the deviation of mean k(x, x') - mean k(x, y) over root n; y is held fixed.
    """
    x, y = (np.asarray(side, np.float64) for side in (x, y))
    within, across = _mean_kernel(x, x), _mean_kernel(x, y)
    distance = within.mean() + _mean_kernel(y, y).mean() - 2.0 * across.mean()
    error = 2.0 * (within - across).std() / np.sqrt(len(x))
    return float(SCALE * distance), float(SCALE * error)


def _mean_kernel(x, y):
    """The mean over y of exp(-|x - y|^2 / (2 BANDWIDTH^2)), for each row of x: [n]."""
    norms, means = np.square(y).sum(1), []
    for begin in range(0, len(x), BLOCK):
        rows = x[begin : begin + BLOCK]
        squares = np.square(rows).sum(1)[:, None] + norms - 2.0 * rows @ y.T
        means.append(np.exp(-squares / (2.0 * BANDWIDTH**2)).mean(1))
    return np.concatenate(means)
