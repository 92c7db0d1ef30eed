"""Cached latents as a source: the first stage's moments of every training image, as `encode` makes.

A cache is a folder. Its `index.json` says which data and weights it was made of (see `Cache`). The
ArrayRecord files in `images/` hold one record in each element: the length of the JSON header, 4
bytes little-endian; the header {"fields": [variant, ...], "shape", "dtype"}; and the moments,
[variants, h/f, w/f, c]. A variant is the image or its mirror image, with the record's other fields
(class, boxes, ...) as they are for it. Pixels and maps are left out, so conditions that are made of
them need the images.
"""

import dataclasses
import json
import pathlib

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
import numpy as np

from ldm_jax.base import errors
from ldm_jax.data import sources, transforms

INDEX = "index.json"
_PIXELS = ("image", "segmentation")


def variants(size: int, crop: str, flip: bool, interpolation: str) -> list[list]:
    """A chain of transforms for each variant of an image: the crop, and where asked its mirror."""
    if crop != "center":
        raise errors.UsageError(
            f"config.data.crop={crop}: a latent cache holds one crop of an image; train with "
            "--config.data.crop=center, or from images (--config.latents.cache=)."
        )
    cut, *rest = transforms.standard(size, crop, False, interpolation)
    mirror = [[cut, transforms.Flip(share=1.0), *rest]] if flip else []
    return [[cut, *rest], *mirror]


def about(records: sources.Source, data: dict) -> dict:
    """What a cache of these records must say of its data. data: size, flip and interpolation."""
    return {"fingerprint": records.fingerprint, "records": len(records)} | {
        key: data[key] for key in ("size", "interpolation", "flip")
    }


def write(path: pathlib.Path, moments: np.ndarray, rows: list[list[dict]]):
    """Writes a shard. moments: [n, variants, h/f, w/f, c]; rows: for each, its variants' fields."""
    from array_record.python import array_record_module

    # One element a group: groups are what random access has to read and decompress whole.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    try:
        for values, fields in zip(moments, rows, strict=True):
            header = {"fields": fields, "shape": values.shape, "dtype": values.dtype.name}
            text = json.dumps(header).encode()
            writer.write(len(text).to_bytes(4, "little") + text + values.tobytes())
    finally:
        writer.close()


def plain_fields(record: dict) -> dict:
    """The fields of a record that go into a cache, as JSON holds them."""
    return {key: _plain(value) for key, value in record.items() if key not in _PIXELS}


def open_cache(path) -> "Cache":
    """The finished cache in `path`; one line where there is none."""
    file = pathlib.Path(path) / INDEX
    try:
        index = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise errors.UsageError(
            f"config.latents.cache={path} holds no {INDEX}: make it, or finish it, with "
            "python -m ldm_jax.encode --out."
        ) from e
    for name, size in index["files"].items():
        shard = file.parent / name
        if not shard.is_file() or shard.stat().st_size != size:
            raise errors.UsageError(
                f"config.latents.cache={path}: {name} is missing or not {size} bytes long; the "
                "same ldm_jax.encode command again makes it anew."
            )
    return Cache(file.parent, index)


class Cache(sources.Source):
    """Records {"variants": [{field: value}, ...], "moments": [variants, h/f, w/f, c]}.

    Attributes:
      index: {"data": what `about` says, "first_stage": {"run", "step", "weights": digest},
        "dtype", "files": {name: bytes}}.
    """

    def __init__(self, folder: pathlib.Path, index: dict):
        import grain

        self.index, self._folder = index, folder
        files = [str(folder / name) for name in index["files"]]
        self._data = grain.sources.ArrayRecordDataSource(files)
        self.fingerprint = index["data"]["fingerprint"]

    def check(self, expected: dict):
        """Raises UsageError where the data is not `expected`, see `about`."""
        found = self.index["data"]
        # A cache with mirror images also serves a run that does not want them.
        wrong = [k for k in expected if found[k] != expected[k] and not (k == "flip" and found[k])]
        if wrong:
            lines = [f"{key} {found[key]}, here {expected[key]}" for key in wrong]
            raise errors.UsageError(
                f"config.latents.cache={self._folder} is of other data ({'; '.join(lines)}): make "
                "one for this config with python -m ldm_jax.encode, into another --out."
            )

    def check_weights(self, first_stage: str, digest: str):
        """Raises UsageError where the first stage in use is not the one that encoded."""
        theirs = self.index["first_stage"]
        if theirs["weights"] != digest:
            raise errors.UsageError(
                f"config.latents.cache={self._folder} was encoded by other weights "
                f"({theirs['weights']} of {theirs['run']}) than {first_stage} holds ({digest}): "
                "encode anew, into another --out."
            )

    def __len__(self):
        return len(self._data)

    def name(self, i):
        return f"latent {i} of {self._folder}"

    def __getitem__(self, i):
        element = self._data[i]
        start = 4 + int.from_bytes(element[:4], "little")
        header = json.loads(element[4:start])
        values = np.frombuffer(element, np.dtype(header["dtype"]), offset=start)
        fields = [{k: _restore(v) for k, v in variant.items()} for variant in header["fields"]]
        return {"variants": fields, "moments": values.reshape(header["shape"])}


@dataclasses.dataclass(frozen=True)
class Choose:
    """A record of `Cache` -> {"moments": [h/f, w/f, c], **fields}; mirrored where Flip would."""

    flip: bool

    def __call__(self, record, rng):
        chosen = int(self.flip and rng.random() >= 0.5)
        return record["variants"][chosen] | {"moments": record["moments"][chosen]}


def _plain(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return {"dtype": value.dtype.name, "shape": value.shape, "values": value.ravel().tolist()}
    return value


def _restore(value):
    if isinstance(value, dict):
        return np.array(value["values"], value["dtype"]).reshape(value["shape"])[()]
    return value
