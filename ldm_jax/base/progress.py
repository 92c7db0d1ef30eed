"""The progress of a long piece of work, on a terminal or in a log."""

import os
import sys
import time

CLEAR = "\r\x1b[K"  # the line that a terminal's cursor is in


class Progress:
    """One live line on a terminal, a plain line every 15 seconds elsewhere."""

    def __init__(self, start: int, total: int, *, active: bool = True):
        self._begin, self._start, self._total = time.monotonic(), start, total
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = 0.2 if self._live else 15.0
        self._active, self._shown, self._last, self._values = active, 0.0, "", {}

    def begin(self, step: int):
        """Starts the clock of the rate, after a first step that spent its time compiling."""
        self._begin, self._start = time.monotonic(), step

    def update(self, step: int, values: dict | None = None):
        """`step` steps are done; `values` are shown until others are given."""
        self._values = values or self._values
        now = time.monotonic()
        if not self._active or step == self._start or now - self._shown < self._interval:
            return
        self._shown = now
        elapsed = now - self._begin
        left = elapsed / max(step - self._start, 1) * (self._total - step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self._values.items())
        width = len(str(self._total))
        self._last = f"step {step:{width}d}/{self._total}  {clock(left)} left  {shown}"
        start, end = (CLEAR, "") if self._live else ("", "\n")
        print(f"{start}{self._last}", end=end, file=sys.stderr, flush=True)

    def say(self, text: str):
        """Prints a line that stays, above the live one."""
        if self._active:
            start = CLEAR if self._live and self._last else ""
            print(f"{start}{text}", file=sys.stderr, flush=True)
            self._last = ""

    def close(self):
        if self._active and self._live and self._last:
            print(file=sys.stderr)
            self._last = ""


def clock(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, seconds = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
