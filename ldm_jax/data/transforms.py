"""Changes to one record: callables `(record, rng) -> record`. Boxes and segmentation follow.

A record that a transform can do nothing with is an images.BadRecord, whose message goes on from
the record's name.
"""

import numpy as np
from PIL import Image

from ldm_jax.base import errors
from ldm_jax.data import images

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


def standard(
    size: int,
    crop: str = "center",
    flip: bool = False,
    interpolation: str = "bicubic",
    makers: tuple = (),
    crop_least: float = 1.0,
) -> list:
    """The usual chain for training. For evaluation: the defaults (centre crop, no flip).

    makers: transforms that make condition fields of the cropped and flipped record. The others: see
    `Crop`.
    """
    cut = Crop(size, crop, interpolation, crop_least)
    return [cut, *([Flip()] if flip else []), *makers, ToFloat()]


class Crop:
    """A square window as wide as the short side, resized to [size, size], up or down.

    center: cut the middle, then resize: the official LSUN, CelebA-HQ and FFHQ loaders.
    random: resize the short side to `size`, then cut at a random place along the long side: the
      official ImageNet training loader, with PIL's filters (which antialias) in place of cv2's.
      With `least` below 1 the window's side is drawn evenly between this share of the short side
      and all of it, at any place: the official loader of super-resolution, whose least is 0.5.

    Where a record has boxes, `whole_boxes` and `window` are those and the square in coordinates of
    the whole image, for layouts that tell the crop.
    """

    def __init__(
        self,
        size: int,
        mode: str = "center",
        interpolation: str = "bicubic",
        least: float = 1.0,
    ):
        if mode not in ("center", "random"):
            raise errors.UsageError(f"crop={mode!r}: choose center or random.")
        if interpolation not in INTERPOLATIONS:
            hint = errors.nearest(interpolation, INTERPOLATIONS)
            raise errors.UsageError(
                f"interpolation={interpolation!r}: choose {', '.join(INTERPOLATIONS)}{hint}"
            )
        if size < 1:
            raise errors.UsageError(f"size={size}: give the side of the square in pixels.")
        self._size, self._mode, self._interpolation, self._least = size, mode, interpolation, least

    def __call__(self, record, rng):
        if record["image"].ndim != 3 or record["image"].shape[2] != 3:
            raise images.BadRecord(f"is of shape {record['image'].shape}, not [h, w, 3]")
        if record["image"].dtype != np.uint8:
            raise images.BadRecord(f"is of {record['image'].dtype}, not uint8 from 0 to 255")
        h, w = record["image"].shape[:2]
        side = min(h, w)
        y, x = (h - side) // 2, (w - side) // 2
        if self._mode == "random":
            if self._least < 1:
                side = max(1, int(side * rng.uniform(self._least, 1)))
            y, x = (int(rng.integers(n - side + 1)) for n in (h, w))
        out = record | {"image": self._resize(record["image"], x, y, side)}
        if "segmentation" in record:
            images.require_size("a semantic map", record["segmentation"], (h, w))
            pick = ((np.arange(self._size) + 0.5) * side / self._size).astype(int)
            out["segmentation"] = record["segmentation"][np.ix_(y + pick, x + pick)]
        if "boxes" in record:
            out |= _crop_boxes(record, np.array([x, y]), np.array([w, h]), side)
        return out

    def _resize(self, pixels, x, y, side):
        if self._mode == "center" or self._least < 1 or side == self._size:
            pixels = pixels[y : y + side, x : x + side]
            x = y = 0
        if side == self._size:
            return np.ascontiguousarray(pixels)
        # With `box` the filter sees pixels outside the window, as if resizing came before the cut.
        image = Image.fromarray(pixels).resize(
            (self._size, self._size),
            INTERPOLATIONS[self._interpolation],
            box=(x, y, x + side, y + side),
        )
        return np.asarray(image)


class Flip:
    """Mirrors a share of the records. The official recipes mirror neither faces nor ImageNet."""

    def __init__(self, share: float = 0.5):
        self._share = share

    def __call__(self, record, rng):
        if rng.random() < 1 - self._share:
            return record
        out = record | {"image": record["image"][:, ::-1]}
        if "segmentation" in record:
            out["segmentation"] = record["segmentation"][:, ::-1]
        for key in ("boxes", "whole_boxes", "window"):
            if key in record:
                x0, y0, x1, y1 = np.moveaxis(record[key], -1, 0)
                out[key] = np.stack([1 - x1, y0, 1 - x0, y1], axis=-1)
        return out


class ToFloat:
    """uint8 -> float32 in [-1, 1]."""

    def __call__(self, record, rng):
        return record | {"image": to_float(record["image"])}


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]; black is -1 exactly."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def _crop_boxes(record, corner, whole, side) -> dict:
    """Boxes relative to the window at `corner` (x, y pixels); those outside it are dropped."""
    boxes = record["boxes"] * np.tile(whole, 2) - np.tile(corner, 2)
    boxes = np.clip(boxes / side, 0, 1).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    out = {
        "boxes": boxes[kept],
        "whole_boxes": record["boxes"][kept],
        "window": np.concatenate([corner / whole, (corner + side) / whole]).astype(np.float32),
    }
    if "box_class" in record:
        if len(record["box_class"]) != len(boxes):
            raise images.BadRecord(
                f"has {len(boxes)} boxes but {len(record['box_class'])} classes of boxes"
            )
        out["box_class"] = record["box_class"][kept]
    return out
