"""How well pictures of scenes obey what they were asked for, by the checker's eyes alone.

Pure functions of uint8 pictures [n, h, w, 3] and of the n records that they were asked for, to a
value per picture: {name: [n]}. A picture in which nothing is recognised scores 0.
"""

import re
from collections.abc import Callable

import numpy as np

from ldm_jax.scenes import checker as scene_checker
from ldm_jax.scenes import scenes

_CLASS = "|".join(scenes.CLASSES)
_BETWEEN = "|".join(("and", *scenes.RELATIONS))
_CAPTION = re.compile(rf"a (?:{_CLASS})(?: (?:{_BETWEEN}) a (?:{_CLASS}))*")


def parse(caption: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What a caption asks for: class ids in its order, and what stands between each and the next.

    That is a relation, or "and". A text that is no caption of scenes is a ValueError.
    """
    if not _CAPTION.fullmatch(caption):
        raise ValueError(f"{caption!r} is no caption of scenes, such as 'a red circle'.")
    classes = tuple(scenes.CLASSES.index(name) for name in re.findall(_CLASS, caption))
    return classes, tuple(re.findall(_BETWEEN, caption))


def caption_scores(images: np.ndarray, records: list[dict]) -> dict[str, np.ndarray]:
    """Which of the pictures obey their records' captions.

    objects_accuracy: the wanted objects are there, and no others. caption_accuracy: they also stand
    as the caption says, where it says so. colours_accuracy: the same of the objects' colours alone,
    whatever their shapes.
    """
    pairs = [(a, parse(b["caption"])) for a, b in zip(scene_checker.find(images), records)]
    exact = np.array([_obeys(found, *wanted, lambda i: i) for found, wanted in pairs])
    colour = lambda i: i % len(scenes.COLOURS)
    colours = np.array([_obeys(found, *wanted, colour) for found, wanted in pairs])
    return {
        "objects_accuracy": exact[:, 0],
        "caption_accuracy": exact[:, 1],
        "colours_accuracy": colours[:, 1],
    }


def layout_scores(images, records) -> dict[str, np.ndarray]:
    """Mean over the wanted boxes of the intersection over union with the best object of their
    class."""
    scores = []
    for found, record in zip(scene_checker.find(images), records):
        best = [
            max((iou(thing.box, box) for thing in found if thing.class_id == i), default=0.0)
            for box, i in zip(record["boxes"], record["box_class"])
        ]
        scores.append(np.mean(best) if best else 0.0)
    return {"box_iou": np.array(scores, np.float32)}


def map_scores(images, records) -> dict[str, np.ndarray]:
    """Of the pixels that show an object or should, the share that show the right one.

    The background is not counted: it agrees by chance.
    """
    scores = []
    for found, record in zip(scene_checker.find(images), records):
        wanted = record["segmentation"]
        h, w = wanted.shape
        seen = np.zeros_like(wanted)
        for thing in found:
            side = len(thing.cover)
            pick = np.ix_(np.arange(h) * side // h, np.arange(w) * side // w)
            seen[thing.cover[pick]] = 1 + thing.class_id
        either = (seen > 0) | (wanted > 0)
        scores.append(((seen == wanted) & either).sum() / max(either.sum(), 1))
    return {"map_agreement": np.array(scores, np.float32)}


def class_scores(images, records) -> dict[str, np.ndarray]:
    """Which of the pictures show one object, of the class."""
    ids = np.array([record["class"] for record in records])
    return {"class_accuracy": scene_checker.check(images) == ids}


def superres_scores(images, records) -> dict[str, np.ndarray]:
    """Whether the sample shows the objects of the true picture: it fills in what is left open."""
    return _same_objects(images, np.stack([record["image"] for record in records]))


def inpaint_scores(images, records) -> dict[str, np.ndarray]:
    """Whether the sample, composited with the true picture outside the hole, shows the same
    objects."""
    true = np.stack([record["image"] for record in records])
    hole = np.stack([record["mask"] for record in records]) > 0
    return _same_objects(np.where(hole, images, true), true)


def plain_scores(images, records) -> dict[str, np.ndarray]:
    """Which of the pictures show as many objects as their records, whatever the condition."""
    pairs = zip(scene_checker.find(images), records)
    return {"objects_found": np.array([len(a) == len(b["boxes"]) for a, b in pairs])}


def marginal_distance(images) -> float:
    """How unevenly the recognised objects are spread over the classes, from 0 to 1.

    It is the total variation distance between their shares and the equal ones of scenes. n pictures
    of scenes have about 0.4 sqrt(classes / n).
    """
    ids = [thing.class_id for found in scene_checker.find(images) for thing in found]
    if not ids:
        return 1.0
    shares = np.bincount(ids, minlength=len(scenes.CLASSES)) / len(ids)
    return float(np.abs(shares - 1 / len(scenes.CLASSES)).sum() / 2)


# By condition field; the records hold what the makers of conditions added to them.
SCORES: dict[str, Callable] = {
    "class": class_scores,
    "text_ids": caption_scores,
    "layout_ids": layout_scores,
    "segmentation": map_scores,
    "low_res": superres_scores,
    "masked_image": inpaint_scores,
    "hint": map_scores,
}


def _same_objects(images, true) -> dict[str, np.ndarray]:
    """Of the pictures whose true ones are recognised, whether the same objects are seen."""
    name = lambda found: sorted(thing.class_id for thing in found)
    pairs = zip(scene_checker.find(images.astype(np.uint8)), scene_checker.find(true))
    return {"same_objects": np.array([name(a) == name(b) for a, b in pairs])}


def iou(a, b) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0.0) * max(h, 0.0)
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])
    return float(both / max(area(a) + area(b) - both, 1e-12))


def _obeys(found, classes, between, kind) -> tuple[bool, bool]:
    """(the wanted objects are there and no others, they also stand as the caption says).

    kind: class id -> what counts of it. Of objects of one kind any may be the one that is meant.
    """
    ids, of = [kind(i) for i in classes], lambda things: [kind(thing.class_id) for thing in things]
    if sorted(of(found)) != sorted(ids):
        return False, False
    return True, _arranged(found, [*zip(("and", *between), ids)], kind)


def _arranged(found, wanted, kind, last=None) -> bool:
    """Whether the objects can be put into an order that is wanted.

    wanted: of each, how the one before it stands to it, and its kind. last: the one before them.
    """
    if not wanted:
        return True
    (word, own), *rest = wanted
    fits = lambda thing: kind(thing.class_id) == own and _stands(last, thing, word)
    others = lambda i: found[:i] + found[i + 1 :]
    return any(fits(x) and _arranged(others(i), rest, kind, x) for i, x in enumerate(found))


def _stands(first, second, name: str) -> bool:
    """Whether the first object stands so to the second: by the sign along the relation's axis.

    A scene's caption names the longer axis; where both are about as long, either is true.
    """
    if name == "and":
        return True
    centre = lambda box: (np.array(box[:2]) + box[2:]) / 2
    return bool(np.dot(scenes.RELATIONS[name], centre(first.box) - centre(second.box)) > 0)
