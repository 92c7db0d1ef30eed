"""Writes metadata.jsonl for public data sets: captions, boxes, maps.

    python -m ldm_jax.prepare_data coco --path=train2017 --captions=captions_train2017.json
        [--instances=instances_train2017.json --maps=FOLDER_IN_PATH]
    python -m ldm_jax.prepare_data openimages --path=IMAGES --boxes=FILE.csv --classes=FILE.csv

The images stay where they are; --config.data.source=folder with --config.data.path=PATH reads
them. docs/data.md says where each data set comes from.
"""

import inspect
import json
import pathlib

from ldm_jax import cli
from ldm_jax.base import disk, errors

VERBS = ("coco", "openimages")  # data/annotations.py reads them
FILES = dict(
    captions=cli.Text("COCO's file of captions.", ""),
    instances=cli.Text("COCO's file of instances, for boxes and maps.", ""),
    maps=cli.Text("Folder inside --path to write maps of COCO's instances to.", ""),
    boxes=cli.Text("Open Images' table of boxes.", ""),
    classes=cli.Text("Open Images' table of class names.", ""),
)
FLAGS = dict(path=cli.Text("Folder of the images."), **FILES)


def main(name, args, overrides):
    cli.refuse_overrides(overrides, "prepare_data has no config")
    from ldm_jax.data import annotations

    read = annotations.FORMATS.get(name)
    cli.require(args, "path")
    wanted = inspect.signature(read).parameters
    given = {file: args[file].value for file in FILES if args[file].value}
    if unknown := sorted(given.keys() - set(wanted)):
        raise errors.UsageError(f"--{unknown[0]} is not a flag of {name}.")
    cli.require(args, *(n for n, p in wanted.items() if p.default is inspect.Parameter.empty))
    if not pathlib.Path(args.path).is_dir():
        raise errors.UsageError(f"--path={args.path} is not a folder.")
    cli.check_writable("--path", args.path)
    lines = [json.dumps(row) + "\n" for row in read(args.path, **given)]
    if not lines:
        raise errors.UsageError(f"--path={args.path} holds no image of these annotations.")
    file = pathlib.Path(args.path) / "metadata.jsonl"
    disk.write_text(file, "".join(lines))
    print(f"{len(lines):,} rows: {file}")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
