"""The conditions of a job's images, read and checked before any model is loaded."""

import hashlib
import os

import numpy as np

from ldm_jax.base import disk, errors, values
from ldm_jax.jobs import pictures
from ldm_jax.runs import conditions
from ldm_jax.runs.conditions import HINT

BALANCED, RANDOM = "balanced", "random"
_is_file = os.path.isfile  # also of captions, which may be longer than a path can be


class Conditioning:
    """Image i is drawn under row i of every field; after the last row comes the first again.

    Attributes:
      names: {flag: what identifies the conditions}, for the manifest.
    """

    def __init__(self, fields: dict, names: dict, captions=()):
        self._fields, self.names, self._captions = fields, names, captions

    def fields(self, begin: int, count: int) -> dict | None:
        """{field: [count, ...]} of images begin .. begin + count - 1; None if unconditional."""
        chosen = np.arange(begin, begin + count)
        return {k: v[chosen % len(v)] for k, v in self._fields.items()} or None

    def row(self, i: int) -> dict:
        """What the outputs record of image i."""
        row = {"caption": self._captions[i % len(self._captions)]} if self._captions else {}
        if "class" in self._fields:
            labels = self._fields["class"]
            row["class"] = int(labels[i % len(labels)])
        return row


def read(
    wanted, *, classes: int, known: list[str], make, hint: tuple | None = None
) -> Conditioning:
    """Conditions as a drawing.Drawing asks for them.

    Args:
      wanted: has the fields labels (balanced, random, ids such as 3,5, or a file with an id on each
        line), prompts (one, or a file with one on each line), held_out (whether to take the
        conditions of held-out records), cond (an .npz with an array [n, ...] for each field), hints
        (a picture for a control to follow, or a folder of them), num and seed.
      classes: how many classes the run knows; 0 if it is not conditioned on any.
      known: the run's condition fields.
      make: (held_out, fields) -> (data.conditions.Conditions of these fields, the held-out source
        or None), opened where it is needed.
      hint: the shape of a control's hint; None without a control.
    """
    fields, names, captions = {}, {}, ()
    given, told = _given(wanted, known, hint, classes)
    if given and (flag := _idle(wanted, known, given)):
        beside = " and ".join(f"--{name}" for name in told)
        raise errors.UsageError(f"--{flag} does nothing beside {beside}: leave it out.")
    if wanted.prompts:
        captions = _read_prompts(wanted.prompts)
        maker, _ = make(held_out=False, fields=[field for field in known if field not in given])
        with errors.of(f"--prompts={wanted.prompts}"):
            fields, names["prompts"] = maker.of_prompts(captions), _identity(wanted.prompts)
    elif wanted.held_out:
        maker, held_out = make(held_out=True, fields=known)
        fields, _ = maker.of_source(held_out, min(wanted.num, len(held_out)))
        names["held_out"] = held_out.fingerprint
    elif classes or wanted.labels != BALANCED:
        fields["class"] = read_labels(wanted.labels, classes, wanted.num, wanted.seed)
        names["labels"] = _identity(wanted.labels)
    fields, names = fields | given, names | told
    if (fields or hint) and (lacking := sorted(set(known) - fields.keys())):
        also = "--hints=PICTURES, " if HINT in lacking else ""
        raise errors.UsageError(
            f"This run is also conditioned on {', '.join(lacking)}: give {also}--held_out, or "
            f"--cond=FILE.npz with an array [n, ...] for each."
        )
    return Conditioning(fields, names, captions)


def _idle(wanted, known, given) -> str:
    """A flag that says nothing of the fields that --cond and --hints leave to say; else ""."""
    if wanted.labels != BALANCED and "class" in given:
        return "labels"
    whole = given.keys() >= set(known)
    return next((flag for flag in ("prompts", "held_out") if whole and getattr(wanted, flag)), "")


def _given(wanted, known, hint, classes) -> tuple[dict, dict]:
    """What --cond and --hints hold, {field: [n, ...]}, and what a manifest says of them."""
    fields, names = {}, {}
    if wanted.cond:
        fields, names["cond"] = _read_arrays(wanted.cond), _identity(wanted.cond)
        if unknown := sorted(fields.keys() - set(known)):
            raise errors.UsageError(
                f"--cond={wanted.cond} has a field {unknown[0]!r}"
                f"{errors.nearest(unknown[0], known)}; this run is conditioned on "
                f"{', '.join(known) or 'nothing'}."
            )
    if "class" in fields:
        conditions.check_classes(f"--cond={wanted.cond}: 'class'", fields["class"], classes)
    if wanted.hints:
        if not hint or HINT in fields:
            why = "--cond holds a hint, too" if hint else "this run follows no control"
            raise errors.UsageError(f"--hints={wanted.hints}: {why}.")
        found = [picture.pixels for picture in pictures.read("--hints", wanted.hints)]
        hints = [np.float32(pixels) / 255 for pixels in found]
        conditions.check_hints(f"--hints={wanted.hints}", hints, hint)
        fields[HINT] = np.stack(hints)
        names["hints"] = hashlib.sha256(np.stack(found).tobytes()).hexdigest()
    elif hint and HINT in fields:
        conditions.check_hints(f"--cond={wanted.cond}", fields[HINT], hint)
    return fields, names


def _read_prompts(text: str) -> list[str]:
    lines = disk.read_text(text).splitlines() if _is_file(text) else [text]
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise errors.UsageError(f"--prompts={text} holds no prompt; write one a line.")
    return prompts


def read_labels(text: str, classes: int, num: int, seed: int) -> np.ndarray:
    """Class ids, int32 [n], that images take in turn; see `read`."""
    if not classes:
        raise errors.UsageError(f"--labels={text}: this run is not conditioned on classes.")
    if text == BALANCED:
        return np.arange(classes, dtype=np.int32)
    if text == RANDOM:  # the first ones do not depend on how many follow
        draw = np.random.Generator(np.random.Philox(key=seed)).random(num)
        return (draw * classes).astype(np.int32)
    words = disk.read_text(text).split() if _is_file(text) else text.split(",")
    try:
        ids = [values.whole(word) for word in words]
    except ValueError as e:
        raise errors.UsageError(
            f"--labels={text} must be balanced, random, class ids such as 3,5, or a file of them."
        ) from e
    if not ids:
        raise errors.UsageError(f"--labels={text} holds no class ids.")
    for i, label in enumerate(ids):
        if not 0 <= label < classes:
            where = f" (entry {i})" if _is_file(text) else ""
            raise errors.UsageError(
                f"--labels={text}: {label}{where} is not a class id in 0..{classes - 1}."
            )
    return np.asarray(ids, np.int32)


def _read_arrays(path):
    with disk.arrays(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if not array.ndim or not len(array):
            raise errors.UsageError(
                f"--cond={path}: {name!r} has the shape {array.shape}; give an array [n, ...] of "
                "at least one row."
            )
        if array.dtype.kind not in "biuf":
            raise errors.UsageError(
                f"--cond={path}: {name!r} is an array of {array.dtype}; give numbers."
            )
    return arrays


def _identity(text: str) -> str:
    """What a manifest says of a flag: its text, or the digest of the file that it names."""
    return hashlib.sha256(disk.read_bytes(text)).hexdigest() if _is_file(text) else text
