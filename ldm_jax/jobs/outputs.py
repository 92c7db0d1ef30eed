"""Where the images of a job lie: shards of consecutive images, in one of several formats.

A shard's files are written each under a temporary name and renamed, so they are there whole or not
at all; the job's record of the shard, with a digest of the files, comes last (jobs/job.py).
"""

import abc
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import tarfile
import zipfile

import numpy as np

from ldm_jax.base import disk, registry, remote
from ldm_jax.data import images as images_lib
from ldm_jax.data import records

FORMATS = registry.Registry("format")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Images begin .. end - 1."""

    number: int
    begin: int
    end: int

    def __len__(self):
        return self.end - self.begin


def shards(num: int, size: int) -> list[Shard]:
    """All shards of a job of `num` images; the last may be short."""
    return [Shard(k, i, min(i + size, num)) for k, i in enumerate(range(0, num, size))]


class Format(abc.ABC):
    """How shards lie in a folder: one file of each of `suffixes` a shard, if not said otherwise.

    rows: what is known of each image: `class`, `caption`; classes: how many there are.
    """

    suffixes: tuple[str, ...] = ()

    def files(self, shard: Shard) -> list[str]:
        """Names of the shard's files, in their order."""
        return [f"{shard.number:05d}.{suffix}" for suffix in self.suffixes]

    @abc.abstractmethod
    def write(self, folder: pathlib.Path, shard: Shard, images, rows: list[dict], classes: int):
        """The files of a shard. images: what the job makes, [n, ...]."""

    def assemble(self, out: pathlib.Path, shards: list[Shard], rows: list[dict]):  # noqa: B027
        """Writes what only a whole job has, if anything; called once all shards are there."""


class OfImages(Format):
    """A format of uint8 [n, h, w, 3], which can be read again: what FORMATS holds."""

    @abc.abstractmethod
    def read(self, folder: pathlib.Path, shard: Shard) -> np.ndarray:
        """uint8 [n, h, w, 3]."""


class Pictures(OfImages):
    """One file an image, and a table of labels and captions for the `folder` data source."""

    def __init__(self, suffix: str, **options):
        self._suffix = suffix
        self._encode = functools.partial(images_lib.encode, image_format=suffix, **options)

    def names(self, shard):
        """Names of the pictures, as files of the folder or in an archive."""
        return [f"{i:06d}.{self._suffix}" for i in range(shard.begin, shard.end)]

    files = names

    def encode(self, images) -> list[bytes]:
        # Pillow lets go of the interpreter while it compresses.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._encode, images))

    def write(self, folder, shard, images, rows, classes):
        for name, data in zip(self.names(shard), self.encode(images)):
            disk.write_atomic(folder / name, lambda file, data=data: file.write(data))

    def read(self, folder, shard):
        return _decoded((folder / name).read_bytes() for name in self.names(shard))

    def assemble(self, out, shards, rows):
        names = (name for shard in shards for name in self.names(shard))
        called = {"class": "label"}
        lines = [
            json.dumps({"file": name} | {called.get(k, k): v for k, v in row.items()}) + "\n"
            for name, row in zip(names, rows)
        ]
        if any(rows):
            disk.write_text(out / "images" / "metadata.jsonl", "".join(lines))


class Tars(Pictures):
    """A tar of pictures a shard: what the `tar` data source reads."""

    suffixes = ("tar",)
    files = Format.files

    def write(self, folder, shard, images, rows, classes):
        def fill(file):
            with tarfile.open(fileobj=file, mode="w") as archive:
                for name, data in zip(self.names(shard), self.encode(images)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

        disk.write_atomic(folder / self.files(shard)[0], fill)

    def read(self, folder, shard):
        with tarfile.open(folder / self.files(shard)[0], "r:") as archive:
            return _decoded(archive.extractfile(member).read() for member in archive)


class ArrayRecords(Pictures):
    """An ArrayRecord file of pictures a shard: what the `arrayrecord` data source reads."""

    suffixes = ("array_record", "array_record.json")
    files, assemble = Format.files, Format.assemble

    def write(self, folder, shard, images, rows, classes):
        encoded = zip(self.names(shard), self.encode(images), rows)
        records.write_arrayrecord(
            str(folder / self.files(shard)[0]),
            ({"name": name, "image": image} | row for name, image, row in encoded),
            classes=tuple(map(str, range(classes))),
        )

    def read(self, folder, shard):
        source = records.ArrayRecords(str(folder / self.files(shard)[0]))
        return np.stack([source[i]["image"] for i in range(len(source))])


class Arrays(OfImages):
    """samples.npz as the ADM evaluation wants it: arr_0 uint8 [n, h, w, 3], arr_1 the labels.

    It is put together from one .npy a shard, never whole in memory.
    """

    suffixes = ("npy",)

    def write(self, folder, shard, images, rows, classes):
        disk.write_atomic(folder / self.files(shard)[0], lambda f: np.save(f, images))

    def read(self, folder, shard):
        return np.load(folder / self.files(shard)[0])

    def assemble(self, out, shards, rows):
        folder = out / "images"
        remote.fetch(folder, *(name for shard in shards for name in self.files(shard)))
        first = np.load(folder / self.files(shards[0])[0], mmap_mode="r")
        shape = (shards[-1].end, *first.shape[1:])
        labels = [row["class"] for row in rows if "class" in row]

        def fill(file):
            with zipfile.ZipFile(file, "w") as archive:
                with archive.open(_member("arr_0.npy"), "w", force_zip64=True) as member:
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for shard in shards:
                        member.write(self.read(folder, shard).tobytes())
                if labels:
                    with archive.open(_member("arr_1.npy"), "w") as member:
                        np.save(member, np.asarray(labels, np.int64))

        disk.write_atomic(out / "samples.npz", fill)


FORMATS.register("png")(Pictures("png"))
FORMATS.register("webp")(Pictures("webp", lossless=True))
FORMATS.register("tar")(Tars("png"))
FORMATS.register("arrayrecord")(ArrayRecords("png"))
FORMATS.register("npz")(Arrays())


def digest(folder: pathlib.Path, names: list[str], most: int | None = None) -> str | None:
    """sha256 over the files' bytes in this order; None where one is missing, or beyond `most`."""
    total = hashlib.sha256()
    for name in names:
        try:
            disk.check_regular(folder / name, most)
            with open(folder / name, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            return None
    return total.hexdigest()


def _decoded(files):
    return np.stack([images_lib.decode(data, "a sample") for data in files])


def _member(name):
    """Without the clock, so that the same samples are the same bytes."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
