"""Folders on gs://: small files are mirrored in a local folder, checkpoints are not.

A command asks once for the local folder of a URL and works with ordinary paths from then on. Files
that it writes there are uploaded one by one, every PERIOD seconds, before each checkpoint and at
the end. Checkpoints and compiled programs are read and written in the bucket itself, at `place`.
"""

import atexit
import logging
import pathlib
import shutil
import tempfile
import threading
import time

from etils import epath

from ldm_jax.base import errors, hub

logger = logging.getLogger(__name__)

SCHEME = "gs://"
PERIOD = 30  # seconds between uploads of what has changed
PATIENCE = 300  # seconds for one object; transient errors are retried until then
# Folders that are large, or read by libraries that know gs://
ELSEWHERE = ("checkpoints", "averages", "compilation_cache")

_mirrors: dict[str, "_Mirror"] = {}  # by URL without a trailing slash


def local(folder, *, write: bool = False) -> str:
    """The local folder of a gs:// URL or of a run's public name; another folder as it is.

    The first call fetches it: of a gs:// URL a mirror, of a name (base/hub.py) what it holds.

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
    for root, mirror in _mirrors.items():
        if url == root or url.startswith(f"{root}/"):
            return str(mirror.folder / url[len(root) :].strip("/"))
    _mirrors[url] = _Mirror(url, write)
    return str(_mirrors[url].folder)


def place(path) -> epath.Path:
    """The place in the bucket that a path in a mirror stands for; any other path as absolute."""
    return epath.Path(shown(pathlib.Path(path).resolve()))


def shown(path) -> str:
    """A path as the user knows it: in a mirror, the gs:// URL."""
    for url, mirror in _mirrors.items():
        if pathlib.Path(path).is_relative_to(mirror.folder):
            inside = pathlib.Path(path).relative_to(mirror.folder).as_posix()
            return url if inside == "." else f"{url}/{inside}"
    return str(path)


def store(url: str):
    """The objects below a gs:// URL, a tensorstore.KvStore."""
    import tensorstore

    return tensorstore.KvStore.open(f"{url}/").result(timeout=PATIENCE)


def push():
    """Uploads what has changed; a failure logs an ALARM and is tried again the next time."""
    for mirror in _mirrors.values():
        mirror.push()


class _Mirror:
    """One URL and its local folder, which lives as long as the process."""

    def __init__(self, url: str, write: bool):
        self.url, self._lock, self._known = url, threading.Lock(), {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ldm_jax_gs_")).resolve()
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._store = store(url)
            self._pull()
            if write:
                self._put(".ldm_jax_can_write", b"")
                self._put(".ldm_jax_can_write", None)
        except Exception as e:  # the bucket and the network fail in many ways
            raise errors.UsageError(
                f"{url} cannot be {'written' if write else 'read'} ({errors.reason(e)}): check the "
                "bucket's name and this account's rights (gcloud auth application-default login)."
            ) from e
        if write:
            threading.Thread(target=self._keep_pushing, daemon=True).start()

    def _pull(self):
        # Listing a bucket that refuses (403) yields nothing, without an error (tensorstore 0.1.86);
        # reading a key does raise one.
        self._store.read("config.json").result(timeout=PATIENCE)
        for key in self._store.list().result(timeout=PATIENCE):
            path = pathlib.PurePosixPath(key.decode())
            inside = path.parts and ".." not in path.parts and not path.is_absolute()
            if inside and not set(path.parts) & set(ELSEWHERE):
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                value = self._store.read(key).result(timeout=PATIENCE).value
                (self.folder / path).write_bytes(value)
        self._known = self._files()

    def _files(self) -> dict:
        """{relative path: (bytes, time of the last change)}; hidden files are unfinished ones."""
        found = {}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            if not hidden and not set(inside.parts) & set(ELSEWHERE) and path.is_file():
                found[inside.as_posix()] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found

    def _put(self, name: str, value: bytes | None):
        """Writes an object whole; None deletes it."""
        self._store.write(name, value).result(timeout=PATIENCE)

    def push(self):
        with self._lock:
            try:
                files = self._files()
                for name in sorted(files.keys() | self._known.keys()):
                    if files.get(name) != self._known.get(name):
                        gone = name not in files
                        self._put(name, None if gone else (self.folder / name).read_bytes())
                        self._known.pop(name, None)
                        self._known |= {} if gone else {name: files[name]}
            except Exception as e:  # storage fails in many ways; the files are kept here
                reason = errors.reason(e)
                logger.error("ALARM: %s was not brought up to date (%s).", self.url, reason)

    def _keep_pushing(self):
        while True:
            time.sleep(PERIOD)
            self.push()
