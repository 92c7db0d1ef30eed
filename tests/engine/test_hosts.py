"""Agreement between hosts, with a store in the place of jax's coordination service."""

import os

import jax
import pytest

from ldm_jax.base import errors, platforms
from ldm_jax.engine import hosts


class Store:
    """The key-value store as host 0 of two sees it; host 1 has said `theirs` already."""

    def __init__(self, *theirs):
        self.known = {f"ldm_jax/{call}/1": said for call, said in enumerate(theirs)}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.known
        self.known[key] = value

    def wait_at_barrier(self, name, milliseconds):
        if f"{name}/1" not in self.known:
            raise RuntimeError("DEADLINE_EXCEEDED")

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.known.items() if key.startswith(folder)]

    def key_value_delete(self, key):
        del self.known[key]


@pytest.fixture
def beside(monkeypatch):
    """beside(answer, ...): this process is host 0, and host 1 gives these answers (JSON)."""

    def begin(*theirs):
        monkeypatch.setattr(hosts, "_calls", iter(range(99)))
        monkeypatch.setattr(hosts.distributed.global_state, "client", Store(*theirs))
        monkeypatch.setattr(hosts.distributed.global_state, "num_processes", 2)

    return begin


def test_a_lone_host_agrees_with_itself():
    assert hosts.exchange({"a": 1}) == [{"a": 1}] and hosts.index() == 0
    hosts.agree(config="abc")
    assert hosts.on_first(lambda: [1, "x"]) == [1, "x"]


def test_hosts_that_differ_are_named_with_both_values(beside):
    beside('{"config": "1", "code_version": "b"}')
    with pytest.raises(errors.UsageError, match="code version: a on host 0, b on host 1"):
        hosts.agree(config="1", code_version="a")


def test_a_host_that_does_not_answer_means_restart(beside):
    beside()
    with pytest.raises(errors.Restart, match="Host 1 did not answer within 3 s"):
        hosts.exchange("here", seconds=3)


def test_what_all_have_read_is_forgotten(beside):
    beside(*["1"] * 20)
    for call in range(20):
        assert hosts.exchange(call) == [call, 1]
    own = [key for key in hosts.distributed.global_state.client.known if key.endswith("/0")]
    assert own == ["ldm_jax/19/0"]


def test_a_host_tells_what_it_is_long_at(beside):
    assert hosts.busy() == {} and not hosts.several()
    beside()
    hosts.tell("data")
    assert hosts.busy() == {0: "data"}
    hosts.tell("")
    assert hosts.busy() == {}


def test_what_host_0_refuses_all_refuse(beside):
    def refuse():
        raise errors.UsageError("no such thing")

    beside("null", "null")
    with pytest.raises(errors.UsageError, match="no such thing"):
        hosts.on_first(refuse)
    assert hosts.on_first(lambda: 3) == 3


def test_what_one_host_refuses_all_refuse_and_it_is_named(beside):
    beside('"no room"', '""')
    with pytest.raises(errors.UsageError, match=r"no room \(host 1\)"):
        hosts.everywhere(lambda: None)
    hosts.everywhere(lambda: None)


@pytest.mark.parametrize(
    ("environ", "joins"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the batch script itself
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "LDM_HOSTS": "lone"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
        ({"LDM_HOSTS": "auto"}, True),
        ({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": ""}, False),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_only_the_hosts_of_a_larger_job_join(environ, joins, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
    hosts.connect(environ)
    assert len(calls) == joins


def test_half_a_description_of_the_job_is_refused():
    with pytest.raises(errors.UsageError, match="JAX_PROCESS_ID"):
        hosts.connect({"JAX_NUM_PROCESSES": "2"})


def test_other_devices_than_expected_are_refused(monkeypatch):
    count = jax.device_count()
    for expected in ("", "cpu", f"cpu:{count}"):
        hosts.check_devices(expected)
    for expected in ("tpu", "tpu:16", f"cpu:{count + 1}"):
        with pytest.raises(errors.UsageError, match=f"--devices={expected}, but JAX found {count}"):
            hosts.check_devices(expected)


def test_the_cpu_of_a_machine_with_an_accelerator_is_refused(monkeypatch):
    monkeypatch.setattr(platforms, "HARDWARE", {"gpu": ((os.devnull,), ("jax",))})
    hosts.check_devices()  # JAX_PLATFORMS says that the CPU is meant
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(errors.UsageError, match="has a GPU, but JAX fell back to the CPU"):
        hosts.check_devices()
    monkeypatch.setattr(platforms, "HARDWARE", {"gpu": ((os.devnull,), ("no_such_plugin",))})
    hosts.check_devices()


def test_the_code_version_is_that_of_the_source():
    assert len(hosts.code_version()) == 12 and hosts.code_version() == hosts.code_version()
