"""The JSON files of Hugging Face's folders, read and written."""

import json
import pathlib

from ldm_jax.base import errors


def read_json(path: pathlib.Path) -> dict:
    """Raises UsageError where there is no such file, or where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise errors.UsageError(f"{path} cannot be read ({e.strerror}).") from e
    except ValueError as e:
        raise errors.UsageError(f"{path} is not JSON ({e}).") from e


def write_json(path: pathlib.Path, content):
    """Sorted and indented; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
