"""What samples are measured against: statistics of features, computed once and kept on disk.

A file is .npz with `mean` [d], `covariance` [d, d], `count`, `features` [m, d] float32 and
`origin`, JSON that says what they are of. Others' `mu` and `sigma` are read as well.
"""

import dataclasses
import hashlib
import json

import numpy as np

from ldm_jax.base import disk, download, errors

KEEP = 10_000  # features kept beside the moments, for figures that need neighbours


@dataclasses.dataclass(frozen=True)
class Reference:
    """count: images, or None where a foreign file does not say. origin: its part of a protocol."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    features: np.ndarray | None
    origin: dict

    @classmethod
    def of(cls, gathered, origin: dict):
        """From a suite.Features."""
        moments = gathered.moments
        return cls(moments.mean, moments.covariance, moments.count, gathered.features, origin)


def cached(origin: dict, compute) -> Reference:
    """The reference of that origin, from disk or else from `compute() -> suite.Features`.

    origin: all that the statistics depend on; its digest is the file's name.
    """
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
    file = download.cache() / "references" / f"{digest}.npz"
    if disk.there(file):
        return load(file)
    reference = Reference.of(compute(), origin)
    save(file, reference)
    return reference


def save(path, reference: Reference):
    """Of several processes that write the same file, any may win."""
    arrays = vars(reference) | {"origin": json.dumps(reference.origin)}
    disk.write_atomic(path, lambda f: np.savez(f, **arrays))


def load(path, extraction: dict | None = None) -> Reference:
    """Reads ours or a foreign `mu`, `sigma`; a file that is neither is a UsageError.

    extraction: keys of an origin and the values wanted; a file with other values is refused. A
    foreign file does not say them: it is accepted, and its origin records that.
    """
    with disk.arrays(path) as arrays:
        keys = set(arrays)
        if {field.name for field in dataclasses.fields(Reference)} <= keys:
            origin = json.loads(str(arrays["origin"]))
            for key, value in (extraction or {}).items():
                if origin.get(key) != value:
                    raise errors.UsageError(
                        f"{path} was computed with {key}={origin.get(key)}, wanted is {value}: "
                        "give images instead, or the same --features and --weights."
                    )
            parts = (arrays[key] for key in ("mean", "covariance", "count", "features"))
            mean, covariance, count, features = parts
            _check(path, mean, covariance)
            return Reference(mean, covariance, int(count), features, origin)
        if not {"mu", "sigma"} <= keys:
            raise errors.UsageError(
                f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; statistics are mu and "
                "sigma, images arr_0."
            )
        mean, covariance = arrays["mu"], arrays["sigma"]
    _check(path, mean, covariance)
    content = hashlib.sha256(mean.tobytes() + covariance.tobytes()).hexdigest()[:16]
    origin = {"statistics": content, "extraction": "not said by the file"}
    return Reference(mean, covariance, None, None, origin)


def _check(path, mean, covariance):
    """Raises UsageError for what is no mean [d] and no covariance [d, d] of finite numbers."""
    square = mean.ndim == 1 and covariance.shape == (len(mean),) * 2
    real = all(np.issubdtype(array.dtype, np.floating) for array in (mean, covariance))
    if not square or not real or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise errors.UsageError(
            f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} must be finite "
            "numbers, [d] and [d, d]: compute them anew."
        )
