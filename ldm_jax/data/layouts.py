"""Boxes and their classes as a sequence of discrete tokens: the official scene tokeniser.

(taming-transformers' conditional builders, which latent-diffusion's layout models are trained on.)
With a vocabulary of 8192, coordinates lie on a grid of 90 x 90, for 90 = floor(sqrt(8192)): the
point (x, y) in [0, 1]^2 is token round(89 y) * 90 + round(89 x). An object is (class, top left,
bottom right), or (class, centre); a missing one is the token 8191 in all its places. Behind the
objects come the corners of the crop, and boxes stay in coordinates of the whole image.
"""

import math
from typing import ClassVar

import numpy as np

from ldm_jax.base import errors
from ldm_jax.data import conditions, images

MIN_AREA = 1e-5  # of the whole image; smaller boxes are dropped, as the official COCO loader does
_PLACES = {"box": 2, "centre": 1}  # tokens that say where an object is


@conditions.MAKERS.register("layout_ids")
class LayoutIds(conditions.Maker):
    """`layout_ids` int32 [length], the objects in a random order each time.

    Boxes are clipped to the image; inverted, empty and not finite ones are dropped. Where there are
    more than fit, the largest stay. A record without boxes, or whose boxes lack classes, is bad;
    one whose boxes all lie outside the crop has a layout of no objects.

    The conditioner's `pad` stands for a missing object.

    places: box, two corners (the default); or centre, one point.
    encode_crop: add the crop's corners (the default); otherwise boxes are relative to the crop.
    """

    options: ClassVar = {"places": str, "encode_crop": bool}

    def __init__(self, given):
        places = given.options.get("places", "box")
        encode_crop = given.options.get("encode_crop", True)
        if places not in _PLACES:
            raise errors.UsageError(f"places={places!r}: choose {' or '.join(_PLACES)}.")
        [length] = given.shapes["layout_ids"]
        each = 1 + _PLACES[places]
        self._count, rest = divmod(length - 2 * encode_crop, each)
        if rest or self._count < 1:
            nearest = max(1, self._count) * each + 2 * encode_crop
            raise errors.UsageError(
                f"The layout conditioner's length={length} is no number of objects of {each} tokens"
                f"{' and a crop of 2' if encode_crop else ''}; nearest: {nearest}."
            )
        pad, names = given.conditioner.pad, given.source.box_classes if given.source else ()
        if len(names) > pad:
            raise errors.UsageError(
                f"The data has {len(names)} classes of boxes, the layout conditioner has ids for "
                f"{pad}: raise its vocab_size and pad."
            )
        self._sections, self._none = math.isqrt(given.conditioner.vocab_size), pad
        self._names, self._places, self._encode_crop = names, places, encode_crop

    def __call__(self, record, rng):
        boxes, ids = self._objects(record)
        order = rng.permutation(len(boxes))
        points = boxes.reshape(-1, 2, 2)
        points = points.mean(1, keepdims=True) if self._places == "centre" else points
        objects = np.full((self._count, 1 + points.shape[1]), self._none, np.int32)
        objects[: len(boxes), 0] = ids[order]
        objects[: len(boxes), 1:] = coordinate_tokens(points[order], self._sections)
        tokens = objects.reshape(-1)
        if self._encode_crop:
            window = np.asarray(record.get("window", (0, 0, 1, 1)), np.float64)
            crop = coordinate_tokens(window.reshape(2, 2), self._sections)
            tokens = np.concatenate([tokens, crop])
        return record | {"layout_ids": tokens.astype(np.int32)}

    def findings(self, record):
        boxes = np.asarray(record.get("boxes", ()), np.float64).reshape(-1, 4)
        if not len(boxes):
            yield "no boxes"
        elif not _sound(boxes).all():
            yield "empty, inverted or outside boxes, dropped"
        if len(boxes) > self._count:
            yield f"more than {self._count} boxes, the smallest dropped"

    def _objects(self, record):
        """Sound boxes [n, 4], at most as many as fit, and their class ids [n]."""
        if "boxes" not in record:
            raise images.BadRecord("has no boxes")
        key = "whole_boxes" if self._encode_crop and "whole_boxes" in record else "boxes"
        boxes = np.asarray(record[key], np.float64).reshape(-1, 4)
        # A class beyond the source's, where it names them, would borrow another one's token.
        count = len(self._names) or self._none
        find = lambda given: conditions.class_id("has a box", given, self._names, count)
        ids = np.array([find(given) for given in record.get("box_class", ())], np.int32)
        if len(ids) != len(boxes):
            raise images.BadRecord(f"has {len(boxes)} boxes but {len(ids)} classes of boxes")
        boxes, ids = boxes[_sound(boxes)].clip(0, 1), ids[_sound(boxes)]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        keep = np.sort(np.argsort(-area, kind="stable")[: self._count])
        return boxes[keep], ids[keep]


def coordinate_tokens(points: np.ndarray, sections: int) -> np.ndarray:
    """Points [..., 2] (x, y) in [0, 1] -> tokens [...] on a grid of sections x sections.

    Halves round to the even neighbour, as Python's round, which the official code uses.
    """
    x, y = np.moveaxis(np.rint(np.clip(points, 0, 1) * (sections - 1)).astype(np.int32), -1, 0)
    return y * sections + x


def _sound(boxes) -> np.ndarray:
    """bool [n]: finite, and with an area inside the image."""
    inside = np.clip(boxes, 0, 1)
    sides = inside[:, 2:] - inside[:, :2]
    return np.isfinite(boxes).all(1) & (sides > 0).all(1) & (sides.prod(1) >= MIN_AREA)
