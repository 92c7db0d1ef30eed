"""Image files as sources: a folder, and tar archives that are read in place, here or on gs://."""

import collections
import tarfile

import numpy as np

from ldm_jax.base import disk, errors
from ldm_jax.data import images, metadata, places, sidecars, sources

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Files(sources.Source):
    """Named, encoded images with what their metadata and the files beside them say of them.

    With a `metadata.jsonl` or `metadata.csv` the records are its rows (`file`, `caption`, `label`,
    `split`, `boxes`, ...); without, all images that were found. A subclass reads them.
    """

    def __init__(self, kind, path, found, place, size, beside, read, *, strict, columns, split):
        """found: names of images; place: of the metadata; size: name -> bytes of the image;
        beside, read: see sidecars.merged; strict: whether every row must have its image."""
        rows = metadata.read_rows(place.folder, columns)
        names = _listed(found, rows, path, strict)
        beside = {name: beside[name] for name in names if beside.get(name)}
        read, beside = place.ahead(read, beside)
        rows = sidecars.merged(f"Data path {path!r}", rows, beside, read, columns)
        metadata.check_captions(rows, columns)
        for name in names:
            if not name.isprintable():
                raise errors.UsageError(
                    f"Data path {path!r}: the name {name!r} is not UTF-8 in one line; rename it."
                )
        labels = metadata.labels(names, rows, columns)
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

    def captions(self, i: int) -> list[str]:
        """What is said of an image, which is not read for it."""
        return sidecars.captions(self._rows[i])

    def encoded(self, i: int) -> bytes:
        """The file's own bytes."""
        try:
            return self._read(i)
        except OSError as e:
            raise images.BadRecord(f"{self._names[i]}: cannot be read ({e}).") from e


@sources.SOURCES.register("folder")
class Folder(Files):
    """A folder of images, flat or a folder per class (optionally under train/, val/, test/).

    Hidden files and folders are left out. A metadata.jsonl or metadata.csv may lie in the folder,
    and KEY.txt, .json or .cls beside KEY.jpg.
    """

    def __init__(
        self,
        path: str,
        label_field: str = "label",
        caption_field: str = "",
        split: str = "",
        bucket_cache: float = places.CACHE,
    ):
        self._place = place = places.place(path, bucket_cache)
        if isinstance(place, places.Local) and not place.folder.is_dir():
            raise errors.UsageError(
                f"Data path {path!r} is not a folder; give one that holds images."
            )
        found, others = set(), {}
        for name in place.names():
            key, ending = sidecars.split(name)
            if images.is_image_name(name):
                found.add(name)
            elif ending in sidecars.ENDINGS:
                others.setdefault(key, {})[ending] = name
        beside = {name: others.get(sidecars.split(name)[0]) for name in found}
        columns = metadata.Columns(label_field, caption_field)

        def size(name):
            with disk.reading(f"Data path {path!r}: {name}"):
                return place.size(name)

        given = found, place, size, beside, place.read
        super().__init__("folder", path, *given, strict=True, columns=columns, split=split)

    def _read(self, i):
        return self._place.read(self._names[i])

    def _read_map(self, name):
        return self._place.read(name)


@sources.SOURCES.register("tar")
class Tar(Files):
    """One uncompressed .tar, or a folder of them, read in place.

    A metadata.jsonl or metadata.csv may lie beside the tars, and KEY.txt, .json or .cls beside
    KEY.jpg in them, as WebDataset has it. Members are found by one walk over the headers (3,670 of
    them: about 0.2 s) and then read by offset; nothing is unpacked. Where two archives hold members
    of one name, these are called "NAME in ARCHIVE". Labels and splits work as in `folder`.
    """

    def __init__(
        self,
        path: str,
        label_field: str = "label",
        caption_field: str = "",
        split: str = "",
        bucket_cache: float = places.CACHE,
    ):
        folder, single = places.split(path, ".tar")
        self._place = place = places.place(folder, bucket_cache, deep=False)
        names = [single] if single else (n for n in place.names() if n.endswith(".tar"))
        self._archives = sorted(set(names).intersection(place.names()))
        if not self._archives:
            raise errors.UsageError(
                f"Data path {path!r}: no .tar file there; give one or its folder."
            )
        indices = place.index(self._archives, _index)
        # {name: (number of the archive, offset, bytes)}; {name: {ending: likewise}}
        members, beside = _members(indices, self._archives)
        # A single archive may hold only some of the rows of the metadata beside it.
        how = dict(strict=not single, columns=metadata.Columns(label_field, caption_field))
        given = members, place, lambda name: members[name][2], beside
        read = lambda where: self._read_at(*where)
        super().__init__("tar", path, *given, read, split=split, **how)
        self._where = np.array([members[name] for name in self._names], np.int64)
        maps = (row["segmentation"] for row in self._rows if "segmentation" in row)
        self._maps = {name: members[name] for name in maps if name in members}

    def _read(self, i):
        return self._read_at(*map(int, self._where[i]))

    def _read_map(self, name):
        return self._read_at(*self._maps[name])

    def _read_at(self, number: int, offset: int, size: int) -> bytes:
        data = self._place.part(self._archives[number], offset, size)
        if len(data) != size:
            raise OSError(f"{self._archives[number]} ends after {len(data)} of {size} bytes")
        return data


def _members(indices, archives) -> tuple[dict, dict]:
    """The images of all archives and what lies beside each; see Tar."""
    times = collections.Counter(
        name for index in indices for name in index if images.is_image_name(name)
    )
    members, beside = {}, {}
    for number, index in enumerate(indices):
        others = {}
        for name, where in index.items():
            key, ending = sidecars.split(name)
            if ending in sidecars.ENDINGS:
                others.setdefault(key, {})[ending] = (number, *where)
        for name, where in index.items():
            if images.is_image_name(name):
                full = name if times[name] == 1 else f"{name} in {archives[number]}"
                members[full] = (number, *where)
                beside[full] = others.get(sidecars.split(name)[0])
    return members, beside


def _index(archive, file) -> dict[str, tuple[int, int]]:
    """Members of an open archive that are images or lie beside one: `{name: (offset, size)}`."""
    head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise errors.UsageError(
                f"{archive} is compressed ({name}), so its members cannot be read in place; "
                "decompress it first."
            )
    file.seek(0)
    found = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                name = member.name.removeprefix("./")
                wanted = images.is_image_name(name) or sidecars.split(name)[1] in sidecars.ENDINGS
                if wanted and member.isreg() and not member.issparse():
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
            f"Data path {path!r}: the metadata lists {len(missing)} file(s) that are not there, "
            f"e.g. {missing[0]}; add them or drop their rows."
        )
    return sorted(name for name in found if name in rows) if rows else sorted(found)
