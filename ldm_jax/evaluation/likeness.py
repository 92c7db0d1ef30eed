"""How near pictures come to the true ones that their conditions were made of, whatever these show.

Pure functions of uint8 pictures [n, h, w, 3] and of the n records that they were asked for, to a
value per picture: {name: [n]}. What only scenes can be asked is in scenes/scores.py.
"""

import numpy as np
from PIL import Image

from ldm_jax.data import hints

EDGE = 0.2  # what counts as an edge, see edge_scores


def superres_scores(images, records) -> dict[str, np.ndarray]:
    """PSNR against the true picture, in dB, of the sample and of a bicubic enlargement."""
    true = _true(records)
    small = [np.rint((record["low_res"] + 1) * 127.5).astype(np.uint8) for record in records]
    size = true.shape[2:0:-1]
    large = [Image.fromarray(x).resize(size, Image.Resampling.BICUBIC) for x in small]
    return {"psnr_db": psnr(images, true), "bicubic_psnr_db": psnr(np.stack(large), true)}


def inpaint_scores(images, records) -> dict[str, np.ndarray]:
    """PSNR inside the hole, in dB, of the sample and of the mean colour around it."""
    true = _true(records)
    hole = np.stack([record["mask"] for record in records]) > 0
    flat = np.stack([np.mean(x[~m[..., 0]], axis=0) for x, m in zip(true, hole)])
    flat = np.where(hole, flat[:, None, None], true)
    return {"hole_psnr_db": psnr(images, true, hole), "flat_psnr_db": psnr(flat, true, hole)}


def edge_scores(images, records) -> dict[str, np.ndarray]:
    """How far pictures follow the edges of the true ones: `edge_f1`.

    Edges are pixels with a Sobel magnitude of EDGE at least, by which textures of the background
    have none. An edge counts as right within one pixel of a true one, and as found within one of
    the picture's own.
    """
    edges = lambda image: hints.edges({"image": image})[..., 0] >= EDGE
    scores = []
    for image, record in zip(images, records):
        own, true = edges(image), edges(record["image"])
        right, found = own & _widened(true), true & _widened(own)
        precision, recall = right.sum() / max(own.sum(), 1), found.sum() / max(true.sum(), 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return {"edge_f1": np.array(scores, np.float32)}


# By condition field; the records hold what the makers of conditions added to them.
SCORES = {"low_res": superres_scores, "masked_image": inpaint_scores, "hint": edge_scores}


def psnr(a, b, where=True) -> np.ndarray:
    """dB of uint8 pictures, [n], at most 100; where: bool [n, h, w, 1], the pixels that count."""
    squared = (a.astype(np.float64) - b) ** 2
    where = np.broadcast_to(where, squared.shape)
    mean = (squared * where).sum((1, 2, 3)) / np.maximum(where.sum((1, 2, 3)), 1)
    return -10 * np.log10(np.maximum(mean / 255**2, 1e-10))


def _true(records) -> np.ndarray:
    return np.stack([record["image"] for record in records])


def _widened(mask: np.ndarray) -> np.ndarray:
    """bool [h, w], True also one pixel around."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3)).any((-1, -2))
