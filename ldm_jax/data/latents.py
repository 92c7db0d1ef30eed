"""Cached latents as a source: the first stage's moments of every training image, as `encode` makes.

A cache is a folder. Its `index.json` says which data and weights it was made of (see `Cache`). The
ArrayRecord files in `images/` hold one record in each element (see data/records.py): the header is
{"fields": [variant, ...], "shape", "dtype"}, the body the moments, [variants, h/f, w/f, c]. A
variant is the image or its mirror image, with the record's other fields (class, boxes, ...) as they
are for it. Pixels and maps are left out, so conditions that are made of them need the images.

A cache on gs:// is copied once to each machine, as its records are read in random order.
"""

import dataclasses
import hashlib
import pathlib
import shutil

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
import numpy as np

from ldm_jax.base import disk, download, errors, owner, remote, values
from ldm_jax.data import images, records, sources, transforms

INDEX = "index.json"
_SIZES = values.Mapping(values.Number(0, whole=True))
_DATA = values.Fields({"fingerprint": values.Text()})
_ORIGIN = values.Fields({"weights": values.Text(), "run": values.Text()})
_INDEX = values.Fields({"files": _SIZES, "data": _DATA, "first_stage": _ORIGIN})
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


def about(source: sources.Source, data: dict) -> dict:
    """What a cache of this source must say of its data. data: size, flip and interpolation."""
    of_data = {key: data[key] for key in ("size", "interpolation", "flip")}
    return {"fingerprint": source.fingerprint, "records": len(source)} | of_data


def write(path: pathlib.Path, moments: np.ndarray, rows: list[list[dict]]):
    """Writes a shard. moments: [n, variants, h/f, w/f, c]; rows: for each, its variants' fields."""
    form = {"shape": moments.shape[1:], "dtype": moments.dtype.name}
    pairs = zip(moments, rows, strict=True)
    elements = (records.pack({"fields": fields} | form, x.tobytes()) for x, fields in pairs)
    records.write_elements(path, elements)


def plain_fields(record: dict) -> dict:
    """The fields of a record that go into a cache, as JSON holds them."""
    return {key: _plain(value) for key, value in record.items() if key not in _PIXELS}


def read_index(folder, called=None) -> dict:
    """The index of a finished cache; see `Cache`. called: what the user calls the folder."""
    try:
        index = disk.read_json(pathlib.Path(folder) / INDEX, _INDEX)
    except errors.UsageError as e:
        raise _unfinished(called or folder) from e
    if odd := [name for name in index["files"] if not remote.is_inside(name)]:
        raise errors.UsageError(f"{folder}/{INDEX}: files: {odd[0]!r} lies outside: mend it.")
    return index


def _unfinished(path):
    return errors.UsageError(
        f"config.latents.cache={path} holds no {INDEX}: make it, or finish it, with "
        "python -m ldm_jax.encode --out."
    )


def fetched(path) -> pathlib.Path:
    """The folder of a cache on this machine: of one on gs:// a copy, which all processes share.

    Raises:
      UsageError: the bucket holds no finished cache there, or the disk has no room for it.
    """
    url = str(path).rstrip("/")
    if not url.startswith(remote.SCHEME):
        return pathlib.Path(path)
    if (content := remote.read(f"{url}/{INDEX}")) is None:
        raise _unfinished(url)
    digest = hashlib.sha256(url.encode() + content).hexdigest()[:16]
    folder = download.cache() / "latents" / digest
    with owner.lock(folder, "copy"):
        disk.write_atomic(folder / INDEX, lambda file: file.write(content))
        files = read_index(folder, url)["files"]
        lacking = {name: n for name, n in files.items() if not _is_whole(folder / name, n)}
        need, free = sum(lacking.values()), shutil.disk_usage(folder).free
        if need > free:
            raise errors.UsageError(
                f"config.latents.cache={url} takes {need / 2**30:.3g} GiB more, and {folder} has "
                f"{free / 2**30:.3g} left: make room, or set XDG_CACHE_HOME to a larger disk."
            )
        for name, size in lacking.items():
            remote.download(f"{url}/{name}", folder / name, size)
    return folder


def _is_whole(shard: pathlib.Path, size: int) -> bool:
    return shard.is_file() and shard.stat().st_size == size


class Cache(sources.Source):
    """The finished cache in the folder `path`, which may lie on gs://.

    Its records are {"variants": [{field: value}, ...], "moments": [variants, h/f, w/f, c]}.

    Attributes:
      index: {"data": what `about` says, "first_stage": {"run", "step", "weights": digest},
        "dtype", "files": {name: bytes}}.
    """

    def __init__(self, path):
        self._folder, folder = str(path), fetched(path)
        self.index = read_index(folder, path)
        for name, size in self.index["files"].items():
            if not _is_whole(folder / name, size):
                raise errors.UsageError(
                    f"config.latents.cache={path}: {name} is missing or not {size} bytes long; the "
                    "same ldm_jax.encode command again makes it anew."
                )
        files = [str(folder / name) for name in self.index["files"]]
        self._data = records.elements(files)
        self.fingerprint = self.index["data"]["fingerprint"]

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
        try:
            header, body = records.unpack(self._data[i])
            values = np.frombuffer(body, np.dtype(header["dtype"])).reshape(header["shape"])
            fields = [{k: _restore(v) for k, v in variant.items()} for variant in header["fields"]]
        # A broken block shows as whatever the C++ reader or the JSON parser says.
        except Exception as e:
            raise images.BadRecord(f"{self.name(i)} cannot be read ({errors.reason(e)})") from e
        return {"variants": fields, "moments": values}


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
