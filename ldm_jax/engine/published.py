"""The weights of a published run: one safetensors file in the place of checkpoints.

    RUN/weights.safetensors    params/PLAYER/... float32, each with a checksum; the step

It is read as a checkpoint without an optimizer's state is. checkpoint.py asks here first.
"""

import contextlib
import json
import pathlib

import jax
import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import save_file

from ldm_jax.base import disk, errors, remote, tree, upgrade, values
from ldm_jax.base.record import Record

FILE = "weights.safetensors"
_SUMS = values.Mapping(None)


def of(run) -> "Weights | None":
    """The weights of a published run; None where the run has checkpoints of its own."""
    file = pathlib.Path(remote.local(run)) / FILE
    return Weights(file, Record(run).parameter_names) if disk.there(file) else None


def write(folder, step: int, params: dict):
    """Writes `params`, {player: tree}, of a step into a run's folder."""
    flat = {name: np.asarray(leaf) for name, leaf in tree.named_leaves({"params": params})}
    sums = tree.checksums({"params": params})
    about = {"format": "ldm_jax", "step": str(step), "checksums": json.dumps(sums)}
    flat = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    save_file(flat, pathlib.Path(folder) / FILE, metadata=about)


class Weights:
    """The file, and the renamings of earlier versions' parameters; see base/upgrade.py."""

    def __init__(self, file: pathlib.Path, names: dict[str, str]):
        self._file, self._names = file, names

    def saved(self) -> dict:
        """Shapes and dtypes of the state, nested, as of checkpoint.saved."""
        with self._open() as file:
            return self._shapes(file)

    def read(self, select) -> tuple[dict, int]:
        """As checkpoint.read."""
        with self._open() as file:
            wanted = select(self._shapes(file))
            about = file.metadata()
            wanted = upgrade.renamed(wanted, {new: old for old, new in self._known(file).items()})
            placed = lambda path, leaf: _placed(file, path, leaf)
            found = jax.tree_util.tree_map_with_path(placed, wanted)
            sums = json.loads(about["checksums"])
            values.check(f"{self._file}: checksums", sums, _SUMS)
            for name, total in tree.checksums(found).items():
                if total != sums.get(name):
                    raise ValueError(f"the checksum of {name} differs")
            return upgrade.renamed(found, self._known(file)), int(about["step"])

    @contextlib.contextmanager
    def _open(self):
        try:
            disk.check_regular(self._file)
            with safetensors.safe_open(self._file, "numpy") as file:
                yield file
        except errors.UsageError:
            raise
        except Exception as e:  # a damaged file makes its reader fail in many ways
            raise errors.UsageError(
                f"{self._file} cannot be read ({errors.reason(e)}): replace it, or fetch it again."
            ) from e

    def _known(self, file) -> dict[str, str]:
        parts = {part for name in file.keys() for part in name.split("/")}  # noqa: SIM118
        return {old: new for old, new in self._names.items() if old in parts}

    def _shapes(self, file) -> dict:
        flat = {}
        for name in file.keys():  # noqa: SIM118  (no dict)
            own = file.get_slice(name)
            if own.get_dtype() != "F32":
                raise ValueError(f"{name} is of {own.get_dtype()} and not of float32")
            shape = jax.ShapeDtypeStruct(tuple(own.get_shape()), np.float32)
            flat[tuple(name.split("/"))] = shape
        state = {"params": {}, "ema": {}, "opt": {}} | traverse_util.unflatten_dict(flat)
        return upgrade.renamed(state, self._known(file))


def _placed(file, path, leaf):
    """The array of a leaf, on the devices that it is wanted on."""
    array = file.get_tensor(tree.path_name(path))
    place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(leaf.shape, place, lambda index: array[index])
