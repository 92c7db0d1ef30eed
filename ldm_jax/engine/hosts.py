"""Several hosts as one: how they find each other, agree, and let one act for all.

Hosts talk over jax's coordination service, which needs no devices. Every wait has an end, so that a
host that does not answer costs minutes and not a night.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import time

import jax
from jax._src import distributed  # the service's key-value store has no public name yet

from ldm_jax.base import errors, hub, owner, platforms

PATIENCE = 600  # seconds for hosts to come to the same place
HEARTBEAT = 40  # a host that is silent for so long is dead, and the others end
FAREWELL = 10  # a host that leaves waits so long for the others to leave too

_calls = itertools.count()


def connect(environ=os.environ):
    """Joins the other hosts of the job where `environ` tells of any; a lone host stays alone.

    In this order: JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (launch.local);
    LDM_HOSTS=auto (launch.tpu) or =lone; what Slurm, Open MPI, GKE and multislice say by
    themselves. To be called before anything touches a device.

    Raises:
      UsageError: the three variables are incomplete.
      Restart: the others did not come.
    """
    if distributed.global_state.client is not None or environ.get("LDM_HOSTS") == "lone":
        return
    given = {}
    if count := environ.get("JAX_NUM_PROCESSES"):
        try:
            given["num_processes"] = int(count)
            given["process_id"] = int(environ["JAX_PROCESS_ID"])
            given["coordinator_address"] = environ["JAX_COORDINATOR_ADDRESS"]
        except (KeyError, ValueError) as e:
            raise errors.UsageError(
                f"JAX_NUM_PROCESSES={count}, but {e}: set JAX_PROCESS_ID (a number from 0) and "
                "JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0) too."
            ) from e
        if given["num_processes"] == 1:
            return
    elif not _announced(environ):
        return
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as e:
        why = errors.reason(e)
        raise errors.Restart(f"The hosts of this job did not find each other: {why}") from e


def _announced(environ) -> bool:
    """Whether a scheduler whose variables JAX reads by itself started several processes."""
    several = lambda name: environ.get(name, "1").isdecimal() and int(environ.get(name, "1")) > 1
    return (
        environ.get("LDM_HOSTS") == "auto"
        # A batch script has SLURM_NTASKS as well; only srun's own processes have a step.
        or (several("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in environ)
        or several("OMPI_COMM_WORLD_SIZE")
        or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environ
    )


def index() -> int:
    """This host's number, from 0; known before any device is."""
    return distributed.global_state.process_id


def count() -> int:
    """The number of hosts."""
    return distributed.global_state.num_processes or 1


def several() -> bool:
    return distributed.global_state.client is not None


def exchange(value, seconds: float = PATIENCE) -> list:
    """What every host gave as `value` (JSON), by host; all hosts call it in the same order.

    Raises:
      Restart: a host did not answer in time.
    """
    state, call = distributed.global_state, next(_calls)
    if state.client is None:
        return [value]
    key = lambda call: f"ldm_jax/{call}/{state.process_id}"
    state.client.key_value_set(key(call), json.dumps(value))
    try:
        state.client.wait_at_barrier(f"ldm_jax/{call}", int(1000 * seconds))
    except RuntimeError as e:
        silent = sorted(set(range(state.num_processes)) - _said(f"ldm_jax/{call}/").keys())
        who = f"Host {silent[0]}" if silent else "A host"
        raise errors.Restart(f"{who} did not answer within {seconds:.0f} s.") from e
    answers = _said(f"ldm_jax/{call}/")
    if call:  # a host that came to this barrier has read the answers to the call before
        state.client.key_value_delete(key(call - 1))
    return [json.loads(answers[host]) for host in range(state.num_processes)]


def _said(folder: str) -> dict[int, str]:
    """{host: what it wrote there}."""
    pairs = distributed.global_state.client.key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]): value for key, value in pairs}


def tell(work: str):
    """Lets the others know that this host is long at `work`, or "" when it no longer is."""
    if client := distributed.global_state.client:
        client.key_value_set(f"ldm_jax/busy/{index()}", work, allow_overwrite=True)


def busy() -> dict[int, str]:
    """{host: work} of those that told."""
    if distributed.global_state.client is None:
        return {}
    return {host: work for host, work in _said("ldm_jax/busy/").items() if work}


def agree(**facts):
    """Raises UsageError, on all hosts alike, where one has another value than host 0."""
    everyone = exchange(facts)
    for name in facts:
        for host, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise errors.UsageError(
                    f"The hosts differ in their {name.replace('_', ' ')}: {everyone[0][name]} on "
                    f"host 0, {theirs[name]} on host {host}; start all of them from one checkout, "
                    "with the same flags, on machines of one kind."
                )


