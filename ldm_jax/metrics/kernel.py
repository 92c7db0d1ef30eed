"""The kernel distance between sets of features, KID on Inception's (Binkowski et al. 2018).

Unlike a Frechet distance it assumes no Gaussians, and its mean does not depend on how many images
there are. Host side, float64.
"""

import numpy as np

from ldm_jax.base.errors import UsageError


def kernel_distance(a, b, subsets=100, subset_size=1000, seed=2020) -> tuple[float, float]:
    """Mean and standard deviation of the squared MMD over random subsets. a, b: [n, d].

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
