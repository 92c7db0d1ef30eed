"""What a run leaves to read: metrics.jsonl, timing.jsonl, PNG grids, progress; and its sinks.

metrics.jsonl holds only what the computation determines, so that a run cut three times and an uncut
one leave the same bytes; clocks go to timing.jsonl. Only process 0 writes.

Storage that takes nothing (a full disk, a lost mount) gives an alarm; training goes on.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil

import jax
import numpy as np

from ldm_jax.base import disk, progress, raster
from ldm_jax.base import values as values_lib
from ldm_jax.engine import sinks as sinks_lib

logger = logging.getLogger(__name__)

# A line of metrics.jsonl and of timing.jsonl; what was measured may be NaN
STEP = values_lib.Number(0, whole=True)
LINE = values_lib.Fields({"step": STEP}, others=values_lib.Number(finite=False))


class Log:
    """The records of one run.

    Args:
      workdir: the run's folder.
      start: the step training goes on from; lines beyond it, left by a run that was cut, go.
      total: the last step, for the time left.
      kept: whether the files as they are, are also kept as FILE.old.
      sinks: sinks.Sink each, which show the run beside TensorBoard.
    """

    def __init__(self, workdir, *, start: int, total: int, kept: bool = False, sinks=()):
        self.workdir = pathlib.Path(workdir)
        self.active = jax.process_index() == 0
        self._unwritten, self._undrawn = {}, {}  # {file: lines}, {file: picture}
        self.progress = progress.Progress(start, total, active=self.active)
        if self.active:
            (self.workdir / "images").mkdir(parents=True, exist_ok=True)
            for file in (self.workdir / "metrics.jsonl", self.workdir / "timing.jsonl"):
                self._cut(file, start, kept)
            purge = start + 1 if start else None
            self._board = sinks_lib.Board(self.workdir, purge)
            self._sinks = [self._board, *sinks]

    def _cut(self, file, start: int, kept: bool):
        """Takes the lines after `start` out of a file, and says so; or that there are none."""
        lines = disk.read_jsonl(file, LINE)
        if start and not lines:
            self.progress.say(f"note: {file.name} has no line of the steps up to {start}")
        if not disk.there(file):
            return
        own = [line for line in lines if line["step"] <= start]
        if kept:
            shutil.copyfile(file, file.with_name(f"{file.name}.old"))
        if len(own) < len(lines) and file.name == "metrics.jsonl":
            cut = len(lines) - len(own)
            self.progress.say(f"{file.name}: {cut} line(s) after step {start} go, to come again")
        disk.write_jsonl(file, own)

    def write(self, file: str, step: int, values: dict):
        """One line of numbers, in metrics.jsonl or timing.jsonl and in all sinks."""
        if not self.active:
            return
        values = {name: float(value) for name, value in values.items()}
        path, line = self.workdir / file, json.dumps({"step": step} | values) + "\n"
        self._unwritten[path] = self._unwritten.get(path, "") + line
        self._settled()
        self.show(step, values)

    def show(self, step: int, values: dict):
        """Numbers, floats by name, in the sinks alone."""
        for sink in self._sinks if self.active else ():
            sink.numbers(step, values)

    def alarm(self, text: str):
        """A line that stays, in the progress and in the sinks."""
        self.progress.say(text)
        for sink in self._sinks if self.active else ():
            sink.alarm(text)

    def images(self, step: int, name: str, images, columns: int):
        """images: [n, h, w, 3] in [-1, 1] -> images/NAME_STEP.png and all sinks."""
        if not self.active:
            return
        picture = raster.grid(np.asarray(raster.to_uint8(images)), columns)
        self._undrawn[self.workdir / "images" / f"{name}_{step:08d}.png"] = picture
        self._settled()
        for sink in self._sinks:
            sink.picture(step, name, picture)

    def settle(self):
        """Writes what is not written yet, whole lines and files; raises OSError where it cannot."""
        for path, text in [*self._unwritten.items()]:
            size = path.stat().st_size if path.exists() else 0
            try:
                with open(path, "a") as file:
                    file.write(text)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)
                raise
            del self._unwritten[path]
        for path, picture in [*self._undrawn.items()]:
            raster.write_png(path, picture)
            del self._undrawn[path]

    def _settled(self):
        """`settle`; what does not go through is kept and goes with the next."""
        try:
            self.settle()
        except OSError as e:
            left = [*self._unwritten, *self._undrawn]
            logger.error("ALARM: %s cannot be written (%s). Training goes on.", left[0], e.strerror)

    def close(self):
        self.progress.close()
        self._settled()
        if self.active:
            self._board.close()
