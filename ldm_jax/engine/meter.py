"""What is counted while a run goes: metrics on their way from the device, time, bad records."""

import json
import math
import pathlib
import types

import jax
import numpy as np

from ldm_jax.base import disk, errors, values
from ldm_jax.engine import rollback

STARVED = 0.2  # share of a stretch of training above which its wait for data is worth a line,
LEAST_WAIT = 5.0  # and the seconds
# A line of bad_records_HOST.jsonl
BAD_RECORD = values.Fields({"record": values.Number(0, whole=True), "name": values.Text(True)})


class Meter:
    """Per-step metrics since the last flush; left on the device until somebody asks.

    A step with a value that is not finite changed nothing (engine.step): it is left out of the
    means and counted as `skipped_steps`.

    Args:
      max_bad: such steps in a row before `fetch` refuses to go on.
      meta: what `meta` returned when a checkpoint was made, so that a resumed run averages over the
        same steps as an uncut one.
    """

    def __init__(self, max_bad: int = 0, meta: dict = types.MappingProxyType({})):
        self._max_bad, self._bad_before = max_bad, meta.get("bad_before", 0)
        self._steps = [(step, dict(metrics)) for step, metrics in meta.get("pending", ())]

    def meta(self) -> dict:
        """JSON: the pending steps, and the bad ones in a row before them; see `fetch`."""
        return {"pending": self.fetch(), "bad_before": self._bad_before}

    def add(self, step: int, metrics: dict):
        self._steps.append((step, metrics))

    def fetch(self) -> list:
        """`[[step, {name: float}], ...]`, waiting for the device.

        Raises:
          BadSteps: too many in a row; names the first of them since the last flush and its value.
        """
        self._steps = [
            (step, {name: float(value) for name, value in metrics.items()})
            for step, metrics in jax.device_get(self._steps)
        ]
        self._bad_in_a_row()
        return [[step, metrics] for step, metrics in self._steps]

    def _bad_in_a_row(self) -> int:
        """How many bad steps the pending ones end with, those of earlier flushes included."""
        bad, first = self._bad_before, None
        for step, metrics in self._steps:
            name = next((n for n, value in metrics.items() if not math.isfinite(value)), None)
            bad, first = (bad + 1, first or (step, name, metrics[name])) if name else (0, None)
            if bad > self._max_bad:
                good = step - bad
                step, name, value = first
                raise rollback.BadSteps(
                    f"{name} is {value} at step {step}, and {bad} step(s) in a row were skipped "
                    f"(config.max_bad_steps={self._max_bad}); nothing of them is in the weights.",
                    self._steps[-1][0],
                    good,
                )
        return bad

    def flush(self) -> dict:
        """The mean of each metric over the pending steps, which are then forgotten."""
        steps = [metrics for _, metrics in self.fetch()]
        good = [metrics for metrics in steps if all(map(math.isfinite, metrics.values()))]
        self._bad_before, self._steps = self._bad_in_a_row(), []
        means = {name: float(np.mean([m[name] for m in good])) for name in (good and good[-1])}
        skipped = len(steps) - len(good)
        return means | ({"skipped_steps": float(skipped)} if skipped else {})


class Stopwatch:
    """Rates of training proper: evaluation, saving and compiling are left out.

    seconds: {phase: seconds}, to which phases.Phases add a phase when it ends.
    starved: whether the last stretch waited for data for more than STARVED of its time, and for
      LEAST_WAIT seconds.
    """

    starved = False

    def __init__(self, seconds: dict):
        self._seconds = seconds
        self.restart(0)

    def restart(self, step: int):
        """Forgets the stretch up to `step`."""
        self._step, self._before = step, dict(self._seconds)

    def measure(self, step: int, batch_size: int) -> dict:
        """Rates of the stretch up to `step`, where a new one begins; {} if it has no step."""
        spent = {name: self._seconds[name] - self._before[name] for name in ("step", "data")}
        seconds, steps = sum(spent.values()), step - self._step
        self.restart(step)
        if not steps:
            return {}
        self.starved = spent["data"] > max(LEAST_WAIT, STARVED * seconds)
        return {
            "images_per_second": steps * batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_fraction": spent["data"] / seconds,
        }


class BadRecords:
    """Records that did not decode and were replaced; past a fraction of the data the run stops.

    data: loop.Data.
    """

    def __init__(self, workdir, data):
        self._file = pathlib.Path(workdir) / f"bad_records_{jax.process_index():04d}.jsonl"
        self._data = data
        self._seen = {line["record"] for line in disk.read_jsonl(self._file, BAD_RECORD)}

    def count(self, bad: np.ndarray):
        """bad: [b] index of each row's failed record, or -1."""
        data, new = self._data, sorted(set(bad[bad >= 0].tolist()) - self._seen)
        if not new:
            return
        self._seen.update(new)
        with open(self._file, "a") as f:
            f.writelines(json.dumps({"record": i, "name": data.name(i)}) + "\n" for i in new)
        if len(self._seen) > data.max_bad_fraction * data.records:
            raise errors.RunError(
                f"{len(self._seen)} of {data.records} records do not decode, last "
                f"{data.name(new[-1])!r}: more than config.data.max_bad_fraction="
                f"{data.max_bad_fraction}. They are listed in {self._file}; mend or remove them."
            )
