"""Image files as sources: a folder, and tar archives that are read in place."""

import os
import pathlib
import tarfile

import numpy as np

from ldm_jax.base import disk, errors
from ldm_jax.data import images, metadata, sources

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Files(sources.Source):
    """Named, encoded images with what `metadata.jsonl` says of them. A subclass reads them.

    With a `metadata.jsonl` the records are its rows (`file`, `caption`, `label`, `split`, `boxes`,
    ...); without, all images that were found.
    """

    def __init__(self, kind, path, found, beside, size, *, strict, label_field, split):
        """found: names of images; beside: the folder of metadata.jsonl; size: name -> bytes of the
        image; strict: whether every row must have its image."""
        rows = metadata.read_rows(beside / "metadata.jsonl", label_field)
        names = _listed(found, rows, path, strict)
        for name in names:
            if not name.isprintable():
                raise errors.UsageError(
                    f"Data path {path!r}: the name {name!r} is not UTF-8 in one line; rename it."
                )
        labels = metadata.labels(names, rows, label_field)
        self.box_classes = tuple(metadata.box_names(rows.values()))
        # Classes are numbered over all splits, so that training and validation agree on the ids.
        ids, self.classes = metadata.class_ids(labels) if labels else (None, ())
        chosen = metadata.in_split(names, rows, split)
        self._names = [names[i] for i in chosen]
        self._rows = [rows.get(name, {}) for name in self._names]
        self._ids = None if ids is None else ids[chosen]
        self.fingerprint = sources.digest(
            kind,
            split,
            "\n".join(self.classes),
            b"" if ids is None else self._ids.tobytes(),
            *(f"{name} {size(name)} {row}" for name, row in zip(self._names, self._rows)),
        )

    def __len__(self):
        return len(self._names)

    def name(self, i):
        return self._names[i]

    def __getitem__(self, i):
        record = {"image": images.decode(self.encoded(i), self._names[i])}
        if self._ids is not None:
            record["class"] = self._ids[i]
        if file := self._rows[i].get("segmentation"):
            try:
                record["segmentation"] = images.decode_map(self._read_map(file), file)
            except (OSError, KeyError) as e:
                raise images.BadRecord(f"{self._names[i]}: its map {file} is not there.") from e
        return record | metadata.fields(self._rows[i], self.box_classes)

    def encoded(self, i: int) -> bytes:
        """The file's own bytes."""
        try:
            return self._read(i)
        except OSError as e:
            raise images.BadRecord(f"{self._names[i]}: cannot be read ({e}).") from e


@sources.SOURCES.register("folder")
class Folder(Files):
    """A folder of images, flat or a folder per class (optionally under train/, val/, test/).

    Hidden files and folders are left out. `metadata.jsonl` may lie in the folder.
    """

    def __init__(self, path: str, label_field: str = "label", split: str = ""):
        self._root = root = pathlib.Path(path)
        if not root.is_dir():
            raise errors.UsageError(
                f"Data path {path!r} is not a folder; give one that holds images."
            )
        files = (pathlib.Path(parent, name) for parent, _, names in os.walk(root) for name in names)
        found = filter(images.is_image_name, (file.relative_to(root).as_posix() for file in files))
        how = dict(strict=True, label_field=label_field, split=split)

        def size(name):
            with disk.reading(f"Data path {path!r}: {name}"):
                return disk.check_regular(root / name)

        super().__init__("folder", path, set(found), root, size, **how)

    def _read(self, i):
        return self._read_map(self._names[i])

    def _read_map(self, name):
        disk.check_regular(self._root / name)
        return (self._root / name).read_bytes()


@sources.SOURCES.register("tar")
class Tar(Files):
    """One uncompressed .tar, or a folder of them, read in place; `metadata.jsonl` may lie beside.

    Members are found by one walk over the headers (3,670 of them: about 0.2 s) and then read by
    offset; nothing is unpacked. Labels, splits and captions work as in `folder`.
    """

    def __init__(self, path: str, label_field: str = "label", split: str = ""):
        root = pathlib.Path(path)
        self._archives = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        if not self._archives or not self._archives[0].is_file():
            raise errors.UsageError(
                f"Data path {path!r}: no .tar file there; give one or its folder."
            )
        members = {}  # {name: (number of the archive, offset, bytes)}
        for number, archive in enumerate(self._archives):
            members |= {name: (number, *where) for name, where in _index(archive).items()}
        # A single archive may hold only some of the rows of the metadata.jsonl beside it.
        how = dict(strict=root.is_dir(), label_field=label_field, split=split)
        size = lambda name: members[name][2]
        super().__init__("tar", path, members, self._archives[0].parent, size, **how)
        self._where = np.array([members[name] for name in self._names], np.int64)
        maps = (row["segmentation"] for row in self._rows if "segmentation" in row)
        self._maps = {name: members[name] for name in maps if name in members}
        self._open = {}

    def __getstate__(self):
        return self.__dict__ | {"_open": {}}

    def _read(self, i):
        return self._read_at(*map(int, self._where[i]))

    def _read_map(self, name):
        return self._read_at(*self._maps[name])

    def _read_at(self, number: int, offset: int, size: int) -> bytes:
        if number not in self._open:
            # Two reader threads may get here at once: the first one's file stays.
            self._open.setdefault(number, self._archives[number].open("rb", buffering=0))
        # pread has no shared file position, so threads need no lock.
        data = os.pread(self._open[number].fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self._archives[number].name} ends after {len(data)} of {size} bytes")
        return data


def _index(archive: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Image members of an archive: `{name: (offset, size)}` of their bytes."""
    with disk.reading(archive):
        disk.check_regular(archive)
        with archive.open("rb") as file:
            head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise errors.UsageError(
                f"{archive} is compressed ({name}), so its members cannot be read in place; "
                "decompress it first."
            )
    found = {}
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                name = member.name.removeprefix("./")
                if member.isreg() and not member.issparse() and images.is_image_name(name):
                    found[name] = (member.offset_data, member.size)
    except (tarfile.TarError, UnicodeError, OSError) as e:
        raise errors.UsageError(f"{archive} is not a whole tar file ({e}); make it again.") from e
    return found


def _listed(found, rows: dict, path, strict: bool) -> list[str]:
    """Sorted names of the images to use: those that metadata lists, or all if there is none."""
    if not found:
        raise errors.UsageError(
            f"Data path {path!r} holds no images ({', '.join(images.EXTENSIONS)}); check it."
        )
    missing = [name for name in rows if name not in found]
    if rows and (len(missing) == len(rows) or (strict and missing)):
        raise errors.UsageError(
            f"Data path {path!r}: metadata.jsonl lists {len(missing)} file(s) that are not there, "
            f"e.g. {missing[0]}; add them or drop their rows."
        )
    return sorted(name for name in found if name in rows) if rows else sorted(found)
