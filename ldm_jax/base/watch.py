"""Clocks: a stopwatch, and the time that compiling takes."""

import contextlib
import time


def stopwatch():
    """A function () -> seconds since this call."""
    begin = time.monotonic()
    return lambda: time.monotonic() - begin


@contextlib.contextmanager
def compile_clock():
    """`with compile_clock() as seconds:`; seconds() is the time spent on tracing and compiling."""
    import jax

    total = [0.0]

    def listen(event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            total[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: total[0]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
