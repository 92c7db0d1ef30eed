"""Writes metadata.jsonl for public data sets: captions, boxes and maps beside their images.

    python -m ldm_jax.prepare_data coco --path=train2017 --captions=captions_train2017.json
        [--instances=instances_train2017.json --maps=FOLDER_IN_PATH]
    python -m ldm_jax.prepare_data openimages --path=IMAGES --boxes=FILE.csv --classes=FILE.csv
    python -m ldm_jax.prepare_data shards --path=TARS

The images stay where they are; --config.data.source=folder (or tar) with --config.data.path=PATH
reads them. docs/data.md says where each data set comes from.
"""

import inspect
import json
import pathlib
import sys

from absl import flags

from ldm_jax import cli
from ldm_jax.base import disk, errors

FILES = ("captions", "instances", "maps", "boxes", "classes")


def define(values):
    flags.DEFINE_string("path", None, "folder of the images or tars", flag_values=values)
    for name in FILES:
        flags.DEFINE_string(name, "", "see above", flag_values=values)


def main(command, args, overrides):
    from ldm_jax.data import annotations

    read = annotations.FORMATS.get(command or "")
    if overrides:
        raise errors.UsageError("prepare_data has no config; --config.* is for training.")
    cli.require(args, "path")
    wanted = inspect.signature(read).parameters
    given = {name: value for name in FILES if (value := getattr(args, name))}
    if unknown := sorted(given.keys() - set(wanted)):
        raise errors.UsageError(f"--{unknown[0]} is not for {command}.")
    cli.require(args, *(n for n, p in wanted.items() if p.default is inspect.Parameter.empty))
    if not pathlib.Path(args.path).is_dir():
        raise errors.UsageError(f"--path={args.path} is not a folder.")
    cli.check_writable("--path", args.path)
    try:
        lines = [json.dumps(row) + "\n" for row in read(args.path, **given)]
    except (OSError, KeyError) as e:
        raise errors.UsageError(f"These are not the files of {command}: {e!r}.") from e
    if not lines:
        raise errors.UsageError(f"--path={args.path} holds no image of these annotations.")
    file = pathlib.Path(args.path) / "metadata.jsonl"
    disk.write_text(file, "".join(lines))
    print(f"{len(lines):,} rows: {file}")


if __name__ == "__main__":
    sys.exit(cli.run_command(__doc__, define, main, sys.argv[1:]))
