"""Procedural scenes: coloured shapes on textured backgrounds, rendered from (seed, index) alone.

A data set for every machine: balanced classes, exact captions, boxes and segmentation, and a
checker (`scenes.checker`) that tells from pixels what was drawn, so that a generator can be graded.
All geometry is in units of the image side, so one scene is the same picture at every size.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from ldm_jax.base import errors
from ldm_jax.data import sources

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {  # RGB in [0, 1]; hues at least 60 degrees apart
    "red": (0.86, 0.14, 0.14),
    "green": (0.14, 0.68, 0.20),
    "blue": (0.16, 0.32, 0.90),
    "yellow": (0.95, 0.83, 0.10),
}
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
RELATIONS = {  # of the first of two objects to the second; x grows to the right, y downwards
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
WORDS = ("a", "and", *sorted({w for r in RELATIONS for w in r.split()}), *COLOURS, *SHAPES)
MAX_TURN = math.radians(5)
MAX_OBJECTS = 9
_DIAMETER = (0.70, 0.86)  # of the circle around a shape, as a part of the image's side
_CIRCLE = 0.88  # of that, for circles, so that they do not look larger than the other shapes
_MARGIN = 0.02
_VERSION = "3"  # part of the fingerprint: raise it when the pictures change
_RGB = np.array(list(COLOURS.values()), np.float32)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: class id, the circle around it (x, y, radius), turn in radians, RGB, shading."""

    class_id: int
    x: float
    y: float
    radius: float
    turn: float
    rgb: np.ndarray
    shade: tuple[float, float]

    @property
    def shape(self) -> int:
        return self.class_id // len(COLOURS)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in a picture, free of its resolution. The background mixes two RGB colours [2, 3]."""

    texture: int
    waves: np.ndarray  # [k, 3]: cycles over x, cycles over y, phase in radians
    colours: np.ndarray
    things: tuple[Thing, ...]


@sources.SOURCES.register("scenes")
class Scenes(sources.Source):
    """`count` rendered pictures [size, size, 3] with `objects` shapes each.

    Record i depends on (seed, i) and the arguments; its class is that of its first object.

    relations: captions of several objects say where each is to the next: "a red circle left of a
      blue square".
    combinations: of two objects; "seen" leaves out the pairs of classes for which `is_unseen`,
      "unseen" has them alone, "" all. Train on the seen ones, ask for the unseen ones.
    """

    classes = box_classes = CLASSES
    words = WORDS

    def __init__(
        self,
        size: int = 64,
        count: int = 100_000,
        seed: int = 0,
        objects: int = 1,
        relations: bool = False,
        combinations: str = "",
    ):
        if combinations not in ("", "seen", "unseen"):
            raise errors.UsageError(
                f"scenes: combinations={combinations!r}: choose seen, unseen or '' for all."
            )
        if (relations and objects < 2) or (combinations and objects != 2):
            raise errors.UsageError(
                f"scenes: relations={relations} are of two objects or more, "
                f"combinations={combinations!r} of two, not {objects}: set objects=2."
            )
        if size < 8 or count < 1 or not 1 <= objects <= MAX_OBJECTS:
            raise errors.UsageError(
                f"scenes: size={size}, count={count}, objects={objects}: size must be at least 8, "
                f"count at least 1 and objects 1 to {MAX_OBJECTS}."
            )
        self._size, self._count, self._seed, self._objects = size, count, seed, objects
        self._relations, self._combinations = relations, combinations
        kinds = f" {relations} {combinations}" if relations or combinations else ""
        arguments = f"{size} {count} {seed} {objects}{kinds}"
        self.fingerprint = sources.digest("scenes", _VERSION, arguments)

    def __len__(self):
        return self._count

    def name(self, i):
        return f"scene {i} of seed {self._seed}"

    def __getitem__(self, i):
        if not 0 <= i < self._count:
            raise IndexError(i)
        scene = compose(self._seed, i, self._objects, self._combinations)
        image, segmentation = render(scene, self._size)
        ids = np.array([thing.class_id for thing in scene.things], np.int32)
        return {
            "image": image,
            "class": ids[0],
            "caption": caption(scene.things, self._relations),
            "boxes": np.array([box(thing) for thing in scene.things], np.float32),
            "box_class": ids,
            "segmentation": segmentation,
        }


