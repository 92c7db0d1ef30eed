"""Tells from pixels alone which scene object a picture shows, or that it shows none.

Analysis by synthesis: the coloured region is cut out by hue, brought to a standard position and
size, and compared with every shape in every turn that the renderer may use. Only a close match to
one of them counts, so blobs, halves and noise are -1. It knows nothing of how a picture was made.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_jax.scenes import scenes

_CHUNK = 256  # pictures checked at a time
_SIDE = 64  # larger pictures are shrunk to this before checking
_GRID = 24  # samples along each side of the standard frame
_REACH = 1.25  # half-width of the standard frame, in units of sqrt(area)
_MIN_CHROMA = 0.22  # backgrounds stay below 0.1, objects are above 0.45
_MIN_LEVEL = 0.33  # of an object as a whole: a faded or half-transparent one is none
_MAX_HUE_ERROR = math.radians(32)
_MIN_MATCH = 0.83
_MIN_MATCH_OF_MANY = 0.75  # smaller objects are fewer pixels
_MIN_PART = 0.01  # of the picture, of one of several objects


class Object(NamedTuple):
    """One of several objects in a picture.

    box: x0, y0, x1, y1 in [0, 1]; cover: bool [s, s], its pixels in the picture as the checker
    shrank it.
    """

    class_id: int
    box: tuple[float, float, float, float]
    cover: np.ndarray


def find(images: np.ndarray) -> list[list[Object]]:
    """images: uint8 [n, h, w, 3], any number of objects -> those recognised in each, large first.

    Each connected region of one colour is compared with the shapes by itself. Objects of the same
    colour that touch are one region, in which most likely nothing is recognised.
    """
    return [_find(image) for image in _checked(images)]


def _find(image) -> list[Object]:
    from scipy import ndimage

    [x] = _smooth(_shrink(image[None]))
    by_colour = _by_colour(x)
    regions = []
    for colour in range(len(scenes.COLOURS)):
        own = by_colour[..., colour]
        labels, count = ndimage.label(own > _MIN_CHROMA)
        for k in range(1, count + 1):
            solid = labels == k
            if solid.mean() >= _MIN_PART:
                level = own[solid].mean()
                # The half-covered rim belongs to the region it touches.
                near = ndimage.binary_dilation(solid)
                cover = np.clip(own * near / level, 0, 1)
                regions.append((colour, level, np.where(cover > 0.3, cover, 0)))
    if not regions:
        return []
    matches = _compare(_normalise(np.stack([cover for _, _, cover in regions])))
    found = []
    for (colour, level, cover), match in zip(regions, matches):
        second, best = np.sort(match)[-2:]
        if level > _MIN_LEVEL and best > _MIN_MATCH_OF_MANY and best > second + 0.01:
            class_id = int(match.argmax()) * len(scenes.COLOURS) + colour
            found.append(Object(class_id, _box(cover), cover > 0.5))
    return sorted(found, key=lambda thing: -thing.cover.sum())


def _box(cover) -> tuple[float, float, float, float]:
    """Where coverage crosses one half, between pixels, from the profiles along both axes."""
    side, low, high = len(cover), [], []
    for axis in (0, 1):
        profile = np.pad(cover.max(axis), 1)
        inside = np.flatnonzero(profile > 0.5)
        first, last = inside[0], inside[-1]
        # A rim pixel of coverage c reaches c of its width into the picture's grid.
        low.append((first - 1 + 0.5 - min(profile[first - 1], 0.5)) / side)
        high.append((last - 0.5 + min(profile[last + 1], 0.5)) / side)
    return (*low, *high)


def _checked(images) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"The checker takes uint8 [n, h, w, 3], got {images.dtype} {images.shape}."
        )
    return images


def check(images: np.ndarray) -> np.ndarray:
    """images: uint8 [n, h, w, 3], one object each -> class ids, int32 [n]; -1: none recognised."""
    images = _checked(images)
    parts = [_check(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _check(images) -> np.ndarray:
    cover, colour, plausible = _segment(_smooth(_shrink(images)))
    matches = _compare(_normalise(cover))  # [n, shapes]
    second, best = np.sort(matches, axis=1)[:, -2:].T
    seen = plausible & (best > _MIN_MATCH) & (best > second + 0.015)
    class_id = matches.argmax(1) * len(scenes.COLOURS) + colour
    return np.where(seen, class_id, -1).astype(np.int32)


def _shrink(images) -> np.ndarray:
    """uint8 [n, h, w, 3] -> float32 [n, s, s, 3] in [0, 1], s at most 64."""
    h, w = images.shape[1:3]
    if (h, w) != (min(h, w, _SIDE),) * 2:
        side = min(h, w, _SIDE)
        shrunk = [Image.fromarray(x).resize((side, side), Image.Resampling.BOX) for x in images]
        images = np.stack([np.asarray(x) for x in shrunk])
    return images.astype(np.float32) / 255


def _smooth(x) -> np.ndarray:
    """A 3x3 binomial blur, which takes away pixel noise and changes the shapes little."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _segment(x):
    """float32 [n, s, s, 3] -> coverage by the main colour [n, s, s], colour id [n], plausible [n].

    Half-covered edge pixels have half the chroma and about the same hue, so chroma relative to the
    object's own is its coverage.
    """
    by_colour, chroma = _by_colour(x), np.hypot(*_chroma(x))
    mass = by_colour.sum((1, 2))  # [n, colours]
    colour = mass.argmax(1)
    own = np.take_along_axis(by_colour, colour[:, None, None, None], axis=3)[..., 0]
    solid = own > _MIN_CHROMA
    area = solid.mean((1, 2))
    level = (own * solid).sum((1, 2)) / np.maximum(solid.sum((1, 2)), 1)
    cover = np.clip(own / np.maximum(level, 1e-3)[:, None, None], 0, 1)
    cover = np.where(cover > 0.3, cover, 0)
    border = np.concatenate([cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]], axis=1)
    stray = (chroma * (chroma > _MIN_CHROMA)).sum((1, 2)) - (own * solid).sum((1, 2))
    plausible = (area > 0.03) & (area < 0.5) & (border.mean(1) < 0.02) & (level > _MIN_LEVEL)
    plausible &= stray < 0.15 * np.maximum((own * solid).sum((1, 2)), 1e-3)
    return cover, colour, plausible


