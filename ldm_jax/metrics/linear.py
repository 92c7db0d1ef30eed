"""What linear algebra makes of patches: the rival that every first stage has to beat.

Principal components are the best linear autoencoder of so many channels (Baldi & Hornik 1989),
k-means the simplest codebook. Both are fitted in seconds to minutes.
"""

import dataclasses
import warnings

import numpy as np
import scipy  # its parts at their first use: scipy.cluster takes as long as a tenth of all imports

from ldm_jax.models.shortcut import images, patches

WORK = 5e11  # products that k-means may take, for which it does without some of its rounds


@dataclasses.dataclass(frozen=True)
class Components:
    """The first principal components of patches of f x f pixels, float64.

    mean [d] of the patches; vectors [d, c], orthonormal, the most variance first; deviations [c]
    along them; explained: their share of all variance. d = 3 * f * f.
    """

    f: int
    mean: np.ndarray
    vectors: np.ndarray
    deviations: np.ndarray
    explained: float

    def encode(self, x):
        """Images [b, h, w, 3] -> [b, h/f, w/f, c], unit deviation each."""
        return (patches(np.asarray(x, np.float64), self.f) - self.mean) @ (
            self.vectors / self.deviations
        )

    def decode(self, z):
        """[b, h/f, w/f, c] -> [b, h, w, 3]."""
        return images(z @ (self.vectors * self.deviations).T + self.mean, self.f)

    def reconstruct(self, x):
        return self.decode(self.encode(x))


def components(x, f: int, count: int) -> Components:
    """The first `count` components of the images x, [n, h, w, 3]."""
    p = patches(np.asarray(x, np.float64), f).reshape(-1, 3 * f * f)
    mean = p.mean(0)
    covariance, d = np.cov(p.T, bias=True), len(mean)
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(d - min(count, d), d - 1))
    vectors = vectors[:, ::-1]
    # The sign of a component is free: its largest entry is positive, on every machine.
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    deviations = np.sqrt(np.maximum(values[::-1], 1e-12))
    more = count - len(deviations)  # channels that a patch has no numbers for
    vectors = np.pad(vectors, ((0, 0), (0, more)))
    deviations = np.pad(deviations, (0, more), mode="edge")
    return Components(f, mean, vectors, deviations, float(values.sum() / np.trace(covariance)))


def means(points, count: int, seed: int = 0) -> np.ndarray:
    """`count` centres of points [n, d] by k-means, [count, d]."""
    points = np.asarray(points, np.float64)
    chosen = np.random.default_rng(seed).permutation(len(points))
    begin = points[np.resize(chosen, count)]
    rounds = int(np.clip(WORK / (points.size * count), 1, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cell keeps the point it began with
        return scipy.cluster.vq.kmeans2(points, begin, iter=rounds, minit="matrix")[0]


@dataclasses.dataclass(frozen=True)
class Centres:
    """Patches as the nearest of k centres [k, 3 * f * f]."""

    f: int
    centres: np.ndarray

    def reconstruct(self, x):
        p = patches(np.asarray(x, np.float64), self.f)
        nearest, _ = scipy.cluster.vq.vq(p.reshape(-1, p.shape[-1]), self.centres)
        return images(self.centres[nearest].reshape(p.shape), self.f)


def centres(x, f: int, count: int, most: int = 40_000) -> Centres:
    """Of the images x, [n, h, w, 3]; at most so many patches, evenly spread, are looked at."""
    p = patches(np.asarray(x, np.float64), f).reshape(-1, 3 * f * f)
    return Centres(f, means(p[:: max(1, len(p) // most)], count))
