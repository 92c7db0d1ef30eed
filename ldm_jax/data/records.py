"""Prepared records as sources: our own ArrayRecord files, and TFDS data sets without TensorFlow.

An ArrayRecord element is: length of the JSON header, 4 bytes little-endian; the header; the
encoded image; the segmentation as PNG if there is one. Header keys: `name`, `image_bytes`, and
where known `class`, `caption`, `captions`, `boxes`, `box_class`. Class names and a digest of all
elements are in `FILE.json` beside the file.
"""

import glob
import hashlib
import json
import os
import pathlib

import numpy as np

from ldm_jax.base import errors
from ldm_jax.data import images, sources

_SUFFIX = ".array_record"


def write_arrayrecord(
    path: str,
    records,
    *,
    classes: tuple[str, ...] = (),
    box_classes: tuple[str, ...] = (),
    image_format: str = "png",
) -> int:
    """Writes an iterable of records (as sources yield them) to `path`; returns their number.

    `image` may also be encoded bytes, which are kept as they are; pixels are encoded as
    `image_format`. A record's `name` is optional. The file appears under its name when complete.
    """
    from array_record.python import array_record_module

    partial, count, total = f"{path}.partial", 0, hashlib.sha256()
    # One element a group: groups are what random access has to read and decompress whole.
    writer = array_record_module.ArrayRecordWriter(partial, "group_size:1")
    try:
        for record in records:
            element = _pack(record, f"record {count}", image_format)
            count += 1
            total.update(hashlib.sha256(element).digest())
            writer.write(element)
    finally:
        writer.close()
    about = {
        "classes": list(classes),
        "box_classes": list(box_classes),
        "count": count,
        "digest": total.hexdigest()[:16],
    }
    pathlib.Path(f"{path}.json").write_text(json.dumps(about, indent=1) + "\n")
    os.replace(partial, path)
    return count


@sources.SOURCES.register("arrayrecord")
def arrayrecord(path: str, max_pixels: int = images.MAX_PIXELS) -> "ArrayRecords":
    """Files of `write_arrayrecord`: one file, a glob, or a folder of `*.array_record`."""
    pattern = os.path.join(path, f"*{_SUFFIX}") if os.path.isdir(path) else path
    files = sorted(glob.glob(pattern))
    if not files:
        raise errors.UsageError(
            f"Data path {path!r}: no ArrayRecord file there; give a file, a glob or a folder of "
            f"*{_SUFFIX}, as records.write_arrayrecord makes them."
        )
    return ArrayRecords(files, max_pixels)


class ArrayRecords(sources.Source):
    """See `arrayrecord`."""

    def __init__(self, files: list[str], max_pixels: int):
        import grain

        about = [self._about(file) for file in files]
        names = {(tuple(a["classes"]), tuple(a["box_classes"])) for a in about}
        if len(names) > 1:
            raise errors.UsageError(f"{files[0]} and its siblings differ in their class names.")
        [(self.classes, self.box_classes)] = names
        self._data = grain.sources.ArrayRecordDataSource(files)
        self._max_pixels = max_pixels
        if not len(self._data):
            raise errors.UsageError(f"{files[0]}: holds no records; write it again.")
        self.fingerprint = sources.digest("arrayrecord", json.dumps(about, sort_keys=True))

    @staticmethod
    def _about(file: str) -> dict:
        try:
            return json.loads(pathlib.Path(f"{file}.json").read_text())
        except (OSError, ValueError) as e:
            raise errors.UsageError(
                f"{file}: {file}.json beside it is missing or broken ({e}); keep both together."
            ) from e

    def __len__(self):
        return len(self._data)

    def name(self, i):
        try:
            return _unpack(self._data[i])[0].get("name", f"record {i}")
        except Exception:  # a name is for logs, also of elements that cannot be read
            return f"record {i}"

    def __getitem__(self, i):
        try:
            header, body = _unpack(self._data[i])
        # A broken block shows as whatever the C++ reader or the JSON parser says.
        except Exception as e:
            raise images.BadRecord(f"record {i}: cannot be read ({e}).") from e
        name, end = header.get("name", f"record {i}"), header["image_bytes"]
        record = {"image": images.decode(body[:end], name, self._max_pixels)}
        for key, dtype in (("class", np.int32), ("boxes", np.float32), ("box_class", np.int32)):
            if key in header:
                record[key] = np.array(header[key], dtype)[()]
        if "boxes" in record:
            record["boxes"] = record["boxes"].reshape(-1, 4)
        record |= {key: header[key] for key in ("caption", "captions") if key in header}
        if len(body) > end:
            record["segmentation"] = images.decode_map(body[end:], name)
        return record


