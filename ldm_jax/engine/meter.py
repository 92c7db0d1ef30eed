"""What is counted while a run goes: metrics on their way from the device, time, bad records."""

import contextlib
import json
import math
import pathlib
import time

import jax
import numpy as np

from ldm_jax.base import errors


class Meter:
    """Per-step metrics since the last flush; left on the device until somebody asks.

    Args:
      pending: what `fetch` returned when a checkpoint was made, so that a resumed run averages over
        the same steps as an uncut one.
    """

    def __init__(self, pending=()):
        self._steps = [(step, dict(metrics)) for step, metrics in pending]

    def add(self, step: int, metrics: dict):
        self._steps.append((step, metrics))

    def fetch(self) -> list:
        """`[[step, {name: float}], ...]`, waiting for the device.

        Raises:
          RunError: names the first step with a value that is not finite, and that value.
        """
        self._steps = [
            (step, {name: float(value) for name, value in metrics.items()})
            for step, metrics in jax.device_get(self._steps)
        ]
        for step, metrics in self._steps:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise errors.RunError(
                        f"{name} is {value} at step {step}; nothing was saved since the last "
                        "checkpoint. Lower the learning rate or clip gradients, and start again."
                    )
        return [[step, metrics] for step, metrics in self._steps]

    def flush(self) -> dict:
        """The mean of each metric over the pending steps, which are then forgotten."""
        steps = [metrics for _, metrics in self.fetch()]
        self._steps = []
        return {name: float(np.mean([m[name] for m in steps])) for name in steps[-1]}


class Stopwatch:
    """Wall-clock time of training proper: evaluation, saving and compiling are left out."""

    def __init__(self, seconds_before: float = 0.0):
        self._begin = time.monotonic()
        self._before = seconds_before
        self.restart()

    def restart(self):
        """Forgets the stretch so far (it held a compilation)."""
        self._mark, self._wait, self._steps = time.monotonic(), 0.0, 0

    def total(self) -> float:
        """Seconds since the run first began, all sessions together, everything included."""
        return self._before + time.monotonic() - self._begin

    @contextlib.contextmanager
    def paused(self):
        begin = time.monotonic()
        yield
        self._mark += time.monotonic() - begin

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for data; also counts the step."""
        begin = time.monotonic()
        yield
        self._wait += time.monotonic() - begin
        self._steps += 1

    def measure(self, batch_size: int) -> dict:
        """Rates of the stretch that ends now; begins a new one. Call with the device drained."""
        seconds, steps, wait = time.monotonic() - self._mark, self._steps, self._wait
        self.restart()
        if not steps:
            return {}
        return {
            "images_per_second": steps * batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_fraction": wait / seconds,
        }


class BadRecords:
    """Records that did not decode and were replaced; past a fraction of the data the run stops."""

    def __init__(self, workdir, *, records: int, name, max_fraction: float):
        self._file = pathlib.Path(workdir) / f"bad_records_{jax.process_index():04d}.jsonl"
        self._records, self._name, self._max_fraction = records, name, max_fraction
        self._seen = set()
        if self._file.exists():
            self._seen = {json.loads(s)["record"] for s in self._file.read_text().splitlines()}

    def count(self, bad: np.ndarray):
        """bad: [b] index of each row's failed record, or -1."""
        new = sorted(set(bad[bad >= 0].tolist()) - self._seen)
        if not new:
            return
        self._seen.update(new)
        with open(self._file, "a") as f:
            f.writelines(json.dumps({"record": i, "name": self._name(i)}) + "\n" for i in new)
        if len(self._seen) > self._max_fraction * self._records:
            raise errors.RunError(
                f"{len(self._seen)} of {self._records} records do not decode, last "
                f"{self._name(new[-1])!r}: more than config.data.max_bad_fraction="
                f"{self._max_fraction}. They are listed in {self._file}; mend or remove them."
            )
