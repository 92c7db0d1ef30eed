"""A folder of bounded size that keeps what was read from afar, the least recently used goes first.

Any number of threads and processes of a machine share it: an entry is one file, there whole or not
at all, and only who adds one takes the lock. It ends in a checksum: a damaged entry is none.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import threading
import time
import zlib

logger = logging.getLogger(__name__)

KEPT = 0.9  # share of the limit that is left when entries go, so that they go many at a time
LITTER = 3600  # seconds after which a half written entry is that of a process that was killed
_SUM = 4  # bytes of the checksum


class Cache:
    """What `put` was given, by its key, as long as there is room.

    Args:
      folder: made if need be. limit: bytes of all entries; with 0 nothing is kept.
    """

    def __init__(self, folder, limit: int):
        self._folder, self._limit = pathlib.Path(folder), limit

    def get(self, key: str) -> bytes | None:
        """The entry, or None."""
        file = self._file(key)
        try:
            content = file.read_bytes()
            os.utime(file)  # the time of the last use
        except OSError:  # never there, or gone meanwhile
            return None
        data = content[:-_SUM]
        return data if _checksum(data) == content[-_SUM:] else None

    def put(self, key: str, data: bytes):
        """Keeps an entry; others go if there is no room. A disk that refuses is only warned of."""
        size, file = len(data) + _SUM, self._file(key)
        if size > self._limit:
            return
        part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data + _checksum(data))
            with self._locked():
                total = self._total() - (file.stat().st_size if file.exists() else 0) + size
                if total > self._limit:
                    total = self._evict(int(KEPT * self._limit) - size) + size
                self._counter.write_text(str(total))  # first: if killed here it says too much
                os.replace(part, file)
        except OSError as e:
            part.unlink(missing_ok=True)
            if self._limit:
                logger.warning("%s cannot be written (%s): nothing more is kept.", self._folder, e)
            self._limit = 0

    @property
    def _counter(self):
        return self._folder / "bytes"

    def _file(self, key):
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    @contextlib.contextmanager
    def _locked(self):
        with open(self._folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing lets go of it
            yield

    def _total(self) -> int:
        """Bytes of all entries, counted where the number is lost."""
        try:
            return int(self._counter.read_text())
        except (OSError, ValueError):
            return sum(size for _, size, _ in self._entries())

    def _evict(self, target: int) -> int:
        """Removes the entries that were not used for longest; returns the bytes that are left."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= max(target, 0):
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _entries(self):
        """(time of the last use, bytes, path) of every entry; litter goes."""
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # a part that was just renamed
                found = path.stat()
                if not path.name.startswith("."):
                    yield found.st_mtime_ns, found.st_size, path
                elif found.st_mtime < time.time() - LITTER:
                    path.unlink()


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM, "little")
