"""Who hears SIGTERM. One owner: JAX's coordination service on several hosts, we on a lone one."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """`with Preemption() as preemption: ... if preemption.requested(step): save and leave`.

    On several hosts all of them agree on the same step, whichever of them got the signal; a handler
    of our own would steal the signal from that agreement, so there is none there.
    """

    def __init__(self):
        self._received = False
        self._previous = None

    def __enter__(self):
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exc):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, signum, frame):
        self._received = True

    def requested(self, step: int) -> bool:
        """Whether the run should save now and leave. Every host calls it with the same steps."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
