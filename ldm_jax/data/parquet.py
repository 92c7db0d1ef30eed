"""Parquet files as a source: data sets as they lie on the Hugging Face Hub, downloaded.

A column holds the encoded images, as bytes or as struct{bytes, path}; others hold captions and
classes. Those are read at the start. Images are read by the row group, which is what a file can be
read by, so that any order of records works; the groups that were used last are kept.
"""

import collections
import concurrent.futures
import json
import pathlib
import re
import threading

import numpy as np

from ldm_jax.base import disk, errors, values
from ldm_jax.data import columns, images, metadata, sources

KEPT = 2**28  # bytes of images that a process keeps decompressed, beside a group that is larger
_SHARD = re.compile(r"-\d+-of-\d+$")
_HASHED = 2**16  # captions that are hashed at a time


@sources.SOURCES.register("parquet")
class Parquet(sources.Source):
    """A .parquet file, or a folder of them at any depth.

    The split of a file is in its name, train-00000-of-00008.parquet, or that of a folder it is in.

    Args:
      image_field: column of the images; "" takes `image`, or the only one there is.
      caption_field: column of text or of lists of texts; "" takes caption, captions or text.
      label_field: column of ids or names.
    """

    def __init__(
        self,
        path: str,
        label_field: str = "label",
        caption_field: str = "",
        image_field: str = "",
        split: str = "",
    ):
        sources.check_local(path)
        root = pathlib.Path(path)
        files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
        if not files or not files[0].is_file():
            raise errors.UsageError(
                f"Data path {path!r}: no .parquet file there; give one or a folder of them."
            )
        root = root if root.is_dir() else root.parent
        self._files = _in_split(root, files, split)
        self._names = [file.relative_to(root).as_posix() for file in self._files]
        fields, parts = (image_field, caption_field, label_field), []
        for file in self._files:
            with disk.reading(file):
                disk.check_regular(file)
                parts.append(_Part(file, *fields))
        _check_alike(self._files, parts)
        self._image = parts[0].image
        groups = [(number, *group) for number, part in enumerate(parts) for group in part.groups()]
        # [groups, (file, group in it, first row in it, rows, bytes)]
        self._groups = np.array(groups, np.int64).reshape(-1, 5)
        self._ends = np.cumsum(self._groups[:, 3])
        if not len(self):
            raise errors.UsageError(f"Data path {path!r}: the files hold no rows.")
        self._captions = _joined([part.captions for part in parts])
        self._ids, self.classes = _classes(parts, label_field)
        self._kept = _Kept()
        ids = b"" if self._ids is None else self._ids.tobytes()
        sizes = (f"{name} {f.stat().st_size}" for name, f in zip(self._names, self._files))
        known = "parquet", self._image, "\n".join(self.classes), ids, *sizes
        self.fingerprint = sources.digest(*known, *_slices(self._captions))

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i):
        group, row = self._place(i)
        number, _, first, _, _ = self._groups[group]
        return f"{self._names[number]} row {first + row}"

    def __getitem__(self, i):
        record = {"image": images.decode(self.encoded(i), self.name(i))}
        if self._ids is not None:
            record["class"] = self._ids[i]
        if self._captions is not None and (said := self._captions[int(i)].as_py()) is not None:
            texts = said if isinstance(said, list) else [said]
            record |= metadata.fields({"captions": [t for t in texts if t is not None]}, ())
        return record

    def encoded(self, i: int) -> bytes:
        """The image's own bytes."""
        group, row = self._place(i)
        try:
            found = self._kept(group, lambda: self._read(group), int(self._groups[group, 4]))
            found = found[row].as_py()
        except Exception as e:  # damaged pages show in many ways
            why = errors.reason(e)
            raise images.BadRecord(f"{self.name(i)}: cannot be read ({why}).") from e
        found = found.get("bytes") if isinstance(found, dict) else found
        if not found:
            raise images.BadRecord(f"{self.name(i)}: has no bytes of an image.")
        return found

    def _place(self, i) -> tuple[int, int]:
        """The row group that record i is in, and its row there."""
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, int(i - (self._ends[group] - self._groups[group, 3]))

    def _read(self, group):
        import pyarrow.parquet

        number, inside = map(int, self._groups[group, :2])
        # Not mapped into memory: a file that is cut short would then end the process.
        with pyarrow.parquet.ParquetFile(self._files[number]) as file:
            return file.read_row_group(inside, columns=[self._image]).column(self._image)