def caption(things, relations: bool = False) -> str:
    """ "a red circle", "a red circle and a blue square", or with the relation of each to the next:
    "a red circle left of a blue square above a green cross"."""
    names = [f"a {CLASSES[thing.class_id]}" for thing in things]
    between = [relation(*pair) if relations else "and" for pair in itertools.pairwise(things)]
    return " ".join(itertools.chain(*zip(names, [*between, ""]))).rstrip()


def relation(first, second) -> str:
    """How the first thing stands to the second, along the longer axis of the two."""
    x, y = first.x - second.x, first.y - second.y
    return max(RELATIONS, key=lambda name: RELATIONS[name][0] * x + RELATIONS[name][1] * y)


def is_unseen(first: int, second: int) -> bool:
    """Whether these two classes are never together in a picture of combinations="seen".

    Each class has one or two such partners out of sixteen.
    """
    return first != second and (first + second) % 8 == 0


def compose(seed: int, i: int, objects: int = 1, combinations: str = "") -> Scene:
    """Draws scene i. Each run of 16 consecutive scenes has every class once, in a random order."""
    draw = _rng(seed, 2 * i)
    block, place = divmod(i, len(CLASSES))
    class_id = int(_rng(seed, 2 * block + 1).permutation(len(CLASSES))[place])
    light = _between(draw, 0.25, 0.75)
    contrast = _between(draw, 0.04, 0.10) * (1 if draw.random() < 0.5 else -1)
    tint = 0.07 * draw.random((2, 3)) - 0.035
    colours = np.array([[light - contrast], [light + contrast]]) + tint
    texture = int(draw.random() * len(_TEXTURES))
    angle, cycles = _between(draw, 0, math.pi), _between(draw, 0.8, 2)
    waves = (draw.random((6, 3)) - 0.5) * (4, 4, 2 * math.pi)
    # The first two are at right angles: one makes stripes, both together checks.
    waves[0, :2] = cycles * math.cos(angle), cycles * math.sin(angle)
    waves[1, :2] = -waves[0, 1], waves[0, 0]
    fits = lambda j: not combinations or is_unseen(class_id, j) == (combinations == "unseen")
    partners = [j for j in range(len(CLASSES)) if fits(j)]
    things = []
    for k, (x, y, radius) in enumerate(_arrange(draw, objects)):
        thing_class = class_id if k == 0 else partners[int(draw.random() * len(partners))]
        rgb = _RGB[thing_class % len(COLOURS)] * _between(draw, 0.88, 1.05)
        rgb = np.clip(rgb + (0.06 * draw.random(3) - 0.03), 0, 1).astype(np.float32)
        turn = _between(draw, -MAX_TURN, MAX_TURN)
        shade = _between(draw, -0.09, 0.09), _between(draw, -0.09, 0.09)
        things.append(Thing(thing_class, x, y, radius, turn, rgb, shade))
    return Scene(texture, waves, colours.astype(np.float32), tuple(things))


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """-> image uint8 [size, size, 3], segmentation uint8 [size, size] (0, or 1 + class id)."""
    axis = _axis(size)
    low, high = scene.colours[:, :, None, None]
    # Planes [3, size, size] until the end: numpy is slow along a last axis of three.
    image = low + _TEXTURES[scene.texture](scene.waves, axis) * (high - low)
    segmentation = np.zeros((size, size), np.uint8)
    for thing in scene.things:
        # Everything that the thing may touch lies in these pixels.
        x, y, reach = thing.x * size, thing.y * size, thing.radius * size + 2
        columns = slice(max(int(x - reach), 0), int(x + reach))
        rows = slice(max(int(y - reach), 0), int(y + reach))
        u = (axis[columns] - thing.x)[None, :]
        v = (axis[rows] - thing.y)[:, None]
        distance = signed_distance(thing.shape, u, v, thing.radius, thing.turn)
        # Half a pixel each side of the edge: the pixel's coverage to first order.
        cover = np.clip(0.5 - distance * size, 0, 1)
        segmentation[rows, columns][cover > 0.5] = 1 + thing.class_id
        light = 1 + u * (thing.shade[0] / thing.radius) + v * (thing.shade[1] / thing.radius)
        patch = image[:, rows, columns]
        patch += cover * (light * thing.rgb[:, None, None] - patch)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), segmentation


