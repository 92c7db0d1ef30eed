"""Several sources as one, each as often as its weight says.

    config.data.source = "mix"
    config.data.mix = dict(
        photos=dict(source="folder", path="photos", weight=3.0),
        emoji=dict(source="tar", path="emoji"),
    )

An epoch holds every record of every part at least once. A part that is too short for its weight
comes again within it, so that the shares are exact, and a record is a function of its number alone.
"""

import inspect
import itertools

import numpy as np

from ldm_jax.base import defaults, errors, values
from ldm_jax.data import sources

MOST = 2**31 - 1  # records of an epoch: their numbers are int32


class Mix(sources.Source):
    """The parts one after the other, repeated as far as their weights ask.

    Classes, also of boxes, are those of all parts by their names. Where a part has no class, no
    record has: none of its pictures could be drawn from a class. `part` is the number of a record's
    part, in the order of their names.

    Args:
      parts: {name: (Source, weight)}.
    """

    def __init__(self, parts: dict):
        self._names = sorted(parts)
        self._sources = [parts[name][0] for name in self._names]
        self._weights = np.array([parts[name][1] for name in self._names], np.float64)
        self._lengths = np.array([len(source) for source in self._sources])
        epoch = max(self._lengths / self._weights)
        counts = np.maximum(np.rint(self._weights * epoch), self._lengths)
        if counts.sum() > MOST:
            raise errors.UsageError(
                f"config.data.mix: an epoch would have {counts.sum():.3g} records, as the part "
                f"{self._names[np.argmax(self._lengths / self._weights)]} has a small weight for "
                "its length: give it a larger one."
            )
        self._ends = np.cumsum(counts.astype(np.int64))
        every = all(source.classes for source in self._sources)
        self.classes = self._all("classes") if every else ()
        self.box_classes = self._all("box_classes")
        self.words = self._all("words") if all(s.words for s in self._sources) else ()
        shares = (f"{w!r} {s.fingerprint}" for w, s in zip(self._weights.tolist(), self._sources))
        self.fingerprint = sources.digest("mix", *shares)

    def _all(self, kind) -> tuple[str, ...]:
        """The names of one kind of all parts, in the order of the parts."""
        given = (getattr(source, kind) for source in self._sources)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(given)))

    def __len__(self):
        return int(self._ends[-1])

    def _place(self, i) -> tuple[int, int]:
        """The part of record i, and its number there."""
        part = int(np.searchsorted(self._ends, i, side="right"))
        first = self._ends[part - 1] if part else 0
        return part, int((i - first) % self._lengths[part])

    def __getitem__(self, i):
        part, own = self._place(i)
        source = self._sources[part]
        record = source[own] | {"part": np.int32(part)}
        if not self.classes:
            record.pop("class", None)
        for key, kind in (("class", "classes"), ("box_class", "box_classes")):
            names, ours = getattr(source, kind), getattr(self, kind)
            if key in record and names and names != ours[: len(names)]:
                ids = np.array([ours.index(name) for name in names], np.int32)
                record[key] = ids[record[key]]
        return record

    def name(self, i):
        part, own = self._place(i)
        return f"{self._names[part]}: {self._sources[part].name(own)}"

    def holdout(self, fraction, *, train):
        """Of each part, so that no record that comes again is trained on and held out too."""
        parts = [source.holdout(fraction, train=train) for source in self._sources]
        found = Mix(dict(zip(self._names, zip(parts, self._weights.tolist()))))
        return found if train else sources.View(found, sources.order(len(found)))


@sources.SOURCES.register("mix")
def mix(mix: dict, size: int = 0) -> Mix:
    """The source that config.data.mix describes; size: pixels, for parts that take it."""
    if not mix:
        raise errors.UsageError(
            "config.data.mix is empty: give its parts, {name: dict(source=..., weight=...)}."
        )
    return Mix({name: _part(f"config.data.mix.{name}", given, size) for name, given in mix.items()})


def _part(said: str, given, size: int) -> tuple:
    """(Source, weight) of one part."""
    values.check(said, given, values.Fields({"source": values.Text()}))
    given = {"weight": 1.0} | dict(given)
    known = values.declared(defaults.Data) | {"weight": values.Number(above=0, most=1e6)}
    for key, value in given.items():
        values.check(f"{said}.{key}", value, known.get(key))
    name, weight = given.pop("source"), given.pop("weight")
    with errors.of(said):
        if size and "size" in inspect.signature(sources.SOURCES.get(name)).parameters:
            given = {"size": size} | given
        return sources.open_source(name, **given), float(weight)
