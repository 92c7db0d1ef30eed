"""Drawing and writing for edits: pictures by the batch, sheets that show them by their origin."""

import pathlib

import numpy as np
from PIL import Image

from ldm_jax.base import disk, raster


class Painter:
    """Opens the run of an edit and draws any number of pictures by the batch.

    Args:
      how: a jobs.settings.Settings.
      labels: class ids [m] that pictures take in turn, or None for the null class.
    """

    def __init__(self, how, labels):
        self.run, self.sampling, self.size = how.open(), how.sampling, how.size
        self._labels, self._wanted = labels, how.wanted

    def draw(self, n: int, cond=None, same: bool = False, **arrays):
        """uint8 [n, h, w, 3].

        Args:
          cond: {field: [n, ...]} beside the class.
          same: all pictures have the noise and the class of picture 0.
          arrays: `init`, `mask`, `noise` of run.sample, [n, ...] each.
        """
        size, drawn = min(self._wanted.batch_size, n), []
        for begin in range(0, n, size):
            rows = np.minimum(np.arange(begin, begin + size), n - 1)
            pick = lambda arrays, rows=rows: {k: np.asarray(v)[rows] for k, v in arrays.items()}
            indices = rows * (not same)
            how = self._how(indices, pick(cond or {}))
            drawn.append(self.run.draw(size, *how, indices=indices, **pick(arrays)))
        return np.concatenate(drawn)[:n]

    def trace(self, n: int, frames: int):
        """x_t and predicted x_0 at evenly spread steps, uint8 [frames, n, h, w, 3] each."""
        return self.run.trace(n, *self._how(np.arange(n)), frames=frames)

    def _how(self, indices, cond=None):
        """Arguments of `draw` and `trace`: sampling, seed, conditions with the class, size."""
        cond = cond or {}
        if self._labels is not None:
            cond |= {"class": np.resize(self._labels, indices.max() + 1)[indices]}
        return self.sampling, self._wanted.seed, cond, self.size


def write(out, names, drawn, beside=(), columns=None) -> dict:
    """Writes OUT/images/NAME.png, and a sheet of every picture after those of `beside`."""
    out = pathlib.Path(out)
    for name, image in zip(names, drawn):
        raster.write_png(out / "images" / f"{name}.png", image)
    cells = np.stack([*beside, drawn], axis=1).reshape(-1, *drawn.shape[1:])
    across = len(beside) + 1
    return {"num": len(drawn)} | sheet(out, cells, columns or across * max(1, 6 // across))


def sheet(out, cells, columns) -> dict:
    """Writes OUT/sheet.png of uint8 [n, h, w, 3]."""
    path = pathlib.Path(out) / "sheet.png"
    raster.write_png(path, raster.grid(cells, columns))
    return {"sheet_png": str(path)}


def animate(path, drawn, milliseconds: int = 80):
    """There and back again, as a GIF."""
    frames = [Image.fromarray(image) for image in (*drawn, *drawn[-2:0:-1])]
    options = dict(save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    disk.write_atomic(path, lambda f: frames[0].save(f, format="GIF", **options))


def floats(pixels):
    """uint8 -> float32 in [-1, 1]."""
    return np.asarray(pixels, np.float32) / 127.5 - 1.0


def greyed(images, holes):
    """uint8 [n, h, w, 3], grey where holes, bool [n, h, w], are to be painted."""
    return np.where(holes[..., None], 128, images).astype(np.uint8)


def around(run, images, holes) -> dict:
    """Arguments of run.sample that paint holes, by a run that was not trained for it."""
    init = run.encode(floats(greyed(images, holes)))
    return {"init": init, "mask": holes_of_latents(holes, run.model.codec.f)}


def holes_of_latents(holes, f: int):
    """bool [n, h, w] -> float32 [n, h/f, w/f, 1]: the cells in or around a hole.

    The cells around a hole go too, because the encoder saw from there what filled the hole.
    """
    n, h, w = holes.shape
    cells = holes.reshape(n, h // f, f, w // f, f).any((2, 4))
    if f > 1:
        padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)))
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        cells = around.any((-1, -2))
    return cells[..., None].astype(np.float32)
