"""The conditions of a job's images, read and checked before any model is loaded."""

import hashlib
import pathlib
import zipfile

import numpy as np

from ldm_jax.base import errors

BALANCED, RANDOM = "balanced", "random"


class Conditions:
    """Image i is drawn under row i of every field, the rows over and over.

    Attributes:
      names: {flag: what identifies the conditions}, for the manifest.
    """

    def __init__(self, fields: dict, names: dict):
        self._fields, self.names = fields, names

    def fields(self, begin: int, count: int) -> dict | None:
        """{field: [count, ...]} of images begin .. begin + count - 1; None if unconditional."""
        chosen = np.arange(begin, begin + count)
        return {k: v[chosen % len(v)] for k, v in self._fields.items()} or None

    def row(self, i: int) -> dict:
        """What the outputs record of image i."""
        if "class" not in self._fields:
            return {}
        labels = self._fields["class"]
        return {"class": int(labels[i % len(labels)])}


def read(labels: str, cond: str, *, classes: int, known: list[str], num: int, seed: int):
    """Conditions from the flags.

    Args:
      labels: balanced, random, ids such as 3,5, or a file with an id a line.
      cond: an .npz with an array [n, ...] for every other field, or "".
      classes: how many classes the run knows; 0 if it is not conditioned on any.
      known: the run's condition fields.
    """
    fields, names = {}, {}
    if classes or labels != BALANCED:
        fields["class"] = read_labels(labels, classes, num, seed)
        file = pathlib.Path(labels)
        names["labels"] = _sha256(file) if file.is_file() else labels
    if cond:
        arrays, names["cond"] = _read_arrays(cond)
        if unknown := sorted(arrays.keys() - set(known)):
            raise errors.UsageError(
                f"--cond={cond} has a field {unknown[0]!r}{errors.nearest(unknown[0], known)}; "
                f"this run is conditioned on {', '.join(known) or 'nothing'}."
            )
        fields |= arrays
    if fields and (lacking := sorted(set(known) - fields.keys())):
        raise errors.UsageError(
            f"This run is also conditioned on {', '.join(lacking)}: give --cond=FILE.npz with an "
            f"array [n, ...] for each."
        )
    return Conditions(fields, names)


def read_labels(text: str, classes: int, num: int, seed: int) -> np.ndarray:
    """Class ids, int32 [n], that images take in turn; see `read`."""
    if not classes:
        raise errors.UsageError(f"--labels={text}: this run is not conditioned on classes.")
    if text == BALANCED:
        return np.arange(classes, dtype=np.int32)
    if text == RANDOM:  # the first ones do not depend on how many follow
        draw = np.random.Generator(np.random.Philox(key=seed)).random(num)
        return (draw * classes).astype(np.int32)
    file = pathlib.Path(text)
    words = file.read_text().split() if file.is_file() else text.split(",")
    try:
        ids = [int(word) for word in words]
    except ValueError as e:
        raise errors.UsageError(
            f"--labels={text} must be balanced, random, class ids such as 3,5, or a file of them."
        ) from e
    if not ids:
        raise errors.UsageError(f"--labels={text} holds no class ids.")
    for i, label in enumerate(ids):
        if not 0 <= label < classes:
            where = f" (entry {i})" if file.is_file() else ""
            raise errors.UsageError(
                f"--labels={text}: {label}{where} is not a class id in 0..{classes - 1}."
            )
    return np.asarray(ids, np.int32)


def _read_arrays(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise errors.UsageError(f"--cond={path} cannot be read as .npz ({e}).") from e
    for name, array in arrays.items():
        if not array.ndim or not len(array):
            raise errors.UsageError(f"--cond={path}: {name!r} {array.shape} needs a row an image.")
    return arrays, _sha256(pathlib.Path(path))


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
