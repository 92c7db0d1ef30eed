"""What conditioners read of a batch, made from records: captions to ids, boxes to tokens, ...

A maker is a transform, `(record, rng) -> record`, that adds the field under which it is registered;
it sees the cropped and flipped record, its image still uint8. A record that it can do nothing with
is an images.BadRecord, which the pipeline replaces and reports. It is made from one argument, a
`Given`.

A new kind of condition is a conditioner (models/conditioners.py), a maker here, a line in a config.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from ldm_jax.base import errors, registry, values
from ldm_jax.data import degradations, images, sources, transforms
from ldm_jax.data import hints as hints_lib
from ldm_jax.data import holes as holes_lib

MAKERS = registry.Registry("condition field")
OPEN = -1  # a key of a conditioner that the data decides


@dataclasses.dataclass(frozen=True)
class Given:
    """What a maker is made from.

    shapes: {field: shape without the batch} of the fields that the conditioner reads; conditioner:
    the module, for its sizes; options: its group in the config; data: config.data; source: the data
    source, None where its names are not known.
    """

    shapes: dict
    conditioner: Any = None
    options: dict = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    source: sources.Source | None = None


class Maker:
    """What makers have in common where they do not say otherwise; each has its own `__call__`.

    options: {key: what it may be} of the keys that a maker takes from the conditioner's group in
      the config; see base/values.py.
    """

    options: ClassVar[dict] = {}

    def __init__(self, given: Given):
        pass

    def findings(self, record: dict) -> Iterable[str]:
        """What is odd about a record, a few words each, for the checker of data sets."""
        return ()

    @classmethod
    def decide(cls, source, data: dict) -> dict | None:
        """The conditioner's keys that depend on the data; None: these data cannot condition it."""
        return {}


def decide(fields, source, data: dict) -> dict | None:
    """What the data decides of a conditioner that reads these fields; see `Maker.decide`."""
    found = [maker.decide(source, data) for maker in _factories(fields)]
    return None if None in found else {k: v for keys in found for k, v in keys.items()}


def makers(given: Given) -> tuple:
    """The makers of one conditioner's fields; one that nobody makes has to be in the records."""
    return tuple(factory(given) for factory in _factories(given.shapes))


def options(fields) -> dict[str, values.Type]:
    """{key: what it may be} of a conditioner's group, those that makers of these fields take."""
    found = [factory.options for factory in _factories(fields)]
    return {key: values.of(annotation) for own in found for key, annotation in own.items()}


