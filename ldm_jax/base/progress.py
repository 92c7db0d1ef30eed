"""The progress of a long piece of work: a bar on a terminal, plain lines in a log."""

import sys

from tqdm import tqdm

from ldm_jax.base import terminal

BAR = "{percentage:3.0f}% {bar:12} {n_fmt}/{total_fmt} {remaining} left, {rate_fmt}{postfix}"
LINE = "{unit} {n_fmt}/{total_fmt}  {remaining} left, {rate_fmt}{postfix}"
SECONDS = {True: 0.2, False: 15.0}  # between two looks at it, on a terminal and in a log


class Progress:
    """Steps done of all, the time left, the rate: live on a terminal, else every 15 seconds.

    start: the step that the work goes on from; unit: what is counted; active: whether to say it.
    """

    def __init__(self, start: int, total: int, *, unit: str = "step", active: bool = True):
        self._active, self._live = active, terminal.is_one(sys.stderr)
        how = dict(bar_format=BAR, dynamic_ncols=True, file=sys.stderr)
        if not self._live:
            how = dict(bar_format=LINE, file=_Lines(), leave=False)
        elif terminal.colours(sys.stderr):
            how["colour"] = "green"
        self._bar = _Bar(
            total=total,
            initial=start,
            unit=unit,
            disable=not active,
            mininterval=SECONDS[self._live],
            miniters=1,
            smoothing=0,  # the rate is that of all steps so far
            delay=1e-9,  # nothing is shown before the first step
            **how,
        )

    def begin(self, step: int):
        """Starts the clock of the rate, after a first step that spent its time compiling."""
        if self._active:
            self._bar.initial = self._bar.n = self._bar.last_print_n = step
            self._bar.start_t = self._bar.last_print_t = self._bar._time()

    def update(self, step: int, values: dict | None = None):
        """`step` steps are done; `values` are shown until others are given."""
        if values and self._active:
            shown = {name: f"{value:.4g}" for name, value in values.items()}
            self._bar.set_postfix(shown, refresh=False)
        if self._active:
            self._bar.update(step - self._bar.n)

    def say(self, text: str):
        """Prints a line that stays, above the bar."""
        if self._active and self._live:
            tqdm.write(text, file=sys.stderr)
        elif self._active:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        self._bar.close()


class _Bar(tqdm):
    monitor_interval = 0  # no thread


class _Lines:
    """A stream for tqdm, which goes back to the start of its line, that has a line for each."""

    def write(self, text: str):
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, seconds = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
