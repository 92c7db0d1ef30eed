"""Drawing and writing for edits: pictures by the batch, sheets that show them by their origin."""

import pathlib

import numpy as np
from PIL import Image

from ldm_jax.base import disk, raster


class Painter:
    """A second stage (runs.opened) with its settings, drawing any number of pictures by the batch.

    Args:
      how: a jobs.settings.Settings.
      labels: class ids [m] that pictures take in turn, or None for the null class.
    """

    def __init__(self, run, how, seed: int, labels, batch_size: int):
        self.run, self.sampling, self.size, self.seed = run, how.sampling, how.size, seed
        self._labels, self._batch_size = labels, batch_size

    def draw(self, n: int, cond=None, same: bool = False, **arrays):
        """uint8 [n, h, w, 3].

        Args:
          cond: {field: [n, ...]} beside the class.
          same: the noise and class of picture 0 for all.
          arrays: `init`, `mask`, `noise` of run.sample, [n, ...] each.
        """
        size, drawn = min(self._batch_size, n), []
        for begin in range(0, n, size):
            rows = np.minimum(np.arange(begin, begin + size), n - 1)
            pick = lambda x, rows=rows: np.asarray(x)[rows]
            given = {k: pick(v) for k, v in (cond or {}).items()} | self._class(rows * (not same))
            drawn.append(
                self.run.draw(
                    size,
                    self.sampling,
                    self.seed,
                    given,
                    self.size,
                    indices=rows * (not same),
                    **{k: pick(v) for k, v in arrays.items()},
                )
            )
        return np.concatenate(drawn)[:n]

    def trace(self, n: int, frames: int):
        """x_t and predicted x_0 at evenly spread steps, uint8 [frames, n, h, w, 3] each."""
        rows = np.arange(n)
        return self.run.trace(
            n, self.sampling, self.seed, self._class(rows), self.size, frames=frames
        )

    def _class(self, rows):
        if self._labels is None:
            return {}
        return {"class": np.resize(self._labels, rows.max() + 1)[rows]}


def write(out, names, drawn, beside=(), columns=None) -> dict:
    """DIR/images/NAME.png, and a sheet: what stands beside each picture, then the picture."""
    out = pathlib.Path(out)
    for name, image in zip(names, drawn):
        raster.write_png(out / "images" / f"{name}.png", image)
    cells = np.stack([*beside, drawn], axis=1).reshape(-1, *drawn.shape[1:])
    across = len(beside) + 1
    return {"num": len(drawn)} | sheet(out, cells, columns or across * max(1, 6 // across))


def sheet(out, cells, columns) -> dict:
    """DIR/sheet.png of uint8 [n, h, w, 3]."""
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
