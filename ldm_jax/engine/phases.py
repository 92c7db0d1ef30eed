"""What a run does at any moment: watched, so that a hang ends; counted, so that time is accounted.

    with Phases(limits, file) as phase:
        with phase("data"): ...

A phase that outlasts its limit prints every thread's stack and ends the process with 42, "restart
me": a host that is stuck in a collective can do nothing better, and waits there for ever.

Among several hosts a step is over sooner. They cannot see which of them a collective waits for, but
those that are long at something else (reading, saving) tell: where none does, a step that lasts
many times as long as usual will not end.
"""

import collections
import contextlib
import faulthandler
import os
import threading
import time

from ldm_jax.base import errors
from ldm_jax.engine import hosts

STDERR = 2  # its file descriptor
POLL = 0.2  # seconds
LONG = 10.0  # seconds at something else after which a host tells the others
USUAL = 20  # times what steps take: the least that hosts wait for one
ENOUGH = 20  # steps to know what is usual
NAMES = ("start", "compile", "data", "step", "eval", "save")


class Phases:
    """Seconds spent in each phase, and a thread that watches the present one.

    Args:
      limits: {phase: seconds}; a phase without one, or with 0, may last. "stuck" is the limit of a
        step while no host tells of something else, once it is known how long steps take.
      report: file that the stacks go to as well, as stderr is not always kept.
    """

    def __init__(self, limits: dict[str, float] | None = None, report=os.devnull):
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._limits, self._report = limits or {}, report
        self._lock, self._done = threading.Lock(), threading.Event()
        self._name, self._begin, self._lasted = "start", time.monotonic(), 0.0
        self._steps = collections.deque(maxlen=100)  # seconds
        self._watch = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self):
        self._watch.start()
        return self

    def __exit__(self, *exc):
        self._done.set()
        self._watch.join()
        self.begin("start")

    @contextlib.contextmanager
    def __call__(self, name: str):
        """Inside is phase `name`; the phase around it goes on afterwards, its limit anew."""
        outer = self.begin(name)
        try:
            yield
        finally:
            self.begin(outer)

    def begin(self, name: str) -> str:
        """From here on it is phase `name`, its limit anew; returns the phase before."""
        with self._lock:
            now, outer = time.monotonic(), self._name
            self.seconds[outer] += now - self._begin
            if outer == "step":
                self._steps.append(now - self._begin)
            self._name, self._begin, self._lasted = name, now, 0.0
        return outer

    def _run(self):
        told, before = "", time.monotonic()
        while not self._done.wait(POLL):
            # A process that was stopped, or a machine that was moved, has not been stuck.
            awake, before = min(time.monotonic() - before, 1.0), time.monotonic()
            with self._lock:
                self._lasted += awake
                name, lasted = self._name, self._lasted
            if 0 < self._limits.get(name, 0) < lasted:
                self._end(name, lasted, f"config.limits.{name}={self._limits[name]:g}")
            work = name if name != "step" and lasted > LONG else ""
            with contextlib.suppress(RuntimeError):  # the service is gone: jax ends us
                if work != told:
                    hosts.tell(work)
                    told = work
                if name == "step" and 0 < self._patience() < lasted and not hosts.busy():
                    stuck = f"config.limits.stuck={self._limits['stuck']:g} and {USUAL} usual steps"
                    self._end(name, lasted, f"{stuck}, and no host is long at anything else")

    def _patience(self) -> float:
        """Seconds after which a step is stuck; 0: not known, or nobody else waits for it."""
        with self._lock:
            steps = sorted(self._steps)
        if not hosts.several() or len(steps) < ENOUGH or not self._limits.get("stuck"):
            return 0.0
        slow = steps[-1 - len(steps) // 10]  # a tenth of them may be outliers
        return max(self._limits["stuck"], USUAL * slow)

    def _end(self, name, lasted, limit):
        line = (
            f"ldm_jax: stuck: phase {name!r} has lasted {lasted:.0f} s, more than {limit}; "
            f"ending with {errors.EXIT_RESTART}."
        )
        for stream in (STDERR, self._report):
            with contextlib.suppress(OSError), open(stream, "a") as file:
                print(line, file=file, flush=True)
                faulthandler.dump_traceback(file=file, all_threads=True)
        os._exit(errors.EXIT_RESTART)  # not sys.exit: the main thread would never hear of it
