"""Hosts that save wait for each other, but not for one whose save failed; threads are the hosts."""

import concurrent.futures
import threading
import time

import jax
import pytest

from ldm_jax.engine import hosts, meetings


class Store:
    """The key-value store of jax's coordination service."""

    def __init__(self):
        self._known, self._lock = {}, threading.Lock()

    def key_value_set(self, key, value):
        with self._lock:
            self._known[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        until = time.monotonic() + milliseconds / 1000
        while time.monotonic() < until:
            if key in self._known:
                return self._known[key]
            time.sleep(0.001)
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")

    def key_value_dir_get(self, folder):
        with self._lock:
            return [(key, said) for key, said in self._known.items() if key.startswith(folder)]

    def key_value_delete(self, folder):
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if not k.startswith(folder)}


@pytest.fixture
def both(monkeypatch):
    """both(act): act(host, its meetings) on two hosts at once; what came of it, on each."""
    own, every = threading.local(), [meetings.Meetings("x") for _ in range(2)]
    monkeypatch.setattr(hosts.distributed.global_state, "client", Store())
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "index", lambda: own.host)
    monkeypatch.setattr(meetings, "LOOK", 20)

    def tried(act, host):
        own.host = host
        try:
            return act(host, every[host])
        except TimeoutError as e:
            return str(e)

    def run(act):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [*pool.map(lambda host: tried(act, host), range(2))]

    return run


@pytest.mark.parametrize("failed", [0, 1])
def test_nobody_waits_for_a_host_whose_save_failed(both, failed):
    meet = lambda own, key: own(key=key, timeout_ms=5000)

    def save(host, own):
        meet(own, f"begin.{meetings.LAST}")
        problem = ""
        for key in ("written.6", "committed.6") if host != failed else ():
            try:
                meet(own, key)
            except TimeoutError as e:
                problem = str(e)
                break
        meet(own, f"end.{meetings.LAST}")
        return problem

    begin = time.monotonic()
    assert both(save)[1 - failed] == meetings.GAVE_UP
    assert time.monotonic() - begin < 4, "nobody waited to the end of a timeout"
    both(lambda host, own: own.renew())
    assert both(lambda host, own: [meet(own, "written.6") for _ in range(3)]) == [[None] * 3] * 2


def test_a_host_that_gives_up_frees_the_others(both):
    act = lambda host, own: own(key="x", timeout_ms=5000) if host else own.give_up()
    assert both(act) == [None, meetings.GAVE_UP]
