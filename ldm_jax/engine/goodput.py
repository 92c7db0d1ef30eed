"""Where a run's time went, over all its sessions: goodput.jsonl, a JSON object a session.

Beside timing.jsonl and not in metrics.jsonl, which holds only what the computation determines.
"""

import collections
import contextlib
import itertools
import pathlib
import time

from ldm_jax.base import disk, values
from ldm_jax.base import progress as progress_lib

_TIME, _STEP = values.Number(0), values.Number(0, whole=True)
_SECONDS = values.Fields({"step": _TIME}, others=_TIME)
SESSION = values.Fields(
    {"begin": _TIME, "end": _TIME, "from": _STEP, "reached": _STEP, "seconds": _SECONDS}
)


class Ledger:
    """The line of the present session, written anew at every line of the log.

    A process that is killed cannot write a last one; the newest then says how far it came.

    Args:
      workdir: the run's folder.
      first: the step that the run goes on from.
      seconds: {phase: seconds}, counted on by the phases.
      active: whether this host writes.
    """

    def __init__(self, workdir, first: int, seconds: dict, active: bool):
        self._file, self._active = pathlib.Path(workdir) / "goodput.jsonl", active
        self._before = read(workdir) if active else []
        self._own = {"begin": time.time(), "from": first, "seconds": seconds}

    def write(self, step: int) -> dict:
        """The session has come to `step`. What the storage does not take is written next time.

        Returns what `account` says of all sessions, each name after "goodput/".
        """
        if not self._active:
            return {}
        lines = [*self._before, self._own | {"reached": step, "end": time.time()}]
        with contextlib.suppress(OSError):
            disk.write_jsonl(self._file, lines)
        return {f"goodput/{name}": float(value) for name, value in account(lines).items()}

    def end(self, step: int):
        """The session ends at `step`; another one of this process counts its seconds from 0."""
        self.write(step)
        self._own["seconds"].update(dict.fromkeys(self._own["seconds"], 0.0))


def read(workdir) -> list[dict]:
    """The sessions of a run, as lines of its file."""
    return disk.read_jsonl(pathlib.Path(workdir) / "goodput.jsonl", SESSION)


def report(workdir) -> dict:
    """What `account` says of the sessions of a run."""
    return account(read(workdir))


def account(sessions: list[dict]) -> dict:
    """`{"productive_fraction": ..., "..._seconds": ...}` over all sessions of a run; {} if none.

    Productive is the time of steps whose work is in the run. Lost are the steps that a session did
    and the next one had to do again; down is the time between sessions.
    """
    if not sessions:
        return {}
    total = collections.Counter()
    for session in sessions:
        total.update(session["seconds"])
    lost = down = 0.0
    for one, following in itertools.pairwise(sessions):
        done = one["reached"] - one["from"]
        again = max(0, one["reached"] - following["from"])
        lost += one["seconds"]["step"] * min(again, done) / max(done, 1)
        down += max(0.0, following["begin"] - one["end"])
    productive = total.pop("step") - lost
    wall = productive + lost + down + sum(total.values())
    known = {"productive": productive, "lost": lost, "down": down, **total}
    found = {"productive_fraction": productive / max(wall, 1e-9), "sessions": len(sessions)}
    return found | {f"{name}_seconds": seconds for name, seconds in known.items()}


def words(report: dict) -> str:
    """The same in a line: `91 % of 1:02:05 in 3 session(s); compile 0:40, ...`."""
    seconds = {k.removesuffix("_seconds"): v for k, v in report.items() if k.endswith("_seconds")}
    rest = ", ".join(f"{k} {progress_lib.clock(v)}" for k, v in seconds.items() if v >= 1)
    total = progress_lib.clock(sum(seconds.values()))
    share = f"{100 * report['productive_fraction']:.0f} % of {total}"
    return f"{share} in {report['sessions']} session(s); {rest}"
