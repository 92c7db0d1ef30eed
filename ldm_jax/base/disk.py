"""Small files: written whole or not at all; read with a line that says what is wrong with them."""

import contextlib
import json
import os
import pathlib
import stat
import zipfile

import numpy as np

from ldm_jax.base import errors, values

DICT = values.Mapping(None)
MOST = 2**30  # bytes of a file that is read as a whole
MOST_ARRAYS = 2**36  # bytes of the arrays of an .npz


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


@contextlib.contextmanager
def reading(path):
    """Makes a UsageError, which names the file, of whatever its content is guilty of."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as e:
        if isinstance(e, errors.UsageError):
            raise
        reason = e.strerror if isinstance(e, OSError) and e.strerror else errors.reason(e)
        raise errors.UsageError(f"{path} cannot be read ({reason}): mend or replace it.") from e
    except (RecursionError, MemoryError, zipfile.BadZipFile) as e:
        what = f"{type(e).__name__}: {errors.reason(e)}"
        raise errors.UsageError(f"{path} cannot be read ({what}): mend or replace it.") from e


def check_regular(path, most: int | None = None) -> int:
    """The bytes of a file; raises OSError for a pipe, a device, a folder, and beyond `most`."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file")
    if most is not None and found.st_size > most:
        raise OSError(f"{path} has {found.st_size} bytes, more than {most}")
    return found.st_size


def read_bytes(path) -> bytes:
    """The content of a regular file; anything else is a UsageError."""
    with reading(path):
        check_regular(path, MOST)
        return pathlib.Path(path).read_bytes()


def read_text(path) -> str:
    """The content of a file in UTF-8; anything else is a UsageError."""
    with reading(path):
        return read_bytes(path).decode()


def read_json(path, kind: values.Type = DICT):
    """The value in a JSON file, by default a dict; anything else is a UsageError."""
    text = read_text(path)
    with reading(path):
        found = json.loads(text)
    values.check(f"{path}: its content", found, kind)
    return found


def read_jsonl(path) -> list[dict]:
    """The dicts in the whole lines of a .jsonl file; a last line cut by a kill is left out.

    Another line that is none is a UsageError; without a file there are no lines.
    """
    path = pathlib.Path(path)
    lines = read_text(path).split("\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        with reading(f"{path}:{number}"):
            found.append(json.loads(line))
        values.check(f"{path}:{number}", found[-1], DICT)
    return found


@contextlib.contextmanager
def arrays(path):
    """The open .npz at `path`; what is wrong with it, or goes wrong in the block, is a UsageError.

    Nothing is unpickled, and what claims to be larger than MOST_ARRAYS is refused.
    """
    with reading(path):
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_ARRAYS:
                raise ValueError(f"its arrays have more than {MOST_ARRAYS} bytes")
        with np.load(path, allow_pickle=False) as found:
            yield found
