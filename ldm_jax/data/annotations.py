"""Annotation files of public data sets -> rows of metadata.jsonl (docs/data.md), one an image."""

import csv
import json
import pathlib
from collections.abc import Iterator

from ldm_jax.base import errors, registry
from ldm_jax.data import images

FORMATS = registry.Registry("annotation format")


@FORMATS.register("coco")
def coco(path: str, captions: str = "", instances: str = "", maps: str = "") -> Iterator[dict]:
    """MS-COCO: captions_*.json, instances_*.json, and maps (PNG) in the folder path/maps.

    Boxes of crowds are left out, and so are images that are not in `path`.
    """
    rows = {}
    for file in filter(None, (captions, instances)):
        try:
            given = json.loads(pathlib.Path(file).read_bytes())
        except (OSError, ValueError) as e:
            raise errors.UsageError(f"{file} cannot be read as JSON ({e}).") from e
        names = {c["id"]: c["name"] for c in given.get("categories", ())}
        sizes = {i["id"]: (i["file_name"], i["width"], i["height"]) for i in given["images"]}
        for name, _, _ in sizes.values():
            rows.setdefault(name, {"file": name})
        for note in given["annotations"]:
            name, width, height = sizes[note["image_id"]]
            row = rows[name]
            if "caption" in note:
                row.setdefault("captions", []).append(note["caption"].strip())
            elif not note.get("iscrowd"):
                x, y, w, h = note["bbox"]
                box = [x / width, y / height, (x + w) / width, (y + h) / height]
                row.setdefault("boxes", []).append([round(v, 5) for v in box])
                row.setdefault("box_labels", []).append(names[note["category_id"]])
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
    with open(classes, newline="", encoding="utf-8") as file:
        names = {row[0]: row[1] for row in csv.reader(file)}
    rows = {}
    with open(boxes, newline="", encoding="utf-8") as file:
        for note in csv.DictReader(file):
            if name := here.get(note["ImageID"]):
                row = rows.setdefault(name, {"file": name, "boxes": [], "box_labels": []})
                row["boxes"].append([float(note[k]) for k in ("XMin", "YMin", "XMax", "YMax")])
                row["box_labels"].append(names[note["LabelName"]])
    yield from (rows[name] for name in sorted(rows))
