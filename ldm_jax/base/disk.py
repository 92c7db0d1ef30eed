"""Small files: written whole or not at all, read as JSON."""

import json
import os
import pathlib


def write_text(path: pathlib.Path, text: str):
    """Atomic, UTF-8."""
    write_atomic(path, lambda f: f.write(text.encode()))


def write_json(path: pathlib.Path, value):
    """Atomic, indented, with an end of line."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: pathlib.Path, lines):
    """Atomic, a JSON object a line."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_atomic(path: pathlib.Path, write):
    """Calls `write(file)` on a temporary file beside `path` and renames it into place."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, half a file would only take room
        raise


def read_jsonl(path) -> list[dict]:
    """The whole lines of a .jsonl file; a last line cut by a kill is left out."""
    path = pathlib.Path(path)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_json(path) -> dict:
    return json.loads(pathlib.Path(path).read_text())
