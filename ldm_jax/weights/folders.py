"""The JSON files of Hugging Face's folders, read and written."""

import json
import pathlib

from ldm_jax.base import disk


def read_json(path: pathlib.Path) -> dict:
    """Raises UsageError where there is no such file, or where it is no dict in JSON."""
    return disk.read_json(path)


def write_json(path: pathlib.Path, content):
    """Sorted and indented; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
