"""Prepared records as sources: our own ArrayRecord files, and TFDS data sets without TensorFlow.

An ArrayRecord element is: length of the JSON header, 4 bytes little-endian; the header; a body. The
body is the encoded image, then the segmentation as PNG if there is one. Header keys: `name`,
`image_bytes`, and where known `class`, `caption`, `captions`, `boxes`, `box_class`. Class names and
a digest of all elements are in `FILE.json` beside the file.
"""

import contextlib
import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from ldm_jax.base import disk, errors, values
from ldm_jax.data import images, metadata, sources

_SUFFIX = ".array_record"


def write_arrayrecord(
    path: str,
    records: Iterable[dict],
    *,
    classes: tuple[str, ...] = (),
    box_classes: tuple[str, ...] = (),
):
    """Writes an iterable of records (as sources yield them) to `path`.

    `image` may also be encoded bytes, which are kept as they are; pixels are encoded as PNG. A
    record's `name` is optional. The file appears under its name when complete.
    """
    partial, digests = f"{path}.partial", []

    def elements():
        for i, record in enumerate(records):
            element = _pack_record({"name": f"record {i}"} | record)
            digests.append(hashlib.sha256(element).digest())
            yield element

    write_elements(partial, elements())
    about = {
        "classes": list(classes),
        "box_classes": list(box_classes),
        "count": len(digests),
        "digest": hashlib.sha256(b"".join(digests)).hexdigest()[:16],
    }
    disk.write_text(pathlib.Path(f"{path}.json"), json.dumps(about, indent=1) + "\n")
    os.replace(partial, path)


def write_elements(path, elements: Iterable[bytes]):
    """Writes an ArrayRecord file."""
    from array_record.python import array_record_module

    # One element a group: groups are what random access has to read and decompress whole.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    with disk.writing(path, path), contextlib.closing(writer):
        for element in elements:
            writer.write(element)


def elements(files: list[str]):
    """The elements of ArrayRecord files, by index; a file that is none is a UsageError."""
    import grain

    for file in files:
        with disk.reading(file):
            disk.check_regular(file)
    try:
        return grain.sources.ArrayRecordDataSource(files)
    except Exception as e:  # of the C++ reader, whatever it says, and of which file it does not
        others = f" or one of the {len(files) - 1} beside it" if len(files) > 1 else ""
        raise errors.UsageError(
            f"{files[0]}{others} is no ArrayRecord ({errors.reason(e)}): write it again."
        ) from e