def _factories(fields) -> list:
    """Each once: one maker may make several fields."""
    return list(dict.fromkeys(MAKERS.get(field) for field in fields if field in MAKERS.names()))


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Condition fields for drawing: of records, of prompts, of pictures.

    makers: as in training; fields: those that the run reads; framing: the transforms before makers,
    for whole records of a data set.
    """

    makers: tuple
    fields: tuple[str, ...]
    framing: tuple = ()

    def of(self, records: Iterable[dict], seed: int = 0) -> dict[str, np.ndarray]:
        """{field: [n, ...]} of records that have what the makers read, at the size of the run.

        `{"caption": str}`, `{"class": id or name}`, `{"boxes": [n, 4], "box_class": ids or names}`,
        `{"segmentation": [h, w]}`, `{"image": uint8 [h, w, 3]}` with `"mask": bool [h, w]` (else
        one is drawn), `{"low_res": uint8 [h/f, w/f, 3]}` (else the image is degraded), `{"hint":
        uint8 [h, w, 3]}` (else it is made). Row i depends on (record, seed, i) alone. A record that
        lacks what the makers read, or that they refuse, is a UsageError.
        """
        made = []
        for i, record in enumerate(records):
            try:
                made.append(self._complete(record, _rng(seed, i)))
            except images.BadRecord as e:
                raise errors.UsageError(f"Condition {i} {e}.") from e
        if not made:
            raise errors.UsageError("No conditions were given; give at least one.")
        return self._stack(made)

    def of_prompts(self, prompts: Iterable[str]) -> dict[str, np.ndarray]:
        """Of captions, or of the names of classes."""
        return self.of({"caption": prompt, "class": prompt} for prompt in prompts)

    def of_source(self, source: sources.Source, count: int, seed: int = 0):
        """Of the first `count` records that the makers do not refuse, in order.

        Returns ({field: [n, ...]}, records): what a sample can be measured against, framed as its
        condition was and with its fields, images uint8.
        """
        made = []
        for i in range(len(source)):
            try:
                made.append(self._complete(source[i], _rng(seed, i), self.framing))
            except images.BadRecord:
                continue  # evaluation leaves it out too
            if len(made) == count:
                return self._stack(made), made
        raise errors.UsageError(
            f"The data has {len(made)} records that can be conditions, not {count}: ask for fewer."
        )

    def _complete(self, record, rng, framing=()) -> dict:
        for transform in (*framing, *self.makers):
            record = transform(record, rng)
        if missing := [field for field in self.fields if field not in record]:
            raise images.BadRecord(f"has no {missing[0]}")
        return record

    def _stack(self, records) -> dict[str, np.ndarray]:
        return {field: np.stack([record[field] for record in records]) for field in self.fields}


def _rng(seed: int, i: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(counter=np.array([0, 0, 2, 0]), key=(seed, i)))


@MAKERS.register("class")
class Class(Maker):
    """An id below the conditioner's `num_classes`, or a name of the source's classes."""

    def __init__(self, given):
        self._count = given.conditioner.num_classes
        self._names = given.source.classes if given.source else ()

    def __call__(self, record, rng):
        if "class" not in record:
            raise images.BadRecord("has no class")
        return record | {"class": class_id("is", record["class"], self._names, self._count)}

    @classmethod
    def decide(cls, source, data):
        return {"num_classes": len(source.classes)} if source.classes else None


def class_id(what: str, value, names: tuple[str, ...], count: int) -> np.int32:
    """The id of a class that is given by its id, or by its name among those of all ids.

    Raises BadRecord, which begins with `what` ("is", "has a box"), unless it is below `count`.
    """
    if isinstance(value, str):
        if value not in names:
            hint = errors.nearest(value, names)
            raise images.BadRecord(f"{what} of class {value!r}, which is unknown{hint}")
        value = names.index(value)
    if not 0 <= value < count:
        raise images.BadRecord(f"{what} of class {value}, not one of 0..{count - 1}")
    return np.int32(value)


@MAKERS.register("segmentation")
class Segmentation(Maker):
    """A map of labels, checked. A label outside the conditioner's classes, as 255 is in many data
    sets, stays what it is here; the conditioner takes it as none of the classes."""

    def __init__(self, given):
        self._size = given.shapes["segmentation"][:2]
        self._classes = given.conditioner.classes

    def __call__(self, record, rng):
        if "segmentation" not in record:
            raise images.BadRecord("has no semantic map")
        found = np.asarray(record["segmentation"])
        images.require_size("a semantic map", found, self._size)
        return record | {"segmentation": found}

    def findings(self, record):
        labels = np.asarray(record.get("segmentation", ()))
        if labels.ndim == 2 and ((labels < 0) | (labels >= self._classes)).any():
            yield "labels of the map out of range"


@MAKERS.register("low_res")
class LowResolution(Maker):
    """The image at the size of the latents, degraded; float32 [h/f, w/f, 3] in [-1, 1].

    degradation: a name of `data.degradations`, bicubic by default.
    """

    options: ClassVar = {"degradation": str}

    def __init__(self, given):
        self._size = tuple(given.shapes["low_res"][:2])
        self._degrade = degradations.DEGRADATIONS.get(given.options.get("degradation", "bicubic"))

    def __call__(self, record, rng):
        if "low_res" not in record:
            small = self._degrade(record["image"], self._size, rng)
        else:
            small = np.asarray(record["low_res"])
            wanted = (*self._size, 3)
            if small.shape != wanted or small.dtype != np.uint8:
                raise images.BadRecord(
                    f"has a small image {small.dtype} {small.shape}, not uint8 {wanted}: resize it"
                )
        return record | {"low_res": transforms.to_float(small)}


@MAKERS.register("mask")
@MAKERS.register("masked_image")
class Hole(Maker):
    """`mask` float32 [h, w, 1], 1 in the hole, and `masked_image` float32 [h, w, 3], -1 there.

    The hole is the record's own `mask`, bool [h, w], or one drawn; holes: {kind: share of the
    records} over the kinds of `data.holes`, by default equal shares.
    """

    options: ClassVar = {"holes": dict[str, values.Amount]}

    def __init__(self, given):
        self._size = given.shapes["mask"][:2]
        self._draw = holes_lib.Mix(dict(given.options.get("holes") or holes_lib.EVEN))

    def __call__(self, record, rng):
        images.require_size("an image", record["image"], self._size)
        if "mask" in record:
            hole = np.asarray(record["mask"]) > 0
            images.require_size("a mask", hole, self._size)
        else:
            hole = self._draw(*self._size, rng)
        hole = hole.reshape(*self._size, -1)[..., :1]
        masked = transforms.to_float(np.where(hole, np.uint8(0), record["image"]))
        return record | {"mask": hole.astype(np.float32), "masked_image": masked}


@MAKERS.register("hint")
class Hint(Maker):
    """What a control follows, float32 [h, w, 3] in [0, 1]: the record's own `hint`, or one made.

    A record's own is uint8 [h, w, 3]. hint: a name of `data.hints`, by default `picture`, which
    makes none.
    """

    options: ClassVar = {"hint": str}

    def __init__(self, given):
        self._shape = tuple(given.shapes["hint"])
        self._make = hints_lib.HINTS.get(given.options.get("hint", "picture"))

    def __call__(self, record, rng):
        if "hint" not in record:
            made = self._make(record)
        else:
            own = np.asarray(record["hint"])
            if own.dtype != np.uint8:
                raise images.BadRecord(f"has a hint of {own.dtype}, not uint8")
            made = own.astype(np.float32) / 255
        if made.shape != self._shape:
            raise images.BadRecord(
                f"has a hint [h, w, c] of {made.shape}, not {self._shape}: make it that size"
            )
        return record | {"hint": made}
