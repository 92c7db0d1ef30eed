"""How well pictures of scenes obey what they were asked for, by the checker's eyes alone.

Pure functions of uint8 pictures [n, h, w, 3] and of the wanted conditions, a value per picture; a
picture in which nothing is recognised scores 0.
"""

import re
from typing import NamedTuple

import numpy as np

from ldm_jax.data import scene_checker, scenes

_CLASS = "|".join(scenes.CLASSES)
_RELATION = "|".join(scenes.RELATIONS)
_CAPTION = re.compile(rf"a ({_CLASS})(?: (and|{_RELATION}) a ({_CLASS}))?")


class Adherence(NamedTuple):
    """Per picture, bool [n]: objects: just the wanted ones are there; whole: and they stand as the
    caption says (the same where it says nothing of it)."""

    objects: np.ndarray
    whole: np.ndarray


class Wanted(NamedTuple):
    """What a caption asks for: class ids in its order, and the relation of the first, or ""."""

    classes: tuple[int, ...]
    relation: str


def parse(caption: str) -> Wanted:
    """A caption of one or two objects; anything else is a ValueError."""
    match = _CAPTION.fullmatch(caption)
    if not match:
        raise ValueError(f"{caption!r} is no caption of one or two objects.")
    first, word, second = match.groups()
    classes = tuple(scenes.CLASSES.index(name) for name in (first, second) if name)
    return Wanted(classes, word if word in scenes.RELATIONS else "")


def caption_adherence(images: np.ndarray, captions: list[str]) -> Adherence:
    """Objects and relations of captions such as scenes have."""
    rows = [_obeys(found, parse(c)) for found, c in zip(scene_checker.find(images), captions)]
    objects, whole = np.array(rows, bool).reshape(-1, 2).T
    return Adherence(objects, whole)


def box_overlap(images: np.ndarray, boxes: list, box_class: list) -> np.ndarray:
    """Mean over the wanted boxes of the intersection over union with the best object of their
    class, float32 [n]. boxes: [k, 4] each; box_class: [k] each."""
    scores = []
    for found, wanted, ids in zip(scene_checker.find(images), boxes, box_class):
        best = [
            max((iou(thing.box, box) for thing in found if thing.class_id == i), default=0.0)
            for box, i in zip(wanted, ids)
        ]
        scores.append(np.mean(best) if best else 0.0)
    return np.array(scores, np.float32)


def map_agreement(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Of the pixels that show an object or should, the share that show the right one, float32 [n].

    maps: [n, h, w], 0 or 1 + class id, as scenes have them. (The background agrees by chance.)
    """
    scores = []
    for found, wanted in zip(scene_checker.find(images), np.asarray(maps)):
        h, w = wanted.shape
        seen = np.zeros_like(wanted)
        for thing in found:
            side = len(thing.cover)
            pick = np.ix_(np.arange(h) * side // h, np.arange(w) * side // w)
            seen[thing.cover[pick]] = 1 + thing.class_id
        either = (seen > 0) | (wanted > 0)
        scores.append(((seen == wanted) & either).sum() / max(either.sum(), 1))
    return np.array(scores, np.float32)


def iou(a, b) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0.0) * max(h, 0.0)
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])
    return float(both / max(area(a) + area(b) - both, 1e-12))


def _obeys(found, wanted: Wanted) -> tuple[bool, bool]:
    if sorted(thing.class_id for thing in found) != sorted(wanted.classes):
        return False, False
    if not wanted.relation:
        return True, True
    if len(set(wanted.classes)) == 1:
        return True, any(_stands(a, b, wanted.relation) for a, b in (found, found[::-1]))
    first, second = sorted(found, key=lambda thing: wanted.classes.index(thing.class_id))
    return True, _stands(first, second, wanted.relation)


def _stands(first, second, name: str) -> bool:
    """Whether the first object stands so to the second: by the sign along the relation's axis.

    A scene's caption names the longer axis; where both are about as long, either is true.
    """
    centre = lambda box: (np.array(box[:2]) + box[2:]) / 2
    return bool(np.dot(scenes.RELATIONS[name], centre(first.box) - centre(second.box)) > 0)
