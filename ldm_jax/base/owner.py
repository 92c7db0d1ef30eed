"""A folder has one owner: the job that writes there. Others are refused while it lives.

    with owner.of("--workdir", workdir):
        ...

The owner locks the file .owner in the folder, and says there who it is. The lock is POSIX's: the
system releases it when the process ends in whatever way, on local disks and on NFS (whose server
may take a minute to notice that a host is gone). Folders on gs:// have no locks; there the file is
an object that its owner writes anew every RENEWAL seconds, on condition that nobody else did, and
which has no owner once it stayed the same for LEASE seconds. Whoever only reads needs neither.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import platform
import shlex
import sys
import threading
import time

from ldm_jax.base import errors, remote, terminal

logger = logging.getLogger(__name__)

NAME = ".owner"
PATIENCE = 100  # seconds that another host, which may be gone, has to be silent for
RENEWAL, LEASE = 20, 90  # seconds

_own = set()  # names of the locks and leases that this process holds


@contextlib.contextmanager
def of(flag: str, folder, worker: str = ""):
    """Holds `folder`, which is made, until the block ends; in one process it may do so again.

    flag: what the user calls the folder. worker: a name, "K/N" for instance, where processes share
    the folder: then only another one of this name, or one that wants it for itself, is refused.

    Raises:
      UsageError: another process holds the folder; the message says which.
    """
    url = remote.shown(folder)
    if url.startswith(remote.SCHEME):
        holds = {url: _lease(flag, url)}
    else:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        path = pathlib.Path(folder).resolve() / NAME
        holds = {str(path): _lock(flag, path, shared=bool(worker))}
        if worker:
            own = path.with_name(f"{NAME}.{worker.replace('/', '_of_')}")
            holds[str(own)] = _lock(flag, own)
    with contextlib.ExitStack() as stack:
        for name in holds.keys() - _own:  # a second lock of a process would end with its first
            stack.enter_context(holds[name])
            _own.add(name)
            stack.callback(_own.discard, name)
        yield


@contextlib.contextmanager
def _lock(flag: str, path: pathlib.Path, shared: bool = False):
    # A POSIX lock ends when its process closes any file of this path: nobody else opens it here.
    with open(path, "a+") as file:
        until, waits = time.monotonic() + PATIENCE, False
        while not _try(file, shared, path):
            other = _said(file, path)
            if other.get("host") in (None, platform.node()) or time.monotonic() > until:
                raise errors.UsageError(_refusal(flag, path.parent, other))
            if not waits:
                waits = True
                _wait(flag, path.parent, other, PATIENCE)
            time.sleep(1)
        file.truncate(0)
        if not shared:
            file.write(json.dumps(_me()) + "\n")
            file.flush()
        yield


def _try(file, shared: bool, path) -> bool:
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as e:  # some network file systems have no locks
        terminal.warn(
            f"warning: {path.parent} cannot be locked ({e.strerror}): see that no other process "
            "writes there."
        )
    return True


@contextlib.contextmanager
def _lease(flag: str, url: str):
    """As `_lock`, of an object in a bucket."""
    store, key = remote.store(url), NAME
    seen, until = None, 0.0
    while True:
        found = store.read(key).result(timeout=remote.PATIENCE)
        other = _parsed(found.value)
        if found.state == "missing" or _is_alive(other) is False:
            break
        if _is_alive(other):
            raise errors.UsageError(_refusal(flag, url, other))
        if found.stamp.generation != seen:
            if seen is not None:  # it was renewed while we waited
                raise errors.UsageError(_refusal(flag, url, other))
            seen, until = found.stamp.generation, time.monotonic() + LEASE
            _wait(flag, url, other, LEASE)
        elif time.monotonic() > until:
            break
        time.sleep(LEASE / 40)
    ended, generation = threading.Event(), _write(store, found.stamp.generation)
    if generation is None:  # another process was faster
        other = _parsed(store.read(key).result(timeout=remote.PATIENCE).value)
        raise errors.UsageError(_refusal(flag, url, other))

    def renew():
        nonlocal generation
        while not ended.wait(RENEWAL):
            try:
                renewed = _write(store, generation)
            except Exception as e:  # storage fails in many ways, and may be back the next time
                logger.error("ALARM: %s is not renewed (%s).", f"{url}/{key}", errors.reason(e))
                continue
            if renewed is None and not ended.is_set():
                print(
                    f"ldm_jax: {url} was taken by another process, as this one was silent for more "
                    f"than {LEASE} s: it ends.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(errors.EXIT_FAILED)
            generation = renewed

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            store.write(key, None, if_equal=generation).result(timeout=remote.PATIENCE)


def _write(store, generation):
    """Writes the lease over the object of this generation; its new one, None where it has gone."""
    content = json.dumps(_me() | {"renewed": time.time()})
    stamp = store.write(NAME, content, if_equal=generation).result(timeout=remote.PATIENCE)
    return stamp.generation or None


def _me() -> dict:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    command = shlex.join(sys.argv)[:200]
    own = {"host": platform.node(), "pid": os.getpid(), "since": now, "command": command}
    return own | {"system": _system()}


def _system() -> str:
    """What two processes have in common that see each other's ids; "" where it is not known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_alive(other: dict) -> bool | None:
    """Whether an owner is a process that lives; None where it is one of another system."""
    if not other.get("system") or other["system"] != _system():
        return None
    return pathlib.Path(f"/proc/{other.get('pid')}").exists()


def _said(file, path) -> dict:
    """What the owner says of itself; where workers share the folder, one of them."""
    file.seek(0)
    texts = [file.read(4096), *(other.read_text() for other in path.parent.glob(f"{path.name}.*"))]
    return next(filter(None, map(_parsed, texts)), {})


def _parsed(text) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(flag: str, folder, other: dict) -> str:
    who = "another process"
    if other:
        who = f"process {other.get('pid')} on {other.get('host')} since {other.get('since')}"
    return (
        f"{flag}={remote.shown(folder)} is in use: {who} writes there; wait for it, end it, or "
        "take another folder."
    )


def _wait(flag: str, folder, other: dict, seconds: int):
    print(
        f"{flag}={remote.shown(folder)}: process {other.get('pid')} on {other.get('host')} held it "
        f"since {other.get('since')}; waiting up to {seconds} s whether it is still there.",
        file=sys.stderr,
        flush=True,
    )
