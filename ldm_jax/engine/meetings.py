"""Where hosts wait for each other while they save, and not for one whose save has failed.

The threads of orbax go through the same meetings on all hosts, in the same order. One whose disk is
full leaves some of them out and comes to the last, and orbax's own barriers make the others wait
for it for 20 minutes. These end at once where a host comes to the last meeting of a save before
the others had theirs, or says that it gave up.
"""

import collections
import time

import jax
from jax._src import distributed  # as in hosts.py

from ldm_jax.engine import hosts

LAST = "set_value_start"  # in the key of the first and of the last meeting of a save
POLL = 0.02  # seconds between two looks of host 0 at who is there
LOOK = 200  # milliseconds that the others wait before they look whether it is in vain
GAVE_UP = "another host could not save"


class Meetings:
    """The barriers of one directory of checkpoints, an orbax.checkpoint.options.BarrierSyncFn.

    name: what tells it from all others of this process, the same on all hosts.
    """

    def __init__(self, name: str):
        self._name, self._round, self._counts = name, 0, collections.Counter()

    def __call__(self, *, key: str, timeout_ms: int):
        """Waits until all hosts are at `key` for the same time.

        Raises:
          TimeoutError: a host gave up, or did not come in time.
        """
        client, key = distributed.global_state.client, LAST if LAST in key else key
        self._counts[key] += 1
        here = self._place(key, self._counts[key])
        last, gave_up = self._place(LAST, self._counts[LAST] + 1, "by"), self._place("gave_up")
        client.key_value_set(f"{here}/by/{hosts.index()}", "")
        until = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < until:
            # First this look: a host comes to the last meeting after the others, or without them.
            in_vain = self._is_any(gave_up) or self._is_any(last)
            if self._is_held(here):
                return
            if in_vain:
                break
        raise TimeoutError(GAVE_UP)

    def give_up(self):
        """Ends the meetings that others wait in, until they `renew`."""
        if client := distributed.global_state.client:
            client.key_value_set(f"{self._place('gave_up')}/{hosts.index()}", "")

    def renew(self):
        """Begins anew on all hosts, none of which is in a meeting."""
        self._round, self._counts = self._round + 1, collections.Counter()

    def _is_held(self, here: str) -> bool:
        """Whether all are there: host 0 counts and says so, the others wait for that a while."""
        client = distributed.global_state.client
        if hosts.index():
            try:
                client.blocking_key_value_get(f"{here}/held/0", LOOK)
            except jax.errors.JaxRuntimeError:
                return False
        elif len(client.key_value_dir_get(f"{here}/by/")) < hosts.count():
            time.sleep(POLL)
            return False
        else:
            client.key_value_set(f"{here}/held/0", "")
            client.key_value_delete(f"{here}/by/")
        return True

    def _is_any(self, folder: str) -> bool:
        return bool(distributed.global_state.client.key_value_dir_get(f"{folder}/"))

    def _place(self, *parts) -> str:
        return "/".join(map(str, ("ldm_jax/meetings", self._name, self._round, *parts)))
