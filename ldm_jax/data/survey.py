"""Reads a data set as training would, and counts what is wrong with its records."""

import collections
import concurrent.futures
import dataclasses
import io

import numpy as np
from PIL import Image

from ldm_jax.data import images

EXAMPLES = 3
# PIL's names of the modes that become RGB without loss. Images of other modes are reported.
_PLAIN = ("RGB", None)


@dataclasses.dataclass
class Survey:
    """records: how many were read; refused: how many of them training would replace by others;
    found: {kind of finding: [count, first examples]}; fields: {field: records that have it}."""

    records: int = 0
    refused: int = 0
    found: dict = dataclasses.field(default_factory=dict)
    fields: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, name: str, fields: list[str], notes: list[tuple[str, str]], refused: bool):
        """notes: (kind, detail) of one record."""
        self.records += 1
        self.refused += refused
        self.fields.update(fields)
        for kind, detail in notes:
            entry = self.found.setdefault(kind, [0, []])
            entry[0] += 1
            if len(entry[1]) < EXAMPLES:
                entry[1].append(detail or name)


def survey(source, conditions, size: int, indices, threads: int = 8) -> Survey:
    """The records with these indices.

    conditions: a data.conditions.Conditions, whose makers report what they find; size: pixels that
    the short side should have.
    """
    result = Survey()
    look = lambda i: _look(source, conditions, size, int(i))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for found in pool.map(look, indices):
            result.add(*found)
    return result


def _look(source, conditions, size, i):
    """(name, fields, notes, refused) of record i."""
    name = source.name(i)
    try:
        record = source[i]
    except images.BadRecord as e:
        return name, [], [("unreadable", str(e))], True
    fields = [key for key, value in record.items() if _says(value)]
    notes = [(kind, "") for kind in _of_image(source, record["image"], size, i)]
    notes += [(kind, "") for maker in conditions.makers for kind in maker.findings(record)]
    if problem := _refusal(conditions, record, i):
        kind, detail = problem
        return name, fields, [*notes, (kind, f"{name} {detail}")], True
    return name, fields, notes, False


def _says(value) -> bool:
    return bool(value.strip()) if isinstance(value, str) else np.size(value) > 0


def _of_image(source, pixels, size, i):
    if min(pixels.shape[:2]) < size:
        yield f"smaller than {size} pixels, enlarged"
    if hasattr(source, "encoded"):
        with Image.open(io.BytesIO(source.encoded(i))) as image:
            if image.mode not in _PLAIN:
                yield f"{image.mode} image, converted to RGB"


def _refusal(conditions, record, i):
    """(kind, what it says) where a transform or a maker can do nothing with the record."""
    rng = np.random.default_rng(i)
    for step in (*conditions.framing, *conditions.makers):
        try:
            record = step(record, rng)
        except images.BadRecord as e:
            return f"refused by {type(step).__name__}", str(e)
    return None
