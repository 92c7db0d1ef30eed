"""Profiles of a program: a trace (engine/profile.py), and the operations that took longest."""

import pathlib
from collections import Counter

import jax

from ldm_jax.base import errors
from ldm_jax.cost import hlo
from ldm_jax.engine import profile


def record(call, folder, calls: int = 3):
    """Writes an XProf trace of `calls` calls into `folder`. call: () -> arrays."""
    jax.block_until_ready(call())
    with profile.trace(folder):
        for _ in range(calls):
            jax.block_until_ready(call())


def costliest(folder, text: str, top: int = 10) -> list[dict]:
    """The operations that took longest, the longest first.

    Args:
      folder: of `record`.
      text: of the compiled program.

    Returns:
      [{"name", "opcode", "seconds": of all "calls", "share": of all operations' seconds, "bytes":
      that one call reads and writes, "flops": products and convolutions of one call, "where"}].
    """
    seconds, calls = clocks(folder)
    program = hlo.parse(text)
    known = {line.name: (line, lines) for lines in program.values() for line in lines}
    timed = Counter({name: s for name, s in seconds.items() if name in known})
    if not timed:
        raise errors.RunError(f"The trace in {folder} holds no operation of the program.")
    work = Counter({product.name: product.flops for product in hlo.matrix_work(program, 1)})
    total, found = sum(timed.values()), []
    for name, spent in timed.most_common(top):
        line, lines = known[name]
        sizes = {other.name: other.nbytes for other in lines}
        products = [line, *program.get(hlo.called(line), ())]  # a fusion counts what is inside it
        found.append(
            {
                "name": name,
                "opcode": line.opcode,
                "seconds": spent,
                "share": spent / total,
                "calls": calls[name],
                "bytes": line.nbytes + sum(sizes.get(o, 0) for o in line.operands),
                "flops": float(sum(work[one.name] for one in products)),
                "where": hlo.place(line),
            }
        )
    return found


def clocks(folder) -> tuple[Counter, Counter]:
    """({event: seconds}, {event: how often}) of the newest trace in `folder`."""
    files = pathlib.Path(folder).rglob("*.xplane.pb")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        raise errors.RunError(f"{folder} holds no trace.")
    seconds, calls = Counter(), Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for event in (event for line in plane.lines for event in line.events):
            seconds[event.name] += event.duration_ns / 1e9
            calls[event.name] += 1
    return seconds, calls
