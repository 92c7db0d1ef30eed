"""Sources of records: random access by index, one dict of numpy arrays each.

A record holds `image` uint8 [h, w, 3] RGB and, where the data has them, `class` int32, `caption`
str (`captions` list of str if there are several), `boxes` float32 [n, 4] as x0, y0, x1, y1 in
[0, 1], `box_class` int32 [n] and `segmentation` uint8 or int32 [h, w].
"""

import hashlib
import inspect

import numpy as np

from ldm_jax.base import errors, registry, remote

SOURCES = registry.Registry("data source")


def open_source(source: str, **kwargs) -> "Source":
    """Opens the registered source called `source`; a wrong argument is a one-line UsageError."""
    factory = SOURCES.get(source)
    known = list(inspect.signature(factory).parameters)
    for key in kwargs.keys() - set(known):
        hint = errors.nearest(key, known)
        raise errors.UsageError(
            f"Data source {source!r} has no argument {key!r}; it takes {', '.join(known)}{hint}"
        )
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as e:
        raise errors.UsageError(f"Data source {source!r}: {e}; it takes {', '.join(known)}.") from e
    if kwargs.get("path") == "":  # which would mean the folder that one happens to be in
        raise errors.UsageError(
            f"Data source {source!r} has no path: give --config.data.path=PATH."
        )
    found = factory(**kwargs)
    if not found.fingerprint:
        raise errors.UsageError(
            f"Data source {source!r} has no fingerprint, by which a run knows its data again: set "
            "self.fingerprint = sources.digest(...) of all that says what they are."
        )
    return found


PIPELINE = ("size",)  # keys that the pipeline reads too, whatever a source takes


def idle(data: dict) -> dict[str, str]:
    """{key: why} of the keys of `data` that mean nothing to the source that it names.

    What is empty, or a source's default, is not set.
    """
    taken_by = lambda name: inspect.signature(SOURCES.get(name)).parameters
    own, takes = taken_by(data["source"]), {name: taken_by(name) for name in SOURCES.names()}
    found = {}
    for key in data:
        others = {name: taken[key] for name, taken in takes.items() if key in taken}
        unset = not data[key] or data[key] in [taken.default for taken in others.values()]
        if others and key not in (*own, *PIPELINE) and not unset:
            found[key] = (
                f"means nothing to the data source {data['source']!r}, only to {', '.join(others)}"
            )
    return found


def check_local(path: str):
    """Raises UsageError for a URL of a bucket, for sources that read files by their paths."""
    if path.startswith(remote.SCHEME):
        raise errors.UsageError(
            f"Data path {path!r}: folder and tar are read from a bucket, this source is not; mount "
            f"it (gcsfuse), or copy it here: gcloud storage cp -r {path} DIR"
        )


class Source:
    """What the pipeline needs of a source. Picklable: workers are spawned, so no open handles.

    A source also has `__len__() -> int`, its number of records; `__getitem__(i) -> dict`, record i,
    which raises images.BadRecord where that cannot be read; and `name(i) -> str`, for logs.

    Attributes:
      fingerprint: 16 hex digits that tell what the data is (names, sizes, labels, parameters), not
        where it lies. Pixels are not read for it, so an edit that keeps a file's size goes unseen.
      classes: names by class id, empty where the records have no class.
      box_classes: names by box class id.
      words: all words of its captions, where they are few and known; they can be a vocabulary.
    """

    fingerprint: str = ""
    classes: tuple[str, ...] = ()
    box_classes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def holdout(self, fraction: float, *, train: bool) -> "Source":
        """The training part, or the `fraction` of the records that is kept for evaluation.

        Which records are held out depends on their number alone, not on the run's seed, so that
        runs on the same data are comparable. Each part has at least one record. The training part
        keeps the source's order, which the pipeline shuffles; the held-out part comes in a fixed
        random order, so that the first few records of a set sorted by class are not all of a class.
        """
        n = len(self)
        if not 0 < fraction < 1 or n < 2:
            raise errors.UsageError(
                f"holdout={fraction} of {n} record(s): give a fraction between 0 and 1 "
                "and a source of two records or more."
            )
        count, found = min(max(1, round(n * fraction)), n - 1), order(n)
        return View(self, np.sort(found[count:]) if train else found[:count])


class View(Source):
    """Some records of another source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.classes, self.box_classes = source.classes, source.box_classes
        self.words = source.words
        self.fingerprint = digest(source.fingerprint, self._indices.tobytes())

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, i):
        return self._source[int(self._indices[i])]

    def name(self, i):
        return self._source.name(int(self._indices[i]))


def order(n: int) -> np.ndarray:
    """The numbers below n in a fixed random order."""
    return np.random.Generator(np.random.Philox(key=(0, n))).permutation(n)


def digest(*parts: str | bytes) -> str:
    """16 hex digits over `parts`; moving a character from one part to the next changes it."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:16]
