"""Images as bytes: rounding, contact sheets, PNG files."""

import functools
import pathlib

import einops
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
    white = functools.partial(np.pad, constant_values=255)
    images = white(images, ((0, -len(images) % columns), (gap, 0), (gap, 0), (0, 0)))
    sheet = einops.rearrange(images, "(r c) h w d -> (r h) (c w) d", c=columns)
    return white(sheet, ((0, gap), (0, gap), (0, 0)))


def write_png(path: pathlib.Path, image: np.ndarray):
    """Atomic: the file is there whole or not at all."""
    disk.write_atomic(path, lambda f: Image.fromarray(image).save(f, format="PNG"))
