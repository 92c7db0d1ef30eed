"""Pictures that a user hands in: read, checked and resized before any model is loaded."""

import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ldm_jax.base import disk, errors
from ldm_jax.data import images


class Picture(NamedTuple):
    """name: the file's, without its ending; pixels: uint8 [h, w, 3]."""

    name: str
    pixels: np.ndarray


def read(flag: str, path: str) -> list[Picture]:
    """The image files in a folder, by name, or a single one."""
    root = pathlib.Path(path)
    files = sorted(root.iterdir()) if root.is_dir() else [root]
    files = [file for file in files if images.is_image_name(file.name)]
    if not files or not root.exists():
        raise errors.UsageError(
            f"{flag}={path}: no images there ({', '.join(images.EXTENSIONS)}); give one."
        )
    found = {}
    for file in files:
        if file.stem in found:
            raise errors.UsageError(
                f"{flag}={path}: two files are called {file.stem!r}; rename one."
            )
        try:
            found[file.stem] = images.decode(disk.read_bytes(file), str(file))
        except images.BadRecord as e:
            raise errors.UsageError(f"{flag}: {e}") from e
    return [Picture(name, pixels) for name, pixels in found.items()]


def read_masks(path: str, pictures: list[Picture]) -> list[np.ndarray]:
    """A mask for every picture, bool [h, w], True where it is white: what is to be painted anew.

    Masks are files with the pictures' names, or one file for all of them.
    """
    masks = read("--masks", path)
    by_name = {mask.name: mask.pixels for mask in masks}
    if pathlib.Path(path).is_file():
        by_name = {picture.name: masks[0].pixels for picture in pictures}
    found = []
    for picture in pictures:
        if picture.name not in by_name:
            raise errors.UsageError(f"--masks={path} has none for image {picture.name!r}.")
        mask, want = by_name[picture.name], picture.pixels.shape[:2]
        if mask.shape[:2] != want:
            raise errors.UsageError(
                f"--masks: the mask of {picture.name!r} is {mask.shape[1]}x{mask.shape[0]}, the "
                f"image is {want[1]}x{want[0]}; make them the same size."
            )
        mask = mask.mean(-1) > 127
        if not mask.any():
            raise errors.UsageError(f"--masks: the mask of {picture.name!r} has no white to paint.")
        found.append(mask)
    return found


def fit(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture, cropped to the aspect of `size` = (h, w) and resized to it.

    A mask (bool [h, w]) or a map of labels (uint8 [h, w]) takes its nearest pixels, a picture is
    interpolated.
    """
    if pixels.ndim == 2:
        flat = Image.fromarray(pixels.astype(np.uint8))
        flat = ImageOps.fit(flat, size[::-1], Image.Resampling.NEAREST)
        return np.asarray(flat).astype(pixels.dtype)
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC))
