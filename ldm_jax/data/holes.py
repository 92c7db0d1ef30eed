"""Masks for training to inpaint: holes of several kinds, drawn from a generator.

The paper gives no training code; its masks follow LaMa's (Suvorov et al. 2021): boxes and wide
strokes. Half planes are for extending pictures beyond their edge.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from ldm_jax.base import errors, registry

KINDS = registry.Registry("kind of hole")
EVEN = {"box": 1.0, "stroke": 1.0, "half": 1.0}
AREA = (0.04, 0.75)  # of the image; a hole outside these bounds is drawn again


class Mix:
    """`mix(h, w, rng) -> bool [h, w]`, True in the hole; kinds by their weights {kind: weight}."""

    def __init__(self, weights: dict):
        total = sum(weights.values())
        if not total > 0 or min(weights.values()) < 0:
            raise errors.UsageError(
                f"holes={weights}: give each kind ({', '.join(KINDS.names())}) a weight of 0 or "
                "more, at least one above 0."
            )
        self._kinds = [KINDS.get(kind) for kind in weights]
        self._shares = [weight / total for weight in weights.values()]

    def __call__(self, h: int, w: int, rng) -> np.ndarray:
        draw = self._kinds[rng.choice(len(self._kinds), p=self._shares)]
        while True:
            hole = draw(h, w, rng)
            if AREA[0] <= hole.mean() <= AREA[1]:
                return hole


@KINDS.register("box")
def box(h: int, w: int, rng) -> np.ndarray:
    """One to three rectangles about points of the image, which may reach beyond it.

    Their sides are a fifth to seven tenths of the image's.
    """
    hole = np.zeros((h, w), bool)
    for _ in range(rng.integers(1, 4)):
        centre, reach = rng.random(2), rng.uniform(0.1, 0.35, 2)
        top, left = np.rint((centre - reach).clip(0) * (h, w)).astype(int)
        bottom, right = np.rint((centre + reach) * (h, w)).astype(int)
        hole[top:bottom, left:right] = True
    return hole


@KINDS.register("stroke")
def stroke(h: int, w: int, rng) -> np.ndarray:
    """One to four brush strokes with bends, a tenth to a fifth of the image wide."""
    canvas = Image.new("1", (w, h))
    pen, side = ImageDraw.Draw(canvas), min(h, w)
    for _ in range(rng.integers(1, 5)):
        wide = max(1, round(side * rng.uniform(0.1, 0.2)))
        point, angle = rng.uniform(0, (w, h)), rng.uniform(0, 2 * math.pi)
        points = [tuple(point)]
        for _ in range(rng.integers(2, 6)):
            angle += rng.uniform(-math.pi / 2, math.pi / 2)
            step = side * rng.uniform(0.15, 0.4)
            point = point + step * np.array([math.cos(angle), math.sin(angle)])
            points.append(tuple(point))
        pen.line(points, fill=1, width=wide, joint="curve")
        for x, y in points:
            pen.ellipse([x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2], fill=1)
    return np.asarray(canvas).astype(bool)


@KINDS.register("half")
def half(h: int, w: int, rng) -> np.ndarray:
    """Everything on one side of a line, which passes near the middle."""
    angle = rng.uniform(0, 2 * math.pi)
    x0, y0 = rng.uniform(0.3, 0.7, 2)
    x, y = (np.arange(w) + 0.5) / w - x0, (np.arange(h) + 0.5) / h - y0
    return x * math.cos(angle) + y[:, None] * math.sin(angle) > 0