class _Part:
    """What a file says of itself, and its captions and labels.

    Attributes:
      image: name of the column of images.
      captions, labels: arrow arrays, or None.
      names: of classes, where the file has the features of `datasets` with such.
      kinds: what has to be alike in all files.
    """

    def __init__(self, path, image_field: str, caption_field: str, label_field: str):
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            self._about, schema = file.metadata, file.schema_arrow
            self.image = columns.of_images(path, schema, image_field)
            usual = ("caption", "captions", "text")
            caption = columns.find(path, schema, caption_field, usual, columns.is_text)
            given = "" if label_field == "label" else label_field
            label = columns.find(path, schema, given, ("label",), columns.is_label)
            wanted = file.read([name for name in (caption, label) if name])
        self.captions = wanted.column(caption) if caption else None
        self.labels = wanted.column(label) if label else None
        self.names = columns.class_names(schema, label)
        self.kinds = self.image, caption, label, self.names

    def groups(self):
        """(number, its first row, its rows, bytes of their images) of each row group."""
        first = 0
        for number in range(self._about.num_row_groups):
            group = self._about.row_group(number)
            parts = map(group.column, range(group.num_columns))
            own = [p for p in parts if p.path_in_schema.split(".")[0] == self.image]
            yield number, first, group.num_rows, sum(p.total_uncompressed_size for p in own)
            first += group.num_rows


def _in_split(root, files, split: str) -> list:
    if not split:
        return files
    named = {}
    for file in files:
        inside = file.relative_to(root)
        for name in {_SHARD.sub("", inside.stem), *inside.parts[:-1]}:
            named.setdefault(name, []).append(file)
    if split not in named:
        raise errors.UsageError(
            f"split={split!r}: no file of that split; available: {', '.join(sorted(named))}"
            f"{errors.nearest(split, named)}"
        )
    return named[split]


def _check_alike(files, parts):
    for file, part in zip(files, parts):
        if part.kinds != parts[0].kinds:
            raise errors.UsageError(
                f"{files[0]} and {file.name} differ in their columns ({parts[0].kinds[:3]}, "
                f"{part.kinds[:3]}) or classes: give one data set, or a --config.data.split."
            )


def _joined(parts):
    """The chunked arrays as one array, of text or of lists of texts; None where there are none."""
    import pyarrow as pa

    if parts[0] is None:
        return None
    text = pa.large_string()
    kind = text if columns.is_string(parts[0].type) else pa.large_list(text)
    chunks = [chunk.cast(kind) for part in parts for chunk in part.chunks]
    return pa.concat_arrays(chunks)


def _slices(captions):
    """Text that is another one for other captions, a piece at a time."""
    count = 0 if captions is None else len(captions)
    for start in range(0, count, _HASHED):
        yield json.dumps(captions.slice(start, _HASHED).to_pylist())


def _classes(parts, label_field):
    """(ids int32 [n] or None, names)."""
    if parts[0].labels is None:
        return None, ()
    found = [label for part in parts for label in part.labels.to_pylist()]
    names = parts[0].names
    most = (len(names) or metadata.MOST_CLASSES) - 1
    kind = values.Either((values.Text(lines=True), values.Number(0, most, whole=True)))
    for row, label in enumerate(found):
        if not kind.takes(label):
            raise errors.UsageError(
                f"label_field={label_field!r}: row {row} has {values.shown(label)}, which must be "
                f"{kind.words}; choose a --config.data.split, or another field."
            )
    ids, own = metadata.class_ids(found)
    return ids, names if names and isinstance(found[0], int) else own


class _Kept:
    """The row groups used last, KEPT bytes of them; a group is read once for all threads."""

    def __init__(self):
        self._groups, self._lock = collections.OrderedDict(), threading.Lock()

    def __reduce__(self):  # another process keeps its own
        return _Kept, ()

    def __call__(self, group: int, read, size: int):
        with self._lock:
            found = self._groups.pop(group, None)
            own, found = found is None, found or (concurrent.futures.Future(), size)
            self._groups[group] = found
            while len(self._groups) > 1 and sum(n for _, n in self._groups.values()) > KEPT:
                self._groups.popitem(last=False)
        if own:
            try:
                found[0].set_result(read())
            except BaseException as e:
                found[0].set_exception(e)
                with self._lock:  # it may be read the next time
                    self._groups.pop(group, None)
        return found[0].result()
