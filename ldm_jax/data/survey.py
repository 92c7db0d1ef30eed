"""Reads a data set as training would, and counts what is wrong with its records."""

import collections
import concurrent.futures
import io

import numpy as np
from PIL import Image

from ldm_jax.data import images

EXAMPLES = 3
# PIL's names of the modes that become RGB without loss. Images of other modes are reported.
_PLAIN = ("RGB", None)


def survey(source, conditions, size: int, indices, threads: int) -> dict:
    """What is to be said of the records with these indices.

    conditions: a data.conditions.Conditions, whose makers report what they find; size: pixels that
    the short side should have.

    Returns {"replaced": how many records training would replace by others, "with": {field: how many
    records have it}, "found": {kind of finding: {"count", "examples": the first ones}}}.
    """
    replaced, fields, found = 0, collections.Counter(), {}
    look = lambda i: _look(source, conditions, size, int(i))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for has, notes, refused in pool.map(look, indices):
            replaced += refused
            fields.update(has)
            for kind, example in notes:
                entry = found.setdefault(kind, {"count": 0, "examples": []})
                entry["count"] += 1
                if len(entry["examples"]) < EXAMPLES:
                    entry["examples"].append(example)
    return {"replaced": replaced, "with": dict(fields), "found": found}


def _look(source, conditions, size, i):
    """(fields, [(kind of finding, example)], whether training would replace it) of record i."""
    name, rng = source.name(i), np.random.default_rng(i)
    try:
        record = source[i]
    except images.BadRecord as e:
        return [], [("unreadable", str(e))], True
    says = lambda value: value.strip() if isinstance(value, str) else np.size(value)
    fields = [key for key, value in record.items() if says(value)]
    notes = [(kind, name) for kind in _of_image(source, record["image"], size, i)]
    notes += [(kind, name) for maker in conditions.makers for kind in maker.findings(record)]
    for step in (*conditions.framing, *conditions.makers):
        try:
            record = step(record, rng)
        except images.BadRecord as e:
            return fields, [*notes, (f"refused by {type(step).__name__}", f"{name} {e}")], True
    return fields, notes, False


def _of_image(source, pixels, size, i):
    if min(pixels.shape[:2]) < size:
        yield f"smaller than {size} pixels, enlarged"
    if hasattr(source, "encoded"):
        with Image.open(io.BytesIO(source.encoded(i))) as image:
            if image.mode not in _PLAIN:
                yield f"{image.mode} image, converted to RGB"
