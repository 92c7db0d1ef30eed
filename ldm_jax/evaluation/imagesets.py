"""Sets of images to be measured or measured against, from wherever they lie.

A run stands for the training records of its data, as it crops them; a folder that `sample` wrote, a
plain folder of images, and an .npz with uint8 `arr_0` [n, h, w, 3] for the images in them.
"""

import contextlib
import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from ldm_jax.base import disk, errors, tensorfile
from ldm_jax.data import images as images_lib
from ldm_jax.data import pipeline, sources, transforms
from ldm_jax.evaluation import protocol
from ldm_jax.jobs import job as job_lib
from ldm_jax.jobs import outputs
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import keys

BATCH = 64


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """size: (height, width). origin: what the images are, for a protocol.

    batches: () -> (uint8 [BATCH, height, width, 3], mask [BATCH]), the mask 0 for rows that only
      fill up the last batch.
    job: of a folder that `sample` wrote.
    captions: () -> one of each image, in order; None where there are none.
    """

    count: int
    size: tuple[int, int]
    origin: dict
    batches: Callable[[], Iterator]
    job: job_lib.Job | None = None
    captions: Callable[[], list[str]] | None = None


def open_set(path, flag: str, size=None, records: int | None = None) -> ImageSet:
    """The images at `path`. flag: what the user called it, for errors.

    size: what a plain folder's images are cropped and resized to, as in training; without, they
    must all be of one size. records: at most so many, of a run or folder.
    """
    path = pathlib.Path(path)
    if disk.there(path / "manifest.json"):
        found = _of_job(path)
    elif disk.there(path / "config.json"):
        found = _of_run(path, records)
    elif path.is_dir():
        found = _of_folder(path, size, records)
    elif path.suffix == ".npz" and path.is_file():
        found = _of_npz(path)
    else:
        raise errors.UsageError(
            f"{flag}={path} is neither a run, nor a folder of images, nor an .npz."
        )
    if size and found.size != tuple(size):
        (h, w), (height, width) = found.size, size
        raise errors.UsageError(
            f"{flag}={path} holds images of {h}x{w}, the samples are {height}x{width}: distances "
            "between sizes mean nothing; give a reference of that size, or a folder of images."
        )
    return found


def is_statistics(path) -> bool:
    """Whether an .npz holds statistics of features, no images."""
    path = pathlib.Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return False
    return bool({"mu.npy", "mean.npy"} & set(_archive(path).namelist()))


def _of_job(path):
    job = job_lib.open_job(path)
    records = [f"shards/{shard.number:05d}.json" for shard in job.shards]
    chunks = lambda: (images for images, _ in job.batches())
    origin = {"samples": outputs.digest(job.out, records)[:16]}
    first, rows = next(job.batches())
    captions = (lambda: [row["caption"] for row in job.rows()]) if "caption" in rows[0] else None
    return ImageSet(job.num, first.shape[1:3], origin, lambda: _filled(chunks()), job, captions)


def _of_run(path, records):
    config = keys.read(path)
    train = data_lib.training(config, data_lib.open_source(config.data))
    return _of_source(train, records, (config.data.size,) * 2, config.data.interpolation)


def _of_folder(path, size, records):
    source = sources.open_source("folder", path=str(path))
    if size is None:
        try:
            size = source[0]["image"].shape[:2]
        except images_lib.BadRecord as e:
            raise errors.UsageError(f"{path}: {e}") from e
        found = _of_source(source, None, size, "none")
        return dataclasses.replace(found, captions=_captions(path, source))
    if size[0] != size[1]:
        raise errors.UsageError(
            f"A folder is cropped to squares, the samples are {size[0]}x{size[1]}: give the "
            "reference as an .npz of images of that size."
        )
    return _of_source(source, records, size, "bicubic")


