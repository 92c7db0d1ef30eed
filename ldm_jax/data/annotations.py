"""Annotation files of public data sets -> rows of metadata.jsonl (docs/data.md), one an image."""

import pathlib
from collections.abc import Iterator

from ldm_jax.base import disk, errors, registry, values
from ldm_jax.data import images

FORMATS = registry.Registry("annotation format")

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_ID = values.Either((values.Number(whole=True), values.Text()))
_SIZE = values.of(values.Positive)
_BOX, _SIZES = values.Several(values.Number(), 4, 4), values.Several(values.Number(0))
_LIST = values.Several(values.Mapping(None), most=2**26)
_CATEGORY = {"id": _ID, "name": values.Text()}
_IMAGE = {"id": _ID, "file_name": values.Text(), "width": _SIZE, "height": _SIZE}
_NOTE = {"image_id": _ID}


@FORMATS.register("coco")
def coco(path: str, captions: str = "", instances: str = "", maps: str = "") -> Iterator[dict]:
    """MS-COCO: captions_*.json, instances_*.json, and maps (PNG) in the folder path/maps.

    Boxes of crowds are left out, and so are images that are not in `path`.
    """
    if maps:
        _check_inside("--maps", maps)
    rows = {}
    for file in filter(None, (captions, instances)):
        given = disk.read_json(file)
        names = {c["id"]: c["name"] for c in _listed(file, given, "categories", _CATEGORY).values()}
        sizes = {}
        for where, about in _listed(file, given, "images", _IMAGE).items():
            _check_inside(f"{where}.file_name", about["file_name"])
            if about["id"] in sizes:
                raise errors.UsageError(f"{where}.id={about['id']} is there twice: mend the file.")
            sizes[about["id"]] = about["file_name"], about["width"], about["height"]
            rows.setdefault(about["file_name"], {"file": about["file_name"]})
        for where, note in _listed(file, given, "annotations", _NOTE).items():
            name, width, height = _entry(f"{where}.image_id", note["image_id"], sizes)
            row = rows[name]
            if "caption" in note:
                values.check(f"{where}.caption", note["caption"], values.Text(lines=True))
                row.setdefault("captions", []).append(note["caption"].strip())
            elif not note.get("iscrowd"):
                values.check(f"{where}.bbox", note.get("bbox"), _BOX)
                x, y, w, h = note["bbox"]
                values.check(f"{where}.bbox: its width and height", (w, h), _SIZES)
                kind = _entry(f"{where}.category_id", note.get("category_id"), names)
                box = [x / width, y / height, (x + w) / width, (y + h) / height]
                row.setdefault("boxes", []).append([round(v, 5) for v in box])
                row.setdefault("box_labels", []).append(kind)
    for name, row in sorted(rows.items()):
        if maps:
            row["segmentation"] = f"{maps}/{pathlib.Path(name).stem}.png"
        if (pathlib.Path(path) / name).is_file():
            yield row


@FORMATS.register("openimages")
def openimages(path: str, boxes: str, classes: str) -> Iterator[dict]:
    """OpenImages: *-annotations-bbox.csv and class-descriptions-boxable.csv; images ID.jpg."""
    files = [file for file in pathlib.Path(path).iterdir() if images.is_image_name(file.name)]
    here = {file.stem: file.name for file in files}
    names = {}
    for where, cells in disk.read_rows(classes):
        if len(cells) < 2:
            raise errors.UsageError(f"{where}: has not 2 cells, a label and its name: mend it.")
        names[cells[0]] = cells[1]
    rows = {}
    for where, note in disk.read_table(boxes, "ImageID", "LabelName", *_CORNERS):
        if name := here.get(note["ImageID"]):
            row = rows.setdefault(name, {"file": name, "boxes": [], "box_labels": []})
            box = [_share(f"{where}: {corner}", note[corner]) for corner in _CORNERS]
            if box[2] < box[0] or box[3] < box[1]:
                raise errors.UsageError(f"{where}: a box that ends before it begins: mend it.")
            row["boxes"].append(box)
            row["box_labels"].append(_entry(f"{where}: LabelName", note["LabelName"], names))
    yield from (rows[name] for name in sorted(rows))


def _listed(file: str, given: dict, key: str, kinds: dict) -> dict[str, dict]:
    """{where: entry} of a list in a COCO file, with the values of `kinds` checked."""
    found = given.get(key, [] if key == "categories" else None)
    values.check(f"{file}: {key}", found, _LIST)
    where = {f"{file}: {key}[{i}]": entry for i, entry in enumerate(found)}
    for place, entry in where.items():
        for name, kind in kinds.items():
            values.check(f"{place}.{name}", entry.get(name), kind)
    return where


def _entry(where: str, key, found: dict):
    """found[key]; a UsageError where it is not there."""
    if not isinstance(key, (str, int)) or key not in found:
        raise errors.UsageError(f"{where}={values.shown(key)} is not listed: mend the file.")
    return found[key]


def _check_inside(where: str, name: str):
    """Raises UsageError for a name that leads out of the folder of the images."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise errors.UsageError(f"{where}={values.shown(name)} is not inside of --path.")


def _share(where: str, text: str) -> float:
    """A number in [0, 1] of a table."""
    try:
        found = float(text)
    except ValueError:
        found = text
    values.check(where, found, values.Number(0, 1))
    return found