def _by_colour(x) -> np.ndarray:
    """[..., 3] -> [..., colours]: the chroma of pixels in the hue of each colour, 0 elsewhere."""
    u, v = _chroma(x)
    chroma, hue = np.hypot(u, v), np.arctan2(v, u)
    error = np.abs((hue[..., None] - _HUES + math.pi) % (2 * math.pi) - math.pi)
    return chroma[..., None] * (error < _MAX_HUE_ERROR) * (chroma > _MIN_CHROMA / 2)[..., None]


def _chroma(rgb):
    """The hue hexagon's plane: red at 0, yellow 60, green 120, blue 240 degrees."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return r - (g + b) / 2, math.sqrt(0.75) * (g - b)


_HUES = np.arctan2(*_chroma(np.array(list(scenes.COLOURS.values()), np.float32))[::-1])


def _normalise(cover) -> np.ndarray:
    """[n, s, s] -> [n, g * g]: centred on the centroid, scaled by sqrt(area), bilinear."""
    n, s, _ = cover.shape
    area = np.maximum(cover.sum((1, 2)), 1e-3)
    axis = np.arange(s, dtype=np.float32)
    x = (cover.sum(1) @ axis) / area
    y = (cover.sum(2) @ axis) / area
    steps = np.sqrt(area)[:, None] * np.linspace(-_REACH, _REACH, _GRID, dtype=np.float32)
    # Bilinear sampling is separable: interpolation matrices [n, g, s] from the left and the right.
    rows = np.maximum(1 - np.abs((y[:, None] + steps)[..., None] - axis), 0)
    columns = np.maximum(1 - np.abs((x[:, None] + steps)[..., None] - axis), 0)
    return (rows @ cover @ columns.swapaxes(1, 2)).reshape(n, -1)


def _compare(frames) -> np.ndarray:
    """[n, g * g] -> best intersection over union with each shape: [n, shapes]."""
    agreement = lambda t: np.minimum(frames, t).sum(1) / np.maximum(frames, t).sum(1)
    return np.stack([np.max([agreement(t) for t in turns], 0) for turns in _templates()], axis=1)


@functools.cache
def _templates() -> np.ndarray:
    """Every shape in every turn and width, taken through the same steps: [shapes, t, g * g].

    The width of a shape in pixels says how sharp it is: few for a small or a blurred picture.
    """
    turns, widths = np.radians((-14, -7, 0, 7, 14)), (36, 17, 11)
    ground, ink = np.float32(0.5), np.array(scenes.COLOURS["red"], np.float32)
    frames = []
    for width in widths:
        side = 2 * width
        grid = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
        drawn = np.stack(
            [
                np.clip(0.5 - side * scenes.signed_distance(k, grid, grid[:, None], 0.25, t), 0, 1)
                for k in range(len(scenes.SHAPES))
                for t in turns
            ]
        )[..., None]
        cover, _, _ = _segment(_smooth(ground + drawn * (ink - ground)))
        frames.append(_normalise(cover).reshape(len(scenes.SHAPES), len(turns), -1))
    return np.concatenate(frames, axis=1)
