"""Folders on gs://: small files are mirrored in a local folder, checkpoints are not.

A command asks once for the local folder of a URL and works with ordinary paths from then on. Files
that it writes there are uploaded one by one, every PERIOD seconds, before each checkpoint and at
the end, the earlier ones first: what a file speaks of is there before it. Processes that share a
folder fetch what others wrote when they need it, under a lock (base/owner.py). Checkpoints and
compiled programs are read and written in the bucket itself, at `place`.
"""

import atexit
import contextlib
import itertools
import logging
import os
import pathlib
import shutil
import tempfile
import threading
import time
from typing import NamedTuple

from etils import epath

from ldm_jax.base import errors, hub

logger = logging.getLogger(__name__)

SCHEME = "gs://"
PERIOD = 30  # seconds between uploads of what has changed
PATIENCE = 300  # seconds for one object; transient errors are retried until then
AT_ONCE = 16  # objects that are read or written at a time
PIECE = 2**26  # bytes of a large object that are read at a time
# Folders that are large, or read by libraries that know gs://
ELSEWHERE = ("checkpoints", "averages", "compilation_cache")

_mirrors: dict[str, "_Mirror"] = {}  # by URL without a trailing slash


def local(folder, *, write: bool = False, whole: bool = True) -> str:
    """The local folder of a gs:// URL or of a run's public name; another folder as it is.

    The first call fetches it: of a gs:// URL a mirror, of a name (base/hub.py) what it holds.
    Without `whole` the mirror is empty until `fetch` is called.

    Raises:
      UsageError: the bucket cannot be read or, with `write`, written; no run of that name.
    """
    if str(folder).startswith(hub.HF):
        if write:
            raise errors.UsageError(f"{folder}: what is fetched is not written to; give a folder.")
        return str(hub.run(folder))
    url = str(folder).rstrip("/")
    if not url.startswith(SCHEME):
        return str(folder)
    mirror = next((m for root, m in _mirrors.items() if _is_below(url, root)), None) or _Mirror(url)
    inside = url[len(mirror.url) :].strip("/")
    mirror.open(inside, write, whole)
    _mirrors[mirror.url] = mirror
    return str(mirror.folder / inside)


def copy(path) -> str:
    """The local copy of a file or folder on gs://, which is not written to; other paths as given.

    Raises:
      UsageError: nothing is there, or it cannot be read.
    """
    url = str(path).rstrip("/")
    if not url.startswith(SCHEME):
        return str(path)
    found, (parent, _, name) = place(url), url.rpartition("/")
    with said(f"{url} cannot be read"):
        is_file = found.is_file()
        if not is_file and not found.is_dir():
            raise errors.UsageError(f"{url}: there is no such object or folder.")
    if not is_file:
        return local(url)
    target = pathlib.Path(local(parent, whole=False), name)
    _mirror(target).download(target)
    return str(target)


def place(path) -> epath.Path:
    """The place in the bucket that a path in a mirror stands for; any other path as absolute."""
    url = str(path)
    return epath.Path(url if url.startswith(SCHEME) else shown(pathlib.Path(path).resolve()))


def shown(path) -> str:
    """A path as the user knows it: in a mirror, the gs:// URL."""
    mirror = _mirror(path)
    return mirror.shown(path) if mirror else str(path)


def told(text: str) -> str:
    """A message with the URLs of mirrors in the place of their folders."""
    for mirror in _mirrors.values():
        text = text.replace(str(mirror.folder), mirror.url)
    return text


def exists(path) -> bool:
    """Whether there is such a file or folder, be it in a mirror or, not fetched, in its bucket."""
    mirror = _mirror(path)
    return os.path.lexists(path) or bool(mirror and mirror.holds(path))


def size(path) -> int:
    """Bytes of a file, which need not have been fetched."""
    return os.path.getsize(path) if os.path.exists(path) else place(path).stat().length


def fetch(folder, *names: str):
    """Brings files of a mirror up to date with what other processes have written by now.

    names: in `folder`; without any, all that lies below. What this process wrote itself stays. A
    folder that is in no mirror, or in one that is only read, is left as it is.
    """
    mirror = _mirror(folder)
    if mirror and mirror.write:
        mirror.fetch(mirror.key(folder), names)


def push() -> str:
    """Uploads what has changed; why that failed, or "".

    A failure logs an ALARM and is tried again the next time.
    """
    return next(filter(None, [mirror.push() for mirror in _mirrors.values()]), "")


def settle():
    """`push` that has to succeed.

    Raises:
      RunError: something is still on this machine alone.
    """
    if problem := push():
        raise errors.RunError(f"{problem} What was not uploaded is lost: start again.")


@contextlib.contextmanager
def new_folder(url: str):
    """The local folder of a gs:// URL that holds nothing yet, for one that is written as a whole.

    Its small files are uploaded at the end of the block. Of one that fails nothing is left there.

    Raises:
      UsageError: the bucket cannot be written, or holds something there.
    """
    folder = pathlib.Path(local(url, write=True, whole=False))
    mirror = _mirror(folder)
    if mirror.holds(folder):
        raise errors.UsageError(f"{url} exists already; give a new folder.")
    with mirror.held(folder):
        yield folder
    settle()


