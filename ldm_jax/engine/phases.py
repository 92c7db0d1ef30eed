"""What a run does at any moment: watched, so that a hang ends; counted, so that time is accounted.

    with Phases(limits, file) as phase:
        with phase("data"): ...

A phase that outlasts its limit prints every thread's stack and ends the process with 42, "restart
me": a host that is stuck in a collective can do nothing better, and waits there for ever.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
import types

from ldm_jax.base import errors

NAMES = ("start", "compile", "data", "step", "eval", "save")


class Phases:
    """Seconds spent in each phase, and a thread that watches the present one.

    Args:
      limits: {phase: seconds}; a phase without one, or with 0, may last.
      report: file that the stacks go to as well, as stderr is not always kept.
    """

    def __init__(self, limits: dict[str, float] = types.MappingProxyType({}), report=os.devnull):
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._limits, self._report = limits, report
        self._lock, self._done = threading.Lock(), threading.Event()
        self._name, self._since, self._begin = "start", time.monotonic(), time.monotonic()
        self._watch = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self):
        self._watch.start()
        return self

    def __exit__(self, *exc):
        self._done.set()
        self._watch.join()
        self._enter("start")

    @contextlib.contextmanager
    def __call__(self, name: str):
        """Inside is phase `name`; the phase around it goes on afterwards, its limit anew."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def begin(self, name: str):
        """From here on it is phase `name`, its limit anew."""
        self._enter(name)

    def _enter(self, name):
        with self._lock:
            now, outer = time.monotonic(), self._name
            self.seconds[outer] += now - self._begin
            self._name, self._since, self._begin = name, now, now
        return outer

    def _run(self):
        while not self._done.wait(0.2):
            with self._lock:
                name, lasted = self._name, time.monotonic() - self._since
            if 0 < self._limits.get(name, 0) < lasted:
                self._end(name, lasted)

    def _end(self, name, lasted):
        line = (
            f"ldm_jax: stuck: phase {name!r} has lasted {lasted:.0f} s, more than "
            f"config.limits.{name}={self._limits[name]:g}; ending with {errors.EXIT_RESTART}."
        )
        for stream in (sys.stderr, self._report):
            with contextlib.suppress(OSError), _opened(stream) as file:
                print(line, file=file, flush=True)
                faulthandler.dump_traceback(file=file, all_threads=True)
        os._exit(errors.EXIT_RESTART)  # not sys.exit: the main thread would never hear of it


def _opened(stream):
    return contextlib.nullcontext(stream) if hasattr(stream, "write") else open(stream, "a")