def on_first(action, seconds: float = PATIENCE):
    """`action()` of host 0 alone (JSON); every host returns its result or raises its UsageError."""
    result, problem = exchange(_tried(action) if index() == 0 else None, seconds)[0]
    if problem:
        raise errors.UsageError(problem)
    return result


def after_first(what: str, action, seconds: float = 3600):
    """`action(None)` on host 0, and then `action` of its result (JSON) on the others.

    Where host 0 has a UsageError, all have it. Hosts may come here in another order, or not at all:
    `what` tells one meeting from another, and host 0 waits for nobody.

    Raises:
      Restart: host 0 did not come in time.
    """
    client = distributed.global_state.client
    if client is None:
        return action(None)
    key = f"ldm_jax/first/{hashlib.sha256(what.encode()).hexdigest()}"
    if index() == 0:
        result, problem = None, f"Host 0 failed at {what}."
        try:
            result, problem = _tried(lambda: action(None))
        finally:  # whatever happened, nobody has to wait for it
            client.key_value_set(key, json.dumps([result, problem]), allow_overwrite=True)
    else:
        try:
            result, problem = json.loads(client.blocking_key_value_get(key, int(1000 * seconds)))
        except RuntimeError as e:
            raise errors.Restart(f"Host 0 had nothing of {what} within {seconds:.0f} s.") from e
        result = None if problem else action(result)
    if problem:
        raise errors.UsageError(problem)
    return result


hub.after_first = after_first  # which lies below and knows of no hosts


def everywhere(action):
    """Calls `action()` on every host; where it raises UsageError on one, all hosts raise that."""
    _, problem = _tried(action)
    for host, theirs in enumerate(exchange(problem)):
        if theirs:
            raise errors.UsageError(theirs + (f" (host {host})" if host else ""))


@contextlib.contextmanager
def owned(flag: str, folder):
    """Holds `folder` for all hosts, by host 0, until the block ends; see base/owner.py."""
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(owner.of(flag, folder)))
        yield


def _tried(action) -> tuple:
    """(its result, what its UsageError says or "")."""
    try:
        return action(), ""
    except errors.UsageError as e:
        return None, str(e)


@contextlib.contextmanager
def losses():
    """Turns what the device layer raises when another host is gone into Restart."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if distributed.global_state.client is None or "RESOURCE_EXHAUSTED" in str(e):
            raise
        raise errors.Restart(f"Another host was lost: {errors.reason(e)}") from e


def leave(code: int):
    """Ends a process that failed, at once and with its own exit code; returns on a lone host.

    The usual way out waits for hosts that may be waiting for this one in a collective, and then
    aborts: launchers would see that and not the code.
    """
    client = distributed.global_state.client
    if client is None:
        return
    with contextlib.suppress(RuntimeError):  # where all leave, all are here in a moment
        client.wait_at_barrier("ldm_jax/leave", 1000 * FAREWELL)
    if index() == 0:
        time.sleep(1.0)  # the others abort when host 0 and its service are gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def compiled(jitted, *args):
    """`jitted` compiled for `args`, once every host has it.

    Collectives wait less long for a host than hosts may differ in compiling (over gloo, 30 s).
    """
    program = jitted.lower(*args).compile()
    exchange(None, seconds=3600)
    return program


def code_version() -> str:
    """12 hex digits over the source of this package, as it lies on this host."""
    root, digest = pathlib.Path(__file__).resolve().parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def check_devices(expected: str = ""):
    """Stops a job that would run on other devices than it should.

    Args:
      expected: PLATFORM or PLATFORM:COUNT over all hosts, "tpu:16"; "" takes what is there, but not
        the CPU of a machine whose accelerator JAX has a plugin for.

    Raises:
      UsageError: with the remedy; a disagreement between hosts on all of them.
    """
    platform, count = jax.default_backend(), jax.device_count()
    wanted, _, number = expected.partition(":")
    if wanted not in ("", platform) or number not in ("", str(count)):
        raise errors.UsageError(
            f"--devices={expected}, but JAX found {count} {platform} device(s): see that the "
            "platform's plugin is installed, all hosts run, and no other process holds the devices."
        )
    if not expected and platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        for kind, (files, packages) in platforms.HARDWARE.items():
            if any(map(os.path.exists, files)) and any(map(importlib.util.find_spec, packages)):
                raise errors.UsageError(
                    f"This machine has a {kind.upper()}, but JAX fell back to the CPU: see that no "
                    f"other process holds it, or set JAX_PLATFORMS=cpu to mean the CPU."
                )
    if jax.process_count() > 1 and distributed.global_state.client is None:
        raise errors.UsageError(
            f"{jax.process_count()} hosts of a slice run, but not as one job: set LDM_HOSTS=auto."
        )
    agree(platform=platform, number_of_devices=jax.local_device_count())
