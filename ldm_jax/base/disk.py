"""Small files: written whole or not at all; read with a line that says what is wrong with them."""

import contextlib
import csv
import errno
import io
import json
import os
import pathlib
import stat
import zipfile
from collections.abc import Iterator

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
    with writing(temporary, path):
        with open(temporary, "wb") as f:
            write(f)
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(part, path):
    """Makes an OSError that names `path` of whatever says that it cannot be written.

    part: the file that is being written; half of it would only take room on a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as e:  # the latter of writers in C++; numpy gives no number
        if isinstance(e, errors.RunError):
            raise
        pathlib.Path(part).unlink(missing_ok=True)
        number, said = getattr(e, "errno", None), getattr(e, "strerror", None)
        file = getattr(e, "filename", None) or path
        said = said or f"not written whole ({errors.reason(e)})"
        raise OSError(number or errno.EIO, said, str(file)) from e


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


def there(path) -> bool:
    """Whether something has this name, be it a broken link: what it is, reading it says.

    path: also an object of a bucket, which has no links.
    """
    if not isinstance(path, str | os.PathLike):
        return path.exists()
    try:
        return bool(os.lstat(path))
    except (OSError, ValueError) as e:
        return isinstance(e, PermissionError)  # of a folder that hides what is in it


def check_regular(path, most: int | None = None) -> int:
    """The bytes of a file; raises OSError for a pipe, a device, a folder, and beyond `most`."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file")
    if most is not None and found.st_size > most:
        raise OSError(f"{path} has {found.st_size} bytes, more than {most}")
    return found.st_size


@contextlib.contextmanager
def opened(path, most: int | None = None):
    """A regular file, or an object of a bucket, open for its bytes; anything else is a UsageError.

    So is what goes wrong in the block.
    """
    with reading(path):
        if isinstance(path, str | os.PathLike):
            path = pathlib.Path(path)
            check_regular(path, most)
        with path.open("rb") as file:
            yield file


def read_bytes(path) -> bytes:
    """The content of a regular file; anything else is a UsageError."""
    with opened(path, MOST) as file:
        return file.read()


def read_text(path) -> str:
    """The content of a file in UTF-8; anything else is a UsageError."""
    with reading(path):
        return read_bytes(path).decode()


def parse_json(text):
    """The value of a JSON text.

    A key that is there twice is a ValueError, and so is half of a surrogate pair (\\ud800), which
    no file in UTF-8 could hold.
    """

    def of(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"{max(keys, key=keys.count)!r} is there twice")
        return found

    found = json.loads(text, object_pairs_hook=of)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return found


def read_rows(path) -> Iterator[tuple[str, list[str]]]:
    """(FILE:LINE, cells) of every row of a .csv in UTF-8; what is none is a UsageError."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, strict=True)
        try:
            yield from ((f"{path}:{rows.line_num}", cells) for cells in rows if cells)
        except csv.Error as e:
            raise errors.UsageError(f"{path}:{rows.line_num}: {e}; mend this line.") from e


def read_table(path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """As `read_rows`, {column: text} of each row after the first, which names the columns.

    columns: those that must be there.
    """
    rows = read_rows(path)
    _, names = next(rows, ("", []))
    if missing := [column for column in columns if column not in names]:
        has = values.shown(", ".join(names)) or "none"
        raise errors.UsageError(f"{path} has no column {missing[0]} (it has {has}): mend it.")
    if len({*names}) < len(names):
        twice = max(names, key=names.count)
        raise errors.UsageError(f"{path} has two columns {values.shown(twice)}: leave one out.")
    for where, cells in rows:
        if len(cells) != len(names):
            raise errors.UsageError(f"{where}: has not {len(names)} cells; mend this line.")
        yield where, dict(zip(names, cells))


def read_json(path, kind: values.Type = DICT):
    """The value in a JSON file, by default a dict; anything else is a UsageError."""
    text = read_text(path)
    with reading(path):
        found = parse_json(text)
    values.check(f"{path}: its content", found, kind)
    return found


def read_jsonl(path, kind: values.Type = DICT) -> list[dict]:
    """The dicts in the whole lines of a .jsonl file; a last line cut by a kill is left out.

    Another line that is not of this kind is a UsageError; without a file there are no lines.
    """
    lines = read_text(path).split("\n")[:-1] if there(path) else []
    found = []
    for number, line in enumerate(lines, 1):
        with reading(f"{path}:{number}"):
            found.append(parse_json(line))
        values.check(f"{path}:{number}", found[-1], kind)
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
