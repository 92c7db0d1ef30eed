"""A folder has one owner: the job that writes there. Others are refused while it lives.

    with owner.of("--workdir", workdir):
        ...
    with owner.lock(folder, "name"):  # for a while, and others wait
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
import uuid

from ldm_jax.base import disk, errors, remote, terminal

logger = logging.getLogger(__name__)

NAME = ".owner"
PATIENCE = 100  # seconds that another host, which may be gone, has to be silent for
RENEWAL, LEASE = 20, 90  # seconds
POLL = 0.5  # seconds between two looks at what another process holds

_own = set()  # names of the locks and leases that this process holds


@contextlib.contextmanager
def of(flag: str, folder, worker: str = ""):
    """Holds `folder`, which is made, until the block ends; in one process it may do so again.

    flag: what the user calls the folder. worker: a name, "K/N" for instance, where processes share
    the folder: then only another one of this name, or one that wants it for itself, is refused.

    Raises:
      UsageError: another process holds the folder; the message says which.
    """
    url, own = remote.shown(folder), f"{NAME}.{worker.replace('/', '_of_')}" if worker else NAME
    if url.startswith(remote.SCHEME):
        holds = {f"{url}/{own}": _owned_lease(flag, url, own)}
    else:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        path = pathlib.Path(folder).resolve() / NAME
        holds = {str(path): _owned_file(flag, path, shared=bool(worker))}
        if worker:
            holds[str(path.with_name(own))] = _owned_file(flag, path.with_name(own))
    with contextlib.ExitStack() as stack:
        for name in holds.keys() - _own:  # a second lock of a process would end with its first
            stack.enter_context(holds[name])
            _own.add(name)
            stack.callback(_own.discard, name)
        yield


@contextlib.contextmanager
def lock(folder, name: str):
    """Waits until no other process is in a block of this name and folder, which is made.

    When another one comes in, what this block wrote lies in the bucket, if the folder is in one;
    with remote.fetch it sees that.

    Raises:
      RunError: what was written could not be uploaded.
    """
    url, key = remote.shown(folder), f".{name}.lock"
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    wait = lambda other, alive: time.sleep(POLL)
    if url.startswith(remote.SCHEME):
        held = _lease(url, key, wait)
    else:
        held = _file(pathlib.Path(folder).resolve() / key, wait)
    with held:
        yield
        remote.settle()


def _refuse(flag: str, folder, seconds: int):
    """Of `_file` and `_lease`: refuses a folder as long as its owner lives; otherwise waits."""
    said = False

    def taken(other: dict, alive: bool | None):
        nonlocal said
        if alive:
            raise errors.UsageError(_refusal(flag, folder, other))
        if not said:
            said = True
            _wait(flag, folder, other, seconds)
        time.sleep(POLL)

    return taken


def _owned_file(flag: str, path: pathlib.Path, shared: bool = False):
    return _file(path, _refuse(flag, path.parent, PATIENCE), shared)


@contextlib.contextmanager
def _owned_lease(flag: str, url: str, key: str):
    """Of a worker: beside those of other workers, but not beside that of a lone owner."""
    refuse = _refuse(flag, url, LEASE)
    with _lease(url, key, refuse):
        with remote.said(f"{url}/{NAME} cannot be read"):
            store = remote.store(url)
            # Of two that come at once, the later one sees the other.
            for other in [NAME] if key != NAME else _workers(store):
                generation = _free(store, other, refuse)
                store.write(other, None, if_equal=generation).result(timeout=remote.PATIENCE)
        yield


def _workers(store) -> list[str]:
    import tensorstore

    every = tensorstore.KvStore.KeyRange(f"{NAME}.", f"{NAME}/")  # "." < "/"
    return [key.decode() for key in store.list(every).result(timeout=remote.PATIENCE)]


@contextlib.contextmanager
def _file(path: pathlib.Path, taken, shared: bool = False):
    """Holds a lock of POSIX's.

    taken: called again and again while another process has it, with who that is and whether it is
    alive, None where that is not known yet; raises, or returns after a while.
    """
    with disk.reading(path):
        if disk.there(path):
            disk.check_regular(path)
    # A POSIX lock ends when its process closes any file of this path: nobody else opens it here.
    with open(path, "a+") as file:
        until = time.monotonic() + PATIENCE
        while not _try(file, shared, path):
            other = _said(file, path)
            here = other.get("host") in (None, platform.node())
            taken(other, True if here or time.monotonic() > until else None)
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
def _lease(url: str, key: str, taken):
    """As `_file`, of an object in a bucket."""
    store, own = remote.store(url), uuid.uuid4().hex
    with remote.said(f"{url}/{key} cannot be written"):
        while (generation := _write(store, key, own, _free(store, key, taken))) is None:
            pass  # another process was faster
    ended = threading.Event()

    def renew():
        nonlocal generation
        while not ended.wait(RENEWAL):
            try:
                renewed = _write(store, key, own, generation)
            except Exception as e:  # storage fails in many ways, and may be back the next time
                logger.error("ALARM: %s is not renewed (%s).", f"{url}/{key}", errors.reason(e))
                continue
            if renewed is None and not ended.is_set():
                print(
                    f"ldm_jax: {url}/{key} was taken by another process, as this one was silent "
                    f"for more than {LEASE} s: it ends.",
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
        remote.push()  # also of a block that failed: whoever goes on has to find it
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            store.write(key, None, if_equal=generation).result(timeout=remote.PATIENCE)


def _free(store, key: str, taken) -> bytes:
    """The generation of a lease that nobody holds, once that is so; see `_file` for `taken`."""
    seen, until = None, 0.0
    while True:
        found = store.read(key).result(timeout=remote.PATIENCE)
        other, now = _parsed(found.value), time.monotonic()
        alive = _is_alive(other)
        if found.stamp.generation != seen:
            if seen is not None:  # it was renewed while we waited
                alive = True
            seen, until = found.stamp.generation, now + LEASE
        elif now > until:  # also a process that lives has it no more
            alive = False
        if found.state == "missing" or alive is False:
            return found.stamp.generation
        taken(other, alive)


def _write(store, key: str, own: str, generation):
    """Writes the lease over the object of this generation; its new one, None where it has gone.

    own: what tells this lease from all others.
    """
    content = json.dumps(_me() | {"renewed": time.time(), "lease": own})
    stamp = store.write(key, content, if_equal=generation).result(timeout=remote.PATIENCE)
    if stamp.generation:
        return stamp.generation
    # Where the answer to a write was lost, its repetition finds an object of another generation.
    found = store.read(key).result(timeout=remote.PATIENCE)
    return found.stamp.generation if _parsed(found.value).get("lease") == own else None


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
