"""What a run leaves to read: metrics.jsonl, timing.jsonl, TensorBoard events, PNG grids, progress.

metrics.jsonl holds only what the computation determines, so that a run cut three times and an uncut
one leave the same bytes; clocks go to timing.jsonl. Only process 0 writes.

Storage that takes nothing (a full disk, a lost mount) gives an alarm; training goes on.
"""

import contextlib
import json
import logging
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from PIL import Image

logger = logging.getLogger(__name__)


class Log:
    """The records of one run.

    Args:
      workdir: the run's folder.
      start: the step training goes on from; lines beyond it, left by a run that was cut, go.
      total: the last step, for the time left.
    """

    def __init__(self, workdir, *, start: int, total: int):
        self.workdir = pathlib.Path(workdir)
        self.active = jax.process_index() == 0
        self._unwritten = {}
        self.progress = Progress(start, total, active=self.active)
        if self.active:
            (self.workdir / "images").mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "timing.jsonl"):
                _cut_after(self.workdir / name, start)
            self._board = tensorboardX.SummaryWriter(
                str(self.workdir), purge_step=start + 1 if start else None
            )

    def metrics(self, step: int, values: dict):
        """One line of deterministic numbers."""
        self._write("metrics.jsonl", step, values)

    def timing(self, step: int, values: dict):
        """One line of clocks: rates, waits."""
        self._write("timing.jsonl", step, values)

    def _write(self, file, step, values):
        if not self.active:
            return
        values = {name: float(value) for name, value in values.items()}
        self._append(file, json.dumps({"step": step} | values) + "\n")
        if self._board_lives():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _append(self, file, text):
        """Whole lines or nothing; what does not go through is kept and goes with the next."""
        path, text = self.workdir / file, self._unwritten.pop(file, "") + text
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a") as f:
                f.write(text)
        except OSError as e:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            self._unwritten[file] = text
            logger.error("ALARM: %s cannot be written (%s). Training goes on.", path, e.strerror)

    def _board_lives(self) -> bool:
        # Its thread dies of a full disk, and a call would then wait for room in its queue for ever.
        writer = getattr(self._board.file_writer, "event_writer", None)
        return getattr(writer, "_worker", None) is None or writer._worker.is_alive()

    def images(self, step: int, name: str, images, columns: int):
        """images: [n, h, w, 3] in [-1, 1] -> images/NAME_STEP.png and TensorBoard."""
        if not self.active:
            return
        picture = grid(np.asarray(to_uint8(images)), columns)
        path = self.workdir / "images" / f"{name}_{step:08d}.png"
        try:
            write_png(path, picture)
        except OSError as e:
            logger.error("ALARM: %s cannot be written (%s). Training goes on.", path, e.strerror)
        if self._board_lives():
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self):
        self.progress.close()
        for file in list(self._unwritten):
            self._append(file, "")
        if self.active and self._board_lives():
            self._board.close()


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
    write_atomic(path, lambda f: Image.fromarray(image).save(f, format="PNG"))


def write_text(path: pathlib.Path, text: str):
    """Atomic, UTF-8."""
    write_atomic(path, lambda f: f.write(text.encode()))


def write_atomic(path: pathlib.Path, write):
    """Calls `write(file)` on a temporary file beside `path` and renames it into place."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file on a full disk is room for nothing else
        raise


def read_jsonl(path) -> list[dict]:
    """The whole lines of a .jsonl file; a last line cut by a kill is left out."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _cut_after(path: pathlib.Path, step: int):
    """Drops the lines beyond `step` and a half-written last line."""
    if path.exists():
        lines = path.read_text().split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


class Progress:
    """One live line on a terminal, a plain line every `interval` seconds elsewhere."""

    def __init__(self, start: int, total: int, *, active: bool = True, interval: float = 15.0):
        self._begin, self._start, self._total = time.monotonic(), start, total
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = 0.2 if self._live else interval
        self._active, self._shown, self._last, self._values = active, 0.0, "", {}

    def begin(self, step: int):
        """The rate counts from here: the first step compiled."""
        self._begin, self._start = time.monotonic(), step

    def update(self, step: int, values: dict | None = None):
        """Counts `step` steps done; `values` are shown until others come."""
        self._values = values or self._values
        now = time.monotonic()
        if not self._active or step == self._start or now - self._shown < self._interval:
            return
        self._shown = now
        elapsed = now - self._begin
        left = elapsed / max(step - self._start, 1) * (self._total - step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self._values.items())
        width = len(str(self._total))
        self._put(f"step {step:{width}d}/{self._total}  {clock(left)} left  {shown}")

    def say(self, text: str):
        """A line that stays."""
        if self._active:
            end = "\r\x1b[K" if self._live and self._last else ""
            print(f"{end}{text}", file=sys.stderr, flush=True)
            self._last = ""

    def _put(self, line: str):
        self._last = line
        print(
            *([f"\r\x1b[K{line}"] if self._live else [line]),
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self):
        if self._active and self._live and self._last:
            print(file=sys.stderr)
            self._last = ""


def clock(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, seconds = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