def pack(header: dict, body: bytes) -> bytes:
    """The element of a JSON header and a body."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + body


def unpack(element: bytes) -> tuple[dict, bytes]:
    """The header and the body of an element."""
    start = 4 + int.from_bytes(element[:4], "little")
    return json.loads(element[4:start]), element[start:]


@sources.SOURCES.register("arrayrecord")
class ArrayRecords(sources.Source):
    """Files of `write_arrayrecord`: one file, a glob, or a folder of `*.array_record`."""

    def __init__(self, path: str):
        sources.check_local(path)
        pattern = os.path.join(path, f"*{_SUFFIX}") if os.path.isdir(path) else path
        files = sorted(glob.glob(pattern))
        if not files:
            raise errors.UsageError(
                f"Data path {path!r}: no ArrayRecord file there; give a file, a glob or a folder "
                f"of *{_SUFFIX}, as records.write_arrayrecord makes them."
            )
        about = [_about(file) for file in files]
        names = {(tuple(a["classes"]), tuple(a["box_classes"])) for a in about}
        if len(names) > 1:
            raise errors.UsageError(f"{files[0]} and its siblings differ in their class names.")
        [(self.classes, self.box_classes)] = names
        self._data = elements(files)
        if not len(self._data):
            raise errors.UsageError(f"{files[0]}: holds no records; write it again.")
        self.fingerprint = sources.digest("arrayrecord", json.dumps(about, sort_keys=True))

    def __len__(self):
        return len(self._data)

    def name(self, i):
        try:
            return unpack(self._data[i])[0].get("name", f"record {i}")
        except Exception:  # a name is for logs, also of elements that cannot be read
            return f"record {i}"

    def __getitem__(self, i):
        try:
            header, body = unpack(self._data[i])
        # A broken block shows as whatever the C++ reader or the JSON parser says.
        except Exception as e:
            raise images.BadRecord(f"record {i}: cannot be read ({e}).") from e
        name, end = header.get("name", f"record {i}"), header["image_bytes"]
        record = {"image": images.decode(body[:end], name)}
        for key, dtype in (("class", np.int32), ("boxes", np.float32), ("box_class", np.int32)):
            if key in header:
                record[key] = np.array(header[key], dtype)[()]
        if "boxes" in record:
            record["boxes"] = record["boxes"].reshape(-1, 4)
        record |= {key: header[key] for key in ("caption", "captions") if key in header}
        if len(body) > end:
            record["segmentation"] = images.decode_map(body[end:], name)
        return record


_NAMES = values.Several(values.Text(), most=2**24)
_ABOUT = values.Fields({"classes": _NAMES, "box_classes": _NAMES})


def _about(file: str) -> dict:
    try:
        return disk.read_json(f"{file}.json", _ABOUT)
    except errors.UsageError as e:
        raise errors.UsageError(
            f"{file}: {file}.json beside it is missing or broken ({e}); keep both together."
        ) from e


def _pack_record(record: dict) -> bytes:
    image = record["image"]
    image = image if isinstance(image, bytes) else images.encode(image)
    header = {"name": record["name"], "image_bytes": len(image)}
    for key in ("class", "caption", "captions", "boxes", "box_class"):
        if key in record:
            value = record[key]
            header[key] = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    labels = images.encode_map(record["segmentation"]) if "segmentation" in record else b""
    return pack(header, image + labels)


@sources.SOURCES.register("tfds")
class Tfds(sources.Source):
    """A prepared TFDS data set (array_record files) in `path`, or in TFDS's own folder.

    Its `image`, `label` and `caption` features become the record's. TensorFlow is not needed to
    read, only to prepare most of the public data sets.
    """

    def __init__(self, name: str, split: str = "train", path: str = ""):
        builder = _builder(name, path)
        features = builder.info.features
        if split.split("[")[0] not in builder.info.splits:
            raise errors.UsageError(
                f"TFDS {name!r} has no split {split!r}; available: "
                f"{', '.join(builder.info.splits)}{errors.nearest(split, builder.info.splits)}"
            )
        if "image" not in features:
            raise errors.UsageError(
                f"TFDS {name!r} has no 'image' feature (it has {', '.join(features)})."
            )
        import tensorflow_datasets as tfds

        # Our decoder, so that all sources guard and convert alike.
        encoded = isinstance(features["image"], tfds.features.Image)
        decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
        self._data = builder.as_data_source(split=split, decoders=decoders)
        self._name = f"{builder.info.full_name}:{split}"
        if "label" in features and isinstance(features["label"], tfds.features.ClassLabel):
            self.classes = tuple(features["label"].names)
        self._has_caption = "caption" in features
        count = builder.info.splits[split].num_examples
        self.fingerprint = sources.digest(
            "tfds", self._name, f"{count} {builder.info.dataset_size}"
        )

    def __len__(self):
        return len(self._data)

    def name(self, i):
        return f"{self._name} #{i}"

    def __getitem__(self, i):
        example = self._data[i]
        image = example["image"]
        if isinstance(image, bytes):
            image = images.decode(image, self.name(i))
        elif image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        record = {"image": image}
        if self.classes:
            record["class"] = np.int32(example["label"])
        if self._has_caption:
            captions = np.atleast_1d(np.array(example["caption"], object)).tolist()
            captions = [c.decode() if isinstance(c, bytes) else str(c) for c in captions]
            record |= metadata.fields({"captions": captions or [""]}, ())
        return record


def _builder(name: str, path: str):
    """The builder of a data set that is prepared."""
    try:
        import tensorflow_datasets
    except ImportError as e:
        raise errors.UsageError("Source 'tfds' needs: pip install tensorflow-datasets") from e
    where, why = path or "~/tensorflow_datasets", "as array_record"
    try:
        made = tensorflow_datasets.builder(name, data_dir=path or None, file_format="array_record")
        if made.info.splits:
            return made
    # TFDS reports absence in many ways, and goes to TensorFlow or the network for some of them.
    except Exception as e:
        why = f"({(str(e).strip() or type(e).__name__).splitlines()[0]})"
    raise errors.UsageError(
        f"TFDS {name!r} is not in {where} {why}; prepare it: pip install tensorflow-cpu && "
        f"tfds build {name} --file_format=array_record --data_dir={where}"
    )
