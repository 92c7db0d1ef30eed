"""What a set of image files says beside its pixels: metadata.jsonl or .csv, folders, splits."""

import dataclasses
import logging
import re

import numpy as np

from ldm_jax.base import disk, errors, values

logger = logging.getLogger(__name__)

_SPLIT_FOLDER = re.compile(r"(train|training|val|valid|validation|test)[-_]?\d*")  # val2017 too
MOST_CLASSES = 2**20  # every id up to the largest is a class with a name
_TEXT, _NAME = values.Text(lines=True), values.Text()
_LABEL = values.Either((_TEXT, values.Number(0, MOST_CLASSES - 1, whole=True)))
_BOX = values.Several(values.Number(), 4, 4)
# Fields of a row that records carry.
_FIELDS = {
    "caption": _TEXT,
    "captions": values.Several(_TEXT),
    "boxes": values.Several(_BOX),
    "box_labels": values.Several(_LABEL),
    "objects": values.Several(values.Fields({"category": _LABEL, "bbox_xywh_norm": _BOX})),
    "split": _NAME,
    "segmentation": _NAME,
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The keys of a row that hold what data sets call by many names.

    label: of the class. caption: of the caption or captions; "" takes caption, captions or text.
    """

    label: str = "label"
    caption: str = ""


def read_rows(folder, columns: Columns) -> dict[str, dict]:
    """metadata.jsonl of a folder, else its metadata.csv -> `{file: row}`; without them no rows.

    folder: a pathlib.Path or a places.Bucket.
    A row names its image as `file` or `file_name`.
    """
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if disk.there(lines) and disk.there(table):
        logger.warning("%s is read, and metadata.csv beside it is not.", lines)
    if disk.there(lines):
        given = _lines(lines)
    else:
        given = _table(table, columns) if disk.there(table) else ()
    rows = {}
    for where, found in given:
        file = found.get("file") or found.get("file_name")
        values.check(f"{where}: file", file, _NAME)
        rows[file] = row(where, found, columns)
    return rows


def _lines(path):
    """(where, {key: value}) of every line of a metadata.jsonl."""
    with disk.opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}:{number}", _object(f"{path}:{number}", line)


def _object(where: str, line: bytes) -> dict:
    try:
        found = disk.parse_json(line.decode())
        found.get("file") or found["file_name"]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as e:
        reason = "is nested too deep" if isinstance(e, RecursionError) else repr(e)
        raise errors.UsageError(
            f"{where}: not a JSON object with a 'file' key ({reason[:100]}); mend this line."
        ) from e
    return found


def _table(path, columns):
    """(where, {column: text}) of every row of a metadata.csv, with labels that are ids as numbers.

    An empty cell is no value, but an empty caption is one.
    """
    rows = list(disk.read_table(path))
    names = rows[0][1] if rows else {}
    if not {"file", "file_name"} & names.keys():
        raise errors.UsageError(
            f"{path} has no column file_name (it has {values.shown(', '.join(names)) or 'none'}); "
            "name the column of the images so."
        )
    texts = (columns.caption,) if columns.caption else ("caption", "text")
    of_class = [found.get(columns.label) for _, found in rows]
    ids = all((label or "").isdecimal() for label in of_class)
    for where, found in rows:
        found = {key: text for key, text in found.items() if text or key in texts}
        yield where, found | ({columns.label: int(found[columns.label])} if ids else {})


def row(where: str, given: dict, columns: Columns) -> dict:
    """The fields of a row that records carry, each of its type; the rest is dropped."""
    kinds = _FIELDS | {columns.label: _LABEL}
    found = {key: given[key] for key in kinds if given.get(key) is not None}
    other = columns.caption or "text"
    if columns.caption:
        found = {key: value for key, value in found.items() if key not in ("caption", "captions")}
    several = "caption" in found or "captions" in found
    if given.get(other) is not None and other != columns.label and not several:
        text = given[other]
        found["captions" if isinstance(text, (list, tuple)) else "caption"] = text
    for key, value in found.items():
        values.check(f"{where}: {key}", value, kinds[key])
    return found


def labels(names: list[str], rows: dict, columns: Columns) -> list | None:
    """The label of every name: from the rows, else from a folder per class; None if unlabelled."""
    label_field = columns.label
    found = [rows.get(name, {}).get(label_field) for name in names]
    if any(label is not None for label in found):
        if None in found:
            raise errors.UsageError(
                f"label_field={label_field!r}: {found.count(None)} of {len(names)} records have "
                f"none, e.g. {names[found.index(None)]}; label all, or choose another field."
            )
        return found
    if label_field != "label":
        raise errors.UsageError(
            f"label_field={label_field!r}: no row of the metadata has this field; check its name."
        )
    return _folder_labels(names)


def check_captions(rows: dict, columns: Columns):
    """Raises UsageError where a key for captions is given and no row has it."""
    if columns.caption and not any({"caption", "captions"} & r.keys() for r in rows.values()):
        raise errors.UsageError(
            f"caption_field={columns.caption!r}: no row of the metadata has this field; check its "
            "name."
        )


def _folder_labels(names: list[str]) -> list[str] | None:
    """`[train/]daisy/x.jpg` -> daisy. A single folder for everything says nothing: None."""
    parts = [name.split("/")[:-1] for name in names]
    if all(p and _SPLIT_FOLDER.fullmatch(p[0]) for p in parts):
        parts = [p[1:] for p in parts]
    # A folder that wraps all others (as in many archives) is no class either.
    while all(parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return [p[0] for p in parts] if all(parts) else None


def class_ids(given: list) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels -> (ids int32 [n], class names): sorted names; integers from 0 up are ids already."""
    if all(isinstance(v, int) for v in given):
        return np.array(given, np.int32), tuple(str(i) for i in range(max(given, default=-1) + 1))
    if numbers := [v for v in given if isinstance(v, int)]:
        raise errors.UsageError(
            f"Some labels are ids, {numbers[0]} for instance, and others are names: give one kind."
        )
    classes, ids = np.unique(given, return_inverse=True)
    return ids.astype(np.int32), tuple(classes.tolist())


def in_split(names: list[str], rows: dict, split: str) -> np.ndarray:
    """Indices of the records in `split`: by the rows' field, else by the top folder's name."""
    if not split:
        return np.arange(len(names))
    found = [rows.get(name, {}).get("split") for name in names]
    if not any(found):
        tops = [name.split("/")[0] if "/" in name else "" for name in names]
        found = [top if _SPLIT_FOLDER.fullmatch(top) else None for top in tops]
    chosen = np.flatnonzero([f == split for f in found])
    if not len(chosen):
        known = sorted({str(f) for f in found if f})
        raise errors.UsageError(
            f"split={split!r}: no such split; available: "
            f"{', '.join(known) or 'none (leave it out)'}{errors.nearest(split, known)}"
        )
    return chosen


def box_names(rows) -> list[str]:
    """The sorted names of everything that any row puts in a box."""
    names = {str(n) for row in rows for n in row.get("box_labels", ())}
    return sorted(names | {str(o["category"]) for row in rows for o in row.get("objects", ())})


def fields(row: dict, box_classes: tuple[str, ...]) -> dict:
    """A row -> the record's caption(s) and boxes.

    Boxes are `boxes` [[x0, y0, x1, y1], ...] in [0, 1] with `box_labels`, or COCO-like `objects`
    with `category` and `bbox_xywh_norm`.
    """
    record = {}
    captions = [row["caption"]] if "caption" in row else list(row.get("captions", ()))
    if captions:
        record["caption"] = captions[0]
    if len(captions) > 1:
        record["captions"] = captions
    if "boxes" in row:
        boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
        found = [str(n) for n in row.get("box_labels", ())]
    elif "objects" in row:
        boxes = np.array([o["bbox_xywh_norm"] for o in row["objects"]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = [str(o["category"]) for o in row["objects"]]
    else:
        return record
    record["boxes"] = boxes.clip(0, 1)
    if len(found) == len(boxes):
        record["box_class"] = np.array([box_classes.index(n) for n in found], np.int32)
    return record
