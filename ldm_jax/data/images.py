"""Encoded bytes -> uint8 RGB pixels, with the guards that strangers' files need."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from ldm_jax.base import errors

MAX_PIXELS = 64 * 2**20  # 64 Mpix: above any photograph, below what would exhaust a worker
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class BadRecord(Exception):
    """One record that cannot be read or decoded; the message names it."""


def is_image_name(name: str) -> bool:
    """True for a visible path (no hidden part) with one of `EXTENSIONS`, in any case."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in EXTENSIONS


def decode(data: bytes, name: str) -> np.ndarray:
    """Image bytes -> uint8 [h, w, 3] RGB, as a viewer shows the picture.

    EXIF orientation is applied (the official loaders ignore it and train on sideways photographs),
    transparency is composited over white, 16-bit greys keep their upper 8 bits. The size in the
    header is checked before any pixel is decoded; truncated files are errors.

    Raises:
      BadRecord: whatever is wrong with the bytes, naming the record.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            w, h = image.size
            if w * h <= MAX_PIXELS:
                ImageOps.exif_transpose(image, in_place=True)  # else it copies upright ones
                return np.array(_to_rgb(image))
    # On broken bytes PIL's plugins raise all sorts: OSError, SyntaxError, ValueError, struct.error.
    except Exception as e:
        raise BadRecord(f"{name}: does not decode ({type(e).__name__}: {errors.reason(e)}).") from e
    raise BadRecord(f"{name}: {w}x{h} is more than {MAX_PIXELS} pixels; shrink it.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # convert("RGB") would copy it
    if image.mode.startswith("I;16") or image.mode == "I":
        # convert("RGB") would clip 16-bit greys to white.
        upper = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def require_size(what: str, values: np.ndarray, size: tuple[int, int]):
    """Raises BadRecord unless values [h, w, ...], called `what`, have the size (h, w)."""
    if values.shape[:2] != tuple(size):
        found, wanted = ("x".join(map(str, shape[1::-1])) for shape in (values.shape, size))
        raise BadRecord(f"has {what} of {found}, not {wanted}: make it that size")


def encode(pixels: np.ndarray, image_format: str = "png", **options) -> bytes:
    """uint8 [h, w, 3] or [h, w], or uint16 [h, w] (png only) -> encoded bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def encode_map(values: np.ndarray) -> bytes:
    """A map of class ids, integers [h, w] below 65536 -> PNG bytes, exact."""
    wide = values.size and values.max() > 255
    return encode(values.astype(np.uint16 if wide else np.uint8))


def decode_map(data: bytes, name: str) -> np.ndarray:
    """The other way: uint8 [h, w], or int32 where ids go above 255."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            values = np.array(image)
    except Exception as e:
        raise BadRecord(f"{name}: segmentation does not decode ({errors.reason(e)}).") from e
    if values.ndim != 2:
        raise BadRecord(f"{name}: a map has one channel of labels, this one {values.shape[2]}.")
    return values if values.dtype == np.uint8 else values.astype(np.int32)
