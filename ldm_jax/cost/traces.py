"""Where a program's time goes: a trace by jax.profiler, and its costliest operations."""

import pathlib
from collections import Counter, defaultdict

import jax

from ldm_jax.base import errors
from ldm_jax.cost import hlo


def record(call, folder, calls: int = 3):
    """Writes an XProf trace of `calls` calls into `folder`. call: () -> arrays."""
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder), create_perfetto_trace=False):
        for _ in range(calls):
            jax.block_until_ready(call())


def costliest(folder, text: str, top: int = 10) -> list[dict]:
    """The operations that took longest, the longest first.

    Args:
      folder: of `record`.
      text: the compiled program's.

    Returns:
      [{"name", "opcode", "seconds": of all "calls", "share": of all operations' seconds, "bytes":
      that one call reads and writes, "flops": products and convolutions of one, "where"}].
    """
    seconds, calls = clocks(folder)
    program = hlo.parse(text)
    known = {line.name: (line, lines) for lines in program.values() for line in lines}
    timed = Counter({name: s for name, s in seconds.items() if name in known})
    if not timed:
        raise errors.RunError(f"The trace in {folder} holds no operation of the program.")
    total, work = sum(timed.values()), _work(program)
    found = []
    for name, spent in timed.most_common(top):
        line, lines = known[name]
        sizes = {other.name: other.nbytes for other in lines}
        found.append(
            {
                "name": name,
                "opcode": line.opcode,
                "seconds": spent,
                "share": spent / total,
                "calls": calls[name],
                "bytes": line.nbytes + sum(sizes.get(o, 0) for o in line.operands),
                "flops": work(line),
                "where": hlo.place(line),
            }
        )
    return found


def clocks(folder) -> tuple[Counter, Counter]:
    """({event: seconds}, {event: how often}) of the newest trace in `folder`."""
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda f: f.stat().st_mtime)
    if not files:
        raise errors.RunError(f"{folder} holds no trace.")
    seconds, calls = defaultdict(float), Counter()
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                calls[event.name] += 1
    return Counter(seconds), calls


def _work(program):
    """(instruction) -> operations of its products, those in a fusion's computation too."""
    own = {m.name: m.flops for m in hlo.matrix_work(program, 1)}

    def of(line) -> float:
        called = program.get(hlo.called(line), ())
        return own.get(line.name, 0.0) + sum(own.get(inner.name, 0.0) for inner in called)

    return of
