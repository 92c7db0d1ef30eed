"""Reads the tensors of other people's checkpoint files, and never runs code that is in them.

Torch files are pickles, which are programs that may call any function. The unpickler here knows
plain containers and tensors only, and works without torch, so a pickle has nothing to call.
"""

import collections
import hashlib
import io
import math
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from ldm_jax.base import errors, hub

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SAFE_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")
TORCH_DTYPES = dict(
    Double="<f8", Float="<f4", Half="<f2", BFloat16=BFLOAT16, Long="<i8", Int="<i4", Short="<i2"
) | dict(Char="|i1", Byte="|u1", Bool="|b1")
# Classes that old Lightning checkpoints name, as keys of their callbacks' states, and never call.
INERT = ("pytorch_lightning.", "lightning.pytorch.")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read(path) -> dict:
    """{key: array} of a .safetensors, .npz, or torch file (.ckpt, .pth, .pt, .bin).

    path: of the file, or its public name, see hub.py; so for the other functions here.
    Of a training checkpoint these are the tensors of its `state_dict`, and its `global_step` where
    it has one. bfloat16 becomes float32. Anything wrong with the file is a UsageError.
    """
    path = find(path)
    readers = {".safetensors": _safetensors, ".npz": _npz}
    try:
        content = readers.get(path.suffix, _torch)(path)
    except errors.UsageError:
        raise
    except Exception as e:  # a damaged file makes its reader fail in many ways
        raise errors.UsageError(
            f"{path} cannot be read: damaged, or not a checkpoint ({errors.reason(e)})."
        ) from e
    state = _state_dict(content)
    if not state:
        raise errors.UsageError(f"{path} holds no tensors.")
    return state


def find(path) -> pathlib.Path:
    """The file of a path or of a public name, which is fetched if need be; none is a UsageError."""
    found = hub.file(path)
    if not found.is_file():
        hint = errors.nearest(path, hub.KNOWN)
        raise errors.UsageError(f"{path}: there is no such file{hint or '.'}")
    return found


def digest(path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with open(find(path), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _state_dict(content) -> dict:
    if not isinstance(content, dict):
        raise errors.UsageError(f"A checkpoint holds a dict, this one a {type(content).__name__}.")
    extra = {"global_step": content["global_step"]} if "global_step" in content else {}
    inner = map(content.get, ("state_dict", "model_state_dict", "params_ema", "params"))
    content = next((group for group in inner if isinstance(group, dict)), content)
    tensors = {
        k: v.astype(np.float32) if v.dtype == BFLOAT16 else v
        for k, v in content.items()
        if isinstance(v, np.ndarray)
    }
    return tensors | {k: np.asarray(v) for k, v in extra.items() if isinstance(v, int)}


def _npz(path):
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data}


def metadata(path) -> dict:
    """The metadata of a .safetensors file; {} for other files."""
    path = find(path)
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata() or {}


def _safetensors(path):
    with safetensors.safe_open(path, "numpy") as file:
        keys = list(file.keys())
        for key in keys:
            if (dtype := file.get_slice(key).get_dtype()) not in SAFE_DTYPES:
                known = ", ".join(SAFE_DTYPES)
                raise errors.UsageError(f"{path}: {key} is of dtype {dtype}; known: {known}.")
        return {key: file.get_tensor(key) for key in keys}


def _torch(path):
    if not zipfile.is_zipfile(path):
        with path.open("rb") as f:
            return _legacy_torch(f, path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
        folder = name.removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist():
            order = archive.read(folder + "byteorder")
            if order != b"little":
                raise errors.UsageError(f"{path} is in byte order {order}; only little is read.")
        stored = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in stored):
            raise ValueError("compressed members: torch writes none")
        cache = {}

        def storage(key, kind, count):
            if key not in cache:
                cache[key] = np.frombuffer(archive.read(f"{folder}data/{key}"), kind)
            return cache[key][:count]

        return _Unpickler(io.BytesIO(archive.read(name)), storage).load()


def _legacy_torch(f, size):
    """Files of torch before 1.6: five pickles, then the storages, each with its length."""
    storages = {}

    def storage(key, kind, count):
        if count * kind.itemsize > size:
            raise ValueError("a storage is longer than the file")
        return storages.setdefault(key, np.zeros(count, kind))

    if _Unpickler(f, storage).load() != LEGACY_MAGIC:
        raise ValueError("neither a zip archive nor an old torch file")
    _Unpickler(f, storage).load(), _Unpickler(f, storage).load()  # the protocol, the machine
    content = _Unpickler(f, storage).load()
    for key in _Unpickler(f, storage).load():
        (count,) = struct.unpack("<q", f.read(8))
        array = storages[key]
        if count != array.size:
            raise ValueError("a storage has another length than its tensors say")
        array[:] = np.frombuffer(f.read(array.nbytes), array.dtype)
    return content


# The stand-in for a storage class such as `torch.FloatStorage`; dtype: numpy's.
_Kind = collections.namedtuple("_Kind", "dtype")


def _refuse(name):
    raise errors.UsageError(
        f"The checkpoint is a pickle that calls for {name}: refused. Only tensors and plain "
        "containers are read; have it saved as .safetensors, or its state_dict alone."
    )


class _Unpickler(pickle.Unpickler):
    """Containers, numbers, strings and tensors.

    storage: (key, dtype, number of elements) -> flat array.
    """

    def __init__(self, file, storage):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        # Made anew for each file, so that nothing a pickle does to these functions outlives it.
        self._known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(*args),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
            ("torch", "Size"): lambda size=(): tuple(size),
        }
        for name, dtype in TORCH_DTYPES.items():
            self._known["torch", f"{name}Storage"] = _Kind(np.dtype(dtype))

    def find_class(self, module, name):
        if (module, name) in self._known:
            return self._known[module, name]
        if module.startswith(INERT):  # a class that is named and not called
            return lambda *_, **__: _refuse(f"{module}.{name}")
        return _refuse(f"{module}.{name}")

    def persistent_load(self, pid):
        tag, kind, key, _, count, *view = pid
        if tag != "storage" or not isinstance(kind, _Kind) or (view and view[0] is not None):
            raise ValueError(f"unknown storage {pid[:2]}")
        return self._storage(str(key), kind.dtype, int(count))


def _tensor(flat, offset, size, stride, *_):
    """A view into a storage, kept within its bounds."""
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = offset >= 0 and min((*size, *stride), default=0) >= 0 and reach < flat.size
    if 0 not in size and not (inside and math.prod(size) <= max(flat.size, 1)):
        raise ValueError("a tensor reaches beyond its storage")
    if 0 in size:
        return np.zeros(size, flat.dtype)
    strides = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, strides)