def store(url: str):
    """The objects below a gs:// URL, a tensorstore.KvStore."""
    import tensorstore

    return tensorstore.KvStore.open(f"{url}/").result(timeout=PATIENCE)


def names(path) -> list[str]:
    """The files below a folder, in a bucket or on a disk, as paths relative to it."""
    if mirror := _mirror(path):
        return mirror.names(mirror.key(path))
    folder = pathlib.Path(path)
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def duplicate(folder, target):
    """Copies a folder of a mirror that lies in the bucket alone; on a disk, its files are links."""
    if mirror := _mirror(target):
        source, goal = mirror.key(folder), mirror.key(target)
        for name in mirror.names(source):
            (place(mirror.folder / source) / name).copy(
                place(mirror.folder / goal) / name, overwrite=True
            )
    else:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target, copy_function=os.link)


def read(url: str) -> bytes | None:
    """The content of a small object; None where there is none."""
    parent, _, name = url.rpartition("/")
    with said(f"{url} cannot be read"):
        found = store(parent).read(name).result(timeout=PATIENCE)
    return None if found.state == "missing" else found.value


def download(url: str, target: pathlib.Path, size: int):
    """Writes an object of `size` bytes to a file, which appears as a whole.

    Raises:
      RunError: it cannot be read, or changes meanwhile.
    """
    parent, _, name = url.rpartition("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    part, generation = target.with_name(f".{target.name}.{os.getpid()}.part"), None
    try:
        objects = store(parent)
        with open(part, "wb") as file:
            for begin in range(0, size, PIECE):
                piece = slice(begin, min(begin + PIECE, size))
                found = objects.read(name, byte_range=piece).result(timeout=PATIENCE)
                if found.state != "value" or generation not in (None, found.stamp.generation):
                    raise ValueError("it was written or deleted meanwhile")
                generation = found.stamp.generation
                file.write(found.value)
        os.replace(part, target)
    except OSError:
        raise
    except Exception as e:  # the bucket and the network fail in many ways
        raise errors.RunError(f"{url} cannot be read ({errors.reason(e)}).") from e
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def said(what: str, remedy: str = "try again"):
    """Makes a UsageError of whatever a bucket and the network raise in the block."""
    try:
        yield
    except (errors.UsageError, OSError) as e:
        if isinstance(e, OSError) and e.errno not in errors.STORAGE:
            raise errors.UsageError(f"{what} ({errors.reason(e)}): {remedy}.") from e
        raise
    except Exception as e:
        raise errors.UsageError(f"{what} ({errors.reason(e)}): {remedy}.") from e


def discard():
    """Deletes the mirrors of this process, which are of no use to the program that it becomes."""
    while _mirrors:
        shutil.rmtree(_mirrors.popitem()[1].folder, ignore_errors=True)


class _Known(NamedTuple):
    """A file of a mirror that is as the bucket has it: (bytes, time of the last change), object."""

    stat: tuple[int, int]
    generation: bytes | None


class _Mirror:
    """One URL and its local folder, which lives as long as the process.

    Attributes:
      write: whether it was opened for writing.
    """

    def __init__(self, url: str):
        self.url, self.write, self._lock = url, False, threading.RLock()
        self._store, self._known, self._fetched, self._holds = None, {}, set(), False
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ldm_jax_gs_")).resolve()
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def open(self, inside: str, write: bool, whole: bool):
        """Makes the mirror what `local` promises of the folder `inside` it."""
        doing = "written" if write else "read"
        hint = "check the bucket's name and this account's rights (gcloud auth "
        with said(f"{self.url} cannot be {doing}", f"{hint}application-default login)"):
            # Listing a bucket that refuses (403) yields nothing, without an error (tensorstore
            # 0.1.86); reading a key does raise one.
            if not self._store:
                self._store = store(self.url)
                self._store.read("config.json").result(timeout=PATIENCE)
            if whole and not any(_is_below(inside, folder) for folder in self._fetched):
                self.fetch(inside)
                self._fetched.add(inside)
            if write and not self.write:
                for value in (b"", None):
                    self._store.write(".ldm_jax_can_write", value).result(timeout=PATIENCE)
                self.write = True
                threading.Thread(target=self._keep_pushing, daemon=True).start()

    def shown(self, path) -> str:
        key = self.key(path)
        return f"{self.url}/{key}" if key else self.url

    def key(self, path) -> str:
        inside = pathlib.Path(path).relative_to(self.folder).as_posix()
        return "" if inside == "." else inside

    def holds(self, path) -> bool:
        """Whether the bucket holds an object or a folder there."""
        key = self.key(path)
        with said(f"{self.shown(path)} cannot be read"):
            here = key and self._store.read(key).result(timeout=PATIENCE).state != "missing"
            return bool(here or self.names(key))

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a folder, relative to it."""
        import tensorstore

        within = f"{folder}/" if folder else ""
        every = tensorstore.KvStore.KeyRange(within, f"{folder}0" if folder else "")  # "/" < "0"
        with said(f"{self.url}/{folder} cannot be read"):
            keys = self._store.list(every).result(timeout=PATIENCE)
        found = (key.decode()[len(within) :] for key in keys)
        # Names that end in a slash stand for folders, as gcsfuse and Google's console make them.
        return [name for name in found if not name.endswith("/") and is_inside(name)]

    def fetch(self, folder: str, names=()):
        within = f"{folder}/" if folder else ""
        with self._lock, said(f"{self.url}/{folder} cannot be read"):
            keys = {within + name for name in names or self.names(folder)}
            gone = set() if names else {key for key in self._known if key.startswith(within)} - keys
            for some in _some(filter(_is_mirrored, sorted(keys))):
                reads = {}
                for key in some:
                    known = self._known.get(key, _Known(None, None))
                    if _stat(self.folder / key) == known.stat:  # else it was changed here
                        reads[key] = self._store.read(key, if_not_equal=known.generation)
                for key, reading in reads.items():
                    found = reading.result(timeout=PATIENCE)
                    if found.state == "value":
                        self._take(key, found)
                    elif found.state == "missing":
                        gone.add(key)
            for key in gone & self._known.keys():
                if _stat(self.folder / key) == self._known[key].stat:
                    (self.folder / key).unlink()
                    del self._known[key]

    def download(self, path: pathlib.Path):
        """Fetches one object, of whatever size, once."""
        with self._lock, said(f"{self.shown(path)} cannot be read"):
            if self.key(path) not in self._known:
                download(self.shown(path), path, place(path).stat().length)
                self._known[self.key(path)] = _Known(_stat(path), None)

    def _take(self, key: str, found):
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(found.value)
        part.replace(path)
        self._known[key] = _Known(_stat(path), found.stamp.generation)

    @contextlib.contextmanager
    def held(self, folder):
        """Uploads nothing until the block ends; if it fails, deletes what lies below `folder`."""
        self._holds = True
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            with contextlib.suppress(Exception):  # what went wrong is the news
                within = self.key(folder)
                for name in self.names(within):
                    key = f"{within}/{name}" if within else name
                    self._store.write(key, None).result(timeout=PATIENCE)
            raise
        finally:
            self._holds = False

    def push(self) -> str:
        with self._lock:
            try:
                if not self._holds:
                    self._upload()
                return ""
            except Exception as e:  # storage fails in many ways; the files are kept here
                problem = f"{self.url} was not brought up to date ({errors.reason(e)})."
                logger.error("ALARM: %s", problem)
                return problem

    def _upload(self):
        # Of files that speak of others, such as a shard's record, the others were listed before:
        # what changes while the listing is made waits for the next time.
        called = self._clock()
        while (begin := self._clock()) == called:  # what was written before the call is older
            time.sleep(0.001)
        files, end = self._files(), self._clock()
        late = {key for key, (_, changed) in files.items() if begin <= changed <= end}
        stale = lambda key: key not in self._known or self._known[key].stat != files[key]
        new = sorted(filter(stale, files.keys() - late), key=lambda key: files[key][1])
        for _, group in itertools.groupby(new, lambda key: pathlib.PurePosixPath(key).parent):
            for some in _some(group):
                values = {key: _content(self.folder / key) for key in some}
                writes = {k: self._store.write(k, v) for k, v in values.items() if v is not None}
                for key, writing in writes.items():
                    stamp = writing.result(timeout=PATIENCE)
                    self._known[key] = _Known(files[key], stamp.generation)
        for key in self._known.keys() - files.keys():
            self._store.write(key, None).result(timeout=PATIENCE)
            del self._known[key]

    def _clock(self) -> int:
        """The time as the file system tells it, which may be another one than this machine's."""
        probe = self.folder / ".now"
        probe.write_bytes(b"")
        return probe.stat().st_mtime_ns

    def _files(self) -> dict:
        """{relative path: (bytes, time of the last change)}; hidden files are unfinished ones."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        found = {self.key(path): _stat(path) for path in paths}
        return {key: stat for key, stat in found.items() if stat and _is_mirrored(key)}

    def _keep_pushing(self):
        while True:
            time.sleep(PERIOD)
            self.push()


def is_inside(name: str) -> bool:
    """Whether a relative path that somebody else wrote stays in its folder."""
    path = pathlib.PurePosixPath(name)
    return bool(path.parts) and ".." not in path.parts and not path.is_absolute()


def _mirror(path) -> _Mirror | None:
    inside = (m for m in _mirrors.values() if pathlib.Path(path).is_relative_to(m.folder))
    return next(inside, None)


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _is_mirrored(key: str) -> bool:
    parts = pathlib.PurePosixPath(key).parts
    return not set(parts) & set(ELSEWHERE) and not any(part.startswith(".") for part in parts)


def _some(keys):
    """AT_ONCE of them at a time."""
    keys = list(keys)
    return (keys[i : i + AT_ONCE] for i in range(0, len(keys), AT_ONCE))


def _content(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # deleted since it was listed
        return None


def _stat(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