def _captions(path, source):
    """The `captions` of an ImageSet, from a folder of images: the first of several of one."""
    said = [source.captions(i) for i in range(len(source))]
    if not any(said):
        return None

    def read():
        if (first := next((i for i, texts in enumerate(said) if not texts), None)) is not None:
            raise errors.UsageError(
                f"{path}: {source.name(first)} has no caption, others have: add it."
            )
        return [texts[0] for texts in said]

    return read


def _of_source(source, records, size, interpolation):
    """Centre crops of the records of a data source; whole with the interpolation "none"."""
    count = min(records or len(source), len(source))
    whole = interpolation == "none"
    changes = (
        [_OfSize(tuple(size))] if whole else [transforms.Crop(size[0], "center", interpolation)]
    )

    def batches():
        with pipeline.eval_batches(source, changes, batch_size=BATCH, count=count) as rows:
            for row in rows:
                if whole and (row["bad"] >= 0).any():
                    name = source.name(int(row["bad"].max()))
                    raise errors.RunError(
                        f"{name} does not decode, or is not of {size[0]}x{size[1]} as the first "
                        "image is: draw it again, or remove it."
                    )
                yield row["image"], row["real"]

    origin = protocol.origin(source, count, size, interpolation)
    return ImageSet(count, tuple(size), origin, batches)


@dataclasses.dataclass(frozen=True)
class _OfSize:
    """A transform that refuses images of another size."""

    size: tuple[int, int]

    def __call__(self, record, rng):
        images_lib.require_size("an image", record["image"], self.size)
        return record


def _of_npz(path):
    with _rows(path) as (shape, _):
        count, *size, channels = shape if len(shape) == 4 else (0, 0, 0, 0)
    if channels != 3 or count < 1:
        raise errors.UsageError(f"{path}: arr_0 is {list(shape)}; wanted is [n, height, width, 3].")

    def chunks():
        with _rows(path) as (_, rows):
            yield from rows

    origin = {"npz": tensorfile.digest(path)[:16], "records": count, "size": list(size)}
    return ImageSet(count, tuple(size), origin, lambda: _filled(chunks()))


@contextlib.contextmanager
def _rows(path):
    """`with _rows(path) as (shape, chunks)`: arr_0 in pieces, never whole in memory."""
    with _archive(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise errors.UsageError(f"{path} holds {names or 'nothing'}; images are arr_0.")
        with archive.open("arr_0.npy") as member:
            with disk.reading(path):
                shape, fortran, dtype = _read_header(member)
                if np.prod(shape, dtype=object) > archive.getinfo("arr_0.npy").file_size:
                    raise ValueError(f"arr_0 says {list(shape)} and holds less")
            if dtype != np.uint8 or fortran:
                raise errors.UsageError(f"{path}: arr_0 is {dtype}; wanted is uint8, in C order.")
            yield shape, _chunks(member, shape)


def _chunks(member, shape):
    row = int(np.prod(shape[1:]))
    for begin in range(0, shape[0], BATCH):
        n = min(BATCH, shape[0] - begin)
        with disk.reading(member.name):
            data = member.read(n * row)  # whose checksum is looked at in the end
        yield np.frombuffer(data, np.uint8).reshape(n, *shape[1:])


def _read_header(member):
    """(shape, whether in Fortran's order, dtype) of an .npy file, of any of its versions."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version not in ((2, 0), (3, 0)):
        raise ValueError(f"version {version} of .npy is unknown")
    return np.lib.format.read_array_header_2_0(member)  # 3.0 differs in letters that are not ASCII


def _archive(path):
    with disk.reading(path):
        disk.check_regular(path)
        return zipfile.ZipFile(path)


def _filled(chunks):
    """Chunks [n, ...] of any n as batches of BATCH rows and their masks."""
    for chunk in chunks:
        for begin in range(0, len(chunk), BATCH):
            part = chunk[begin : begin + BATCH]
            missing = BATCH - len(part)
            mask = np.arange(BATCH) < len(part)
            yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]), mask
