"""Bad steps, answered: back to the checkpoint before them, and past the data that they saw.

    rollback.with_rollbacks(lambda history: loop.train(Trainer(..., history, ...)), workdir, most)

A rollback is a resume from an older checkpoint, with nothing of its own to go wrong. Data and
randomness are functions of (seed, step, row), so the steps after it would meet the same rows again:
`rollbacks.jsonl` holds a line for each rollback with the `offset`, the batches passed over by then.
Step s reads batch s - 1 + offset; a run that is cut after a rollback reads that file too.
"""

import gc
import logging
import pathlib
import statistics
import types

from ldm_jax.base import disk, errors, values
from ldm_jax.engine import hosts

logger = logging.getLogger(__name__)

_STEP = values.Number(0, whole=True)
LINE = values.Fields({"step": _STEP, "from": _STEP, "offset": _STEP, "reason": values.Text(True)})

WINDOW = 50  # log lines that a new one is compared with
ENOUGH = 10  # of them before anything is called a spike
FLOOR = 0.05  # of the median: the least that counts as the lines' spread


class BadSteps(errors.RunError):
    """Steps that a run should not have done.

    Args:
      message: one line why.
      step: where the run stands.
      good: the newest step that nothing is known against.
    """

    def __init__(self, message: str, step: int, good: int):
        super().__init__(message)
        self.step, self.good = step, good


class History:
    """The rollbacks of a run so far; all hosts read what host 0 wrote.

    Attributes:
      until: the newest checkpoint that may be restored; None takes any.
      offset: batches passed over.
      count: rollbacks that led to where the run stands.
    """

    def __init__(self, workdir):
        self._file = pathlib.Path(workdir) / "rollbacks.jsonl"
        self._bad = self.until = None
        self.offset = self.count = 0

    def back(self, bad: BadSteps):
        """The run is to go on from before these steps."""
        self._bad, self.until = bad, bad.good

    def begin(self, step: int) -> str:
        """The run goes on from `step`; a line that tells of the rollback, if it is one."""
        lines = hosts.on_first(lambda: self._write(step))
        self.count, self.offset = len(lines), lines[-1]["offset"] if lines else 0
        bad, self._bad, self.until = self._bad, None, None
        if not bad:
            return ""
        return f"rolled back to step {step}, past {bad.step - step} batch(es): {bad}"

    def _write(self, step):
        before = disk.read_jsonl(self._file, LINE)
        lines = [line for line in before if line["step"] <= step]
        if self._bad:
            offset = (before[-1]["offset"] if before else 0) + self._bad.step - step
            line = {"step": step, "from": self._bad.step, "offset": offset}
            lines.append(line | {"reason": str(self._bad)})
        if lines != before:
            disk.write_jsonl(self._file, lines)
        return lines


def with_rollbacks(session, workdir, most: int):
    """Calls `session(history)`, again after bad steps, `most` times in the life of a run.

    Raises:
      RunError: bad steps once more.
    """
    history = History(workdir)
    while True:
        try:
            return session(history)
        except BadSteps as e:
            bad = e.with_traceback(None)  # which holds the state, and that the devices' memory
        if history.count >= most:
            raise errors.RunError(
                f"{bad} Rolled back {history.count} time(s) before (config.max_rollbacks={most}): "
                "lower the learning rate or clip gradients, and start again."
            )
        logger.error("%s Going back to step %d or before.", bad, bad.good)
        history.back(bad)
        gc.collect()


class Spikes:
    """Compares a metric's mean at each log line with the lines before it.

    A spike is a value more than `limit` robust standard deviations (1.4826 times the median
    absolute deviation, at least FLOOR of the median) above the median of the last WINDOW lines.

    Args:
      name: of a metric that is positive and falls; "" watches nothing.
      limit: 0 calls nothing a spike.
      start: the step training goes on from.
      meta: what `meta` returned when a checkpoint was made.
    """

    def __init__(self, name: str, limit: float, start: int, meta=types.MappingProxyType({})):
        self._name, self._limit, found = name, limit, meta.get("spikes", {})
        self._good, self._values = found.get("good", start), found.get("values", [])

    def meta(self) -> dict:
        """JSON."""
        return {"spikes": {"good": self._good, "values": self._values}}

    def check(self, step: int, means: dict):
        """Raises BadSteps where the line of `step` is a spike."""
        value = means.get(self._name)
        if value is not None:  # otherwise every step since the last line was skipped
            if self._limit and len(self._values) >= ENOUGH:
                self._compare(step, value)
            self._values = [*self._values, value][-WINDOW:]
        self._good = step

    def _compare(self, step, value):
        median = statistics.median(self._values)
        deviation = 1.4826 * statistics.median(abs(v - median) for v in self._values)
        spread = max(deviation, FLOOR * abs(median))
        if value > median + self._limit * spread:
            raise BadSteps(
                f"{self._name} is {value:.4g} in the {step - self._good} step(s) to {step}, after "
                f"{median:.4g} (median of {len(self._values)} log lines, robust deviation "
                f"{spread:.2g}): a spike (config.max_loss_spike={self._limit:g}).",
                step,
                self._good,
            )
