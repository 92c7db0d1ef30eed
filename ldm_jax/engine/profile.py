"""Traces by jax.profiler, which XProf and Perfetto open: of calls, and of some steps of a run."""

import contextlib
import logging
import re

import jax

from ldm_jax.base import errors, remote

logger = logging.getLogger(__name__)


def trace(folder):
    """`with trace(folder):` writes what the devices and this host do inside into the folder."""
    return jax.profiler.trace(str(folder), create_perfetto_trace=False)


def window(text: str, total: int) -> tuple[int, ...]:
    """ "100:103" -> (100, 103), the first and the last step to record; "" -> ().

    Raises:
      UsageError: other text, or a last step beyond `total`.
    """
    if not text:
        return ()
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text, re.ASCII)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= total:
        raise errors.UsageError(
            f"--profile_steps={text} must be FIRST:LAST, two steps from 1 to {total} "
            f"(config.steps.total); e.g. --profile_steps={min(100, total)}:{min(103, total)}"
        )
    return first, last


class Profile:
    """Records the steps of a window, those of them that a session does.

    The first step of a session is recorded without its compilation.

    Args:
      steps: what `window` returned.
      folder: of the trace.
      say: takes a line for the user.
    """

    def __init__(self, steps: tuple[int, ...], folder, say):
        self._steps, self._folder, self._say = steps, folder, say
        self._open = contextlib.ExitStack()
        self._from = 0  # the first step of the trace that is open

    def before(self, step: int, pending):
        """Step `step` is next; pending: arrays of the steps before, which may not be ready."""
        if self._steps and not self._from and self._steps[0] <= step <= self._steps[1]:
            jax.block_until_ready(pending)
            self._open.enter_context(trace(self._folder))
            self._from = step

    def step(self, step: int):
        """`with profile.step(step):` marks the step in the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def ends(self, step: int) -> bool:
        """Whether the trace that is open is to end with this step."""
        return bool(self._from) and step == self._steps[1]

    def close(self, step: int, pending=()):
        """Writes the trace that is open, which ends with `step`; the session does no more of it."""
        jax.block_until_ready(pending)
        if not self._from:
            if self._steps:
                self._say("no profile: none of the steps {} to {} was done".format(*self._steps))
            return
        told = f"profile of steps {self._from} to {step}"
        self._steps, self._from = (), 0
        try:
            self._open.close()
        except Exception as e:  # storage fails in many ways
            logger.error("ALARM: the %s was not written (%s).", told, errors.reason(e))
        else:
            self._say(f"{told}: xprof {remote.shown(self._folder)}")
