"""Hints: the pictures that a control follows, made of a record; `(record) -> float32 [h, w, 3]`.

Values lie in [0, 1]. A record's image is uint8 [h, w, 3]; one without what a hint is made of is a
BadRecord. The same record always makes the same hint.
"""

import numpy as np

from ldm_jax.base import registry
from ldm_jax.data import images

HINTS = registry.Registry("hint")


@HINTS.register("edges")
def edges(record: dict) -> np.ndarray:
    """The magnitude of Sobel's gradient: white lines where neighbours differ, black elsewhere.

    The largest of the three colours' gradients, so that colours of one brightness have an edge,
    too; a straight edge of full contrast, 0 beside 255, is 1. Pixels beyond the border are those of
    the border.
    """
    if "image" not in record:
        raise images.BadRecord("has no picture whose edges are a hint")
    x = np.pad(np.float32(record["image"]) / 255, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth = lambda x, axis: _shifted(x, axis, 0) + 2 * _shifted(x, axis, 1) + _shifted(x, axis, 2)
    slope = lambda x, axis: _shifted(x, axis, 2) - _shifted(x, axis, 0)
    across, down = slope(smooth(x, 0), 1), slope(smooth(x, 1), 0)
    found = np.sqrt(across**2 + down**2).max(-1) / 4
    return np.repeat(np.minimum(found, 1)[..., None], 3, axis=-1)


@HINTS.register("map")
def semantic_map(record: dict) -> np.ndarray:
    """A map of labels in the colours of PASCAL VOC; label 0 is black, and 255 light."""
    if "segmentation" not in record:
        raise images.BadRecord("has no semantic map")
    return PALETTE[np.asarray(record["segmentation"], np.int64) % len(PALETTE)]


@HINTS.register("picture")
def picture(record: dict) -> np.ndarray:
    """A hint that is handed in as it is, under `hint`: of a control whose own nobody here makes."""
    raise images.BadRecord("has no hint: give it as a picture")


def _shifted(x, axis: int, by: int):
    """Without two of the rows along an axis: from the row `by` on."""
    return np.take(x, np.arange(by, x.shape[axis] - 2 + by), axis)


def _palette() -> np.ndarray:
    """The colours of PASCAL VOC's development kit: bit by bit, from a label's to those of three."""
    labels, found = np.arange(256), np.zeros((256, 3), np.uint8)
    for i in range(8):
        for channel in range(3):
            found[:, channel] |= (((labels >> (3 * i + channel)) & 1) << (7 - i)).astype(np.uint8)
    return found.astype(np.float32) / 255


PALETTE = _palette()
