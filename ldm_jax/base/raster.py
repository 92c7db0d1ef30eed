"""Images as bytes: rounding, sheets of many, PNG files."""

import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldm_jax.base import disk


def to_uint8(images):
    """[-1, 1] floats -> uint8, rounded half up (the official code truncates); traceable."""
    pixels = jnp.floor(jnp.asarray(images, jnp.float32) * 127.5 + 128.0)
    return jnp.clip(pixels, 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 [n, h, w, 3] -> one picture, row by row; small images are enlarged x2 to x4."""
    enlarge = max(1, min(4, 96 // images.shape[1]))
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def write_png(path: pathlib.Path, image: np.ndarray):
    """Atomic: the file is there whole or not at all."""
    disk.write_atomic(path, lambda f: Image.fromarray(image).save(f, format="PNG"))
