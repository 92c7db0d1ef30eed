"""Files beside an image that say what it shows: KEY.txt, KEY.json and KEY.cls beside KEY.jpg.

So captions lie in folders that people make and in the tars of WebDataset and img2dataset. KEY.txt
is the caption; KEY.cls the class, an id or a name; KEY.json may hold both under the keys of a row
of metadata.jsonl. What metadata.jsonl says goes before them, and KEY.txt before KEY.json.
"""

import json
import logging
import os

from ldm_jax.base import errors
from ldm_jax.data import metadata

logger = logging.getLogger(__name__)

ENDINGS = (".txt", ".json", ".cls")


def split(name: str) -> tuple[str, str]:
    """The key of a file and its ending: "a/b.JPG" -> ("a/b", ".jpg")."""
    key, ending = os.path.splitext(name)
    return key, ending.lower()


def merged(where: str, rows: dict, beside: dict, read, columns: metadata.Columns) -> dict:
    """{image: row}: the rows of the metadata, with what the files beside the images add.

    Where captions of an image differ, one line tells of the first such image, and of how many.

    Args:
      where: the data, for messages.
      rows: {image: row} of the metadata.
      beside: {image: {ending: what `read` takes}} of every image.
      read: gives the bytes of such a file.
    """
    found, differing = dict(rows), []
    for name, files in beside.items():
        texts = {ending: _text(f"{where}: {name}", ending, files, read) for ending in files}
        said, differs = _row(f"{where}: {name}", texts, columns)
        own = rows.get(name, {})
        if captions(own):
            differs = differs or (bool(captions(said)) and not _same(own, said))
            said = {key: value for key, value in said.items() if key not in ("caption", "captions")}
        if differs:
            differing.append(name)
        if said:
            found[name] = said | own
    if differing:
        logger.warning(
            "%s: %d image(s) have several captions that differ, e.g. %s: metadata.jsonl (or .csv) "
            "counts before .txt, and .txt before .json.",
            where,
            len(differing),
            differing[0],
        )
    return found


def _text(where, ending, files, read) -> str:
    try:
        return read(files[ending]).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise errors.UsageError(
            f"{where}: the {ending} beside it cannot be read ({errors.reason(e)}): mend or "
            "remove it."
        ) from e


def _row(where, texts: dict, columns) -> tuple[dict, bool]:
    """The row that an image's files make, and whether two of them differ in its caption."""
    row, differs = {}, False
    if ".json" in texts:
        try:
            given = json.loads(texts[".json"])
            wanted = {columns.label, columns.caption, "caption", "captions", "text"}
            given = {key: given[key] for key in wanted & given.keys()}
        except (ValueError, AttributeError, RecursionError) as e:
            raise errors.UsageError(
                f"{where}: the .json beside it is no JSON object: mend or remove it."
            ) from e
        row = metadata.row(f"{where}: the .json beside it", given, columns)
    if ".cls" in texts:
        label = texts[".cls"].strip()
        given = {columns.label: int(label) if label.isdecimal() else label}
        row |= metadata.row(f"{where}: the .cls beside it", given, columns)
    if ".txt" in texts and not (columns.caption and captions(row)):
        said = {"caption": texts[".txt"].strip()}
        differs = bool(captions(row)) and not _same(said, row)
        row = {key: value for key, value in row.items() if key != "captions"} | said
    return row, differs


def captions(row) -> list[str]:
    """Those of a row of metadata."""
    return [row["caption"]] if "caption" in row else list(row.get("captions", ()))


def _same(row, other) -> bool:
    """Whether the captions of one row are among those of the other."""
    one, two = ({text.strip() for text in captions(r)} for r in (row, other))
    return one <= two or two <= one