def signed_distance(shape: int, x, y, radius: float, turn: float) -> np.ndarray:
    """Distance to the edge of a shape centred at 0, negative inside; exact along straight edges."""
    if SHAPES[shape] == "circle":
        return np.sqrt(x * x + y * y) - np.float32(_CIRCLE * radius)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    x, y = cos * x + sin * y, cos * y - sin * x
    if SHAPES[shape] == "triangle":
        side = np.float32(math.sqrt(0.75)) * np.abs(x) - y / 2
        return np.maximum(side, y) - np.float32(radius / 2)
    x, y = np.abs(x), np.abs(y)
    long, wide = _half_sides(shape, radius)
    if SHAPES[shape] == "square":
        return np.maximum(x, y) - long
    return np.minimum(np.maximum(x - long, y - wide), np.maximum(x - wide, y - long))


def box(thing: Thing) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a thing, exact, in [0, 1]."""
    corners = _corners(thing.shape, thing.radius)
    turn = 0 if SHAPES[thing.shape] == "circle" else thing.turn
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = thing.x + corners @ (cos, -sin), thing.y + corners @ (sin, cos)
    return (x.min(), y.min(), x.max(), y.max())


def _corners(shape: int, radius: float) -> np.ndarray:
    """Points [n, 2] of a shape centred at 0 that reach as far as it does; of a circle, two."""
    if SHAPES[shape] == "circle":
        return np.array([(-1, -1), (1, 1)]) * np.float32(_CIRCLE * radius)
    if SHAPES[shape] == "triangle":
        half = radius * math.sqrt(0.75)
        return np.array([(0, -radius), (-half, radius / 2), (half, radius / 2)])
    long, wide = _half_sides(shape, radius)
    signs = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    return np.concatenate([signs * (long, wide), signs * (wide, long)])


def _half_sides(shape: int, radius: float) -> tuple[np.float32, np.float32]:
    """Half length and half width of a square, or of the two bars of a cross."""
    ratio = 1.0 if SHAPES[shape] == "square" else 0.34
    long = radius / math.hypot(1, ratio)
    return np.float32(long), np.float32(long * ratio)


def _arrange(draw, objects: int) -> list[tuple[float, float, float]]:
    """Circles (x, y, radius) inside the unit square that do not overlap."""
    scale = 1 if objects == 1 else 0.85 / math.sqrt(objects)
    while True:
        placed = []
        for _ in range(40 * objects):
            radius = scale * _between(draw, *_DIAMETER) / 2
            x = _between(draw, radius + _MARGIN, 1 - radius - _MARGIN)
            y = _between(draw, radius + _MARGIN, 1 - radius - _MARGIN)
            if all(math.hypot(x - u, y - v) > radius + r + _MARGIN for u, v, r in placed):
                placed.append((x, y, radius))
            if len(placed) == objects:
                return placed
        scale *= 0.9


def _rng(seed: int, stream: int) -> np.random.Generator:
    # Keyed directly: a SeedSequence costs more. The counter's top word keeps these streams apart
    # from those of the pipeline, which has the same seeds.
    counter = np.array([0, 0, 0, 1], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=(seed % 2**64, stream)))


def _between(draw, low: float, high: float) -> float:
    return low + (high - low) * draw.random()  # Generator.uniform takes three times as long


@functools.lru_cache(maxsize=8)
def _axis(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def _wave(waves, axis) -> np.ndarray:
    """Sum over k of sin(2 pi (fx x + fy y) + phase): [s, s]. Separable, so two small matmuls."""
    along_x = 2 * math.pi * waves[:, 0, None] * axis
    along_y = 2 * math.pi * waves[:, 1, None] * axis + waves[:, 2, None]
    wave = np.sin(along_y).T @ np.cos(along_x) + np.cos(along_y).T @ np.sin(along_x)
    return wave.astype(np.float32)


def _gradient(waves, axis):
    x, y = waves[0, :2] / np.abs(waves[0, :2]).sum()
    ramp = x * (axis - 0.5)[None, :] + y * (axis - 0.5)[:, None]
    return (0.5 + ramp).astype(np.float32)


def _stripes(waves, axis):
    return 0.5 + 0.5 * np.tanh(2.5 * _wave(waves[:1], axis))


def _checks(waves, axis):
    return 0.5 + 0.5 * np.tanh(3 * _wave(waves[:1], axis) * _wave(waves[1:2], axis))


def _clouds(waves, axis):
    return 0.5 + 0.5 * np.tanh(0.8 * _wave(waves[2:], axis))


_TEXTURES = (_gradient, _stripes, _checks, _clouds)