def _pack(record: dict, name: str, image_format: str) -> bytes:
    image = record["image"]
    image = image if isinstance(image, bytes) else images.encode(image, image_format)
    header = {"name": record.get("name", name), "image_bytes": len(image)}
    for key in ("class", "caption", "captions", "boxes", "box_class"):
        if key in record:
            value = record[key]
            header[key] = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    body = image
    if "segmentation" in record:
        body += images.encode_map(record["segmentation"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + body


def _unpack(element: bytes) -> tuple[dict, bytes]:
    start = 4 + int.from_bytes(element[:4], "little")
    return json.loads(element[4:start]), element[start:]


@sources.SOURCES.register("tfds")
def tfds(name: str, split: str = "train", path: str = "", max_pixels: int = images.MAX_PIXELS):
    """A prepared TFDS data set (array_record files) in `path`, or in TFDS's own folder.

    Its `image`, `label` and `caption` features become the record's. TensorFlow is not needed to
    read, only to prepare most of the public data sets.
    """
    try:
        import tensorflow_datasets
    except ImportError as e:
        raise errors.UsageError("Source 'tfds' needs: pip install tensorflow-datasets") from e

    where = path or "~/tensorflow_datasets"
    remedy = (
        "prepare it: pip install tensorflow-cpu && "
        f"tfds build {name} --file_format=array_record --data_dir={where}"
    )
    try:
        builder = tensorflow_datasets.builder(
            name, data_dir=path or None, file_format="array_record"
        )
        known = list(builder.info.splits)
    # TFDS reports absence in many ways, and goes to TensorFlow or the network for some of them.
    except Exception as e:
        first = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise errors.UsageError(f"TFDS {name!r} is not in {where} ({first}); {remedy}") from e
    if not known:
        raise errors.UsageError(f"TFDS {name!r} is not in {where} as array_record; {remedy}")
    if split.split("[")[0] not in known:
        raise errors.UsageError(
            f"TFDS {name!r} has no split {split!r}; available: {', '.join(known)}"
            f"{errors.nearest(split, known)}"
        )
    if "image" not in builder.info.features:
        raise errors.UsageError(
            f"TFDS {name!r} has no 'image' feature (it has {', '.join(builder.info.features)})."
        )
    return Tfds(builder, split, max_pixels)


class Tfds(sources.Source):
    """See `tfds`."""

    def __init__(self, builder, split: str, max_pixels: int):
        import tensorflow_datasets

        features, info = builder.info.features, builder.info.splits[split]
        # Our decoder, so that all sources guard and convert alike.
        encoded = isinstance(features["image"], tensorflow_datasets.features.Image)
        decoders = {"image": tensorflow_datasets.decode.SkipDecoding()} if encoded else None
        self._data = builder.as_data_source(split=split, decoders=decoders)
        self._name = f"{builder.info.full_name}:{split}"
        self._max_pixels = max_pixels
        label = features["label"] if "label" in features else None  # noqa: SIM401 (no .get)
        if isinstance(label, tensorflow_datasets.features.ClassLabel):
            self.classes = tuple(label.names)
        self._has_caption = "caption" in features
        self.fingerprint = sources.digest(
            "tfds", self._name, f"{info.num_examples} {builder.info.dataset_size}"
        )

    def __len__(self):
        return len(self._data)

    def name(self, i):
        return f"{self._name} #{i}"

    def __getitem__(self, i):
        example = self._data[i]
        image = example["image"]
        if isinstance(image, bytes):
            image = images.decode(image, self.name(i), self._max_pixels)
        elif image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        record = {"image": image}
        if self.classes:
            record["class"] = np.int32(example["label"])
        if self._has_caption:
            captions = np.atleast_1d(np.array(example["caption"], object)).tolist()
            captions = [c.decode() if isinstance(c, bytes) else str(c) for c in captions]
            record["caption"] = captions[0] if captions else ""
            if len(captions) > 1:
                record["captions"] = captions
        return record
