"""Files beside an image that say what it shows: KEY.txt, KEY.json and KEY.cls beside KEY.jpg.

So captions lie in folders that people make and in the tars of WebDataset and img2dataset. KEY.txt
is the caption; KEY.cls the class, an id or a name; KEY.json may hold both under the keys of a row
of metadata.jsonl. Captions of one image that differ are refused, unless `caption_field` says which
to take: a key of metadata.jsonl and KEY.json, in this order, or .txt for the file of that ending.
"""

import itertools
import json
import os

from ldm_jax.base import errors, values
from ldm_jax.data import metadata

ENDINGS = (".txt", ".json", ".cls")
_METADATA, _CAPTIONS = "the metadata", ("caption", "captions")


def split(name: str) -> tuple[str, str]:
    """The key of a file and its ending: "a/b.JPG" -> ("a/b", ".jpg")."""
    key, ending = os.path.splitext(name)
    return key, ending.lower()


def merged(where: str, rows: dict, beside: dict, read, columns: metadata.Columns) -> dict:
    """{image: row}: the rows of the metadata, with what the files beside the images add.

    Args:
      where: the data, for messages.
      rows: {image: row} of the metadata.
      beside: {image: {ending: what `read` takes}} of every image.
      read: gives the bytes of such a file.

    Raises:
      UsageError: a file that cannot be read, or captions of an image that differ.
    """
    found = dict(rows)
    for name, files in beside.items():
        at = f"{where}: {name}"
        texts = {ending: _text(at, ending, files, read) for ending in files}
        said = _said(at, texts, columns)
        first = (".json", ".txt") if columns.caption else (".txt", ".json")
        order = {_METADATA: rows.get(name, {})} | {e: said.get(e, {}) for e in (".cls", *first)}
        if not columns.caption:
            _refuse_unless_same(at, {place: captions(row) for place, row in order.items()})
        row = {}
        for given in reversed(order.values()):
            if captions(given):  # in the place of what was said, as a whole
                row = {key: value for key, value in row.items() if key not in _CAPTIONS}
            row |= given
        if row:
            found[name] = row
    return found


def _refuse_unless_same(where: str, said: dict):
    """said: {place: captions} of one image. Those of one place may be among those of another."""
    given = [(place, {text.strip() for text in texts}) for place, texts in said.items() if texts]
    for (one, ours), (two, theirs) in itertools.combinations(given, 2):
        if not (ours <= theirs or theirs <= ours):
            raise errors.UsageError(
                f"{where}: {one} says {_shown(ours)}, {two} {_shown(theirs)}: remove one of them, "
                "or choose for all images: --config.data.caption_field=.txt takes the files of "
                "that ending, and a key (caption, text) what is said under it."
            )


def _shown(texts: set) -> str:
    return " and ".join(repr(values.shown(text)) for text in sorted(texts)[:2])


def _text(where, ending, files, read) -> str:
    try:
        return read(files[ending]).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise errors.UsageError(
            f"{where}: the {ending} beside it cannot be read ({errors.reason(e)}): mend or "
            "remove it."
        ) from e


def _said(where, texts: dict, columns) -> dict[str, dict]:
    """{ending: the row that an image's file of that ending makes}."""
    rows = {}
    if ".json" in texts:
        try:
            given = json.loads(texts[".json"])
            wanted = {columns.label, columns.caption, "caption", "captions", "text"}
            given = {key: given[key] for key in wanted & given.keys()}
        except (ValueError, AttributeError, RecursionError) as e:
            raise errors.UsageError(
                f"{where}: the .json beside it is no JSON object: mend or remove it."
            ) from e
        rows[".json"] = metadata.row(f"{where}: the .json beside it", given, columns)
    if ".txt" in texts:
        rows[".txt"] = {"caption": texts[".txt"].strip()}
    if ".cls" in texts:
        label = texts[".cls"].strip()
        given = {columns.label: int(label) if label.isdecimal() else label}
        rows[".cls"] = metadata.row(f"{where}: the .cls beside it", given, columns)
    return rows


def captions(row) -> list[str]:
    """Those of a row of metadata."""
    return [row["caption"]] if "caption" in row else list(row.get("captions", ()))
