"""Where the files of a data set lie: in a folder of this machine, or on gs://.

Both tell the names and sizes of files and read them whole or in part, from any thread and process.
"""

import concurrent.futures
import io
import json
import logging
import os
import pathlib

from ldm_jax.base import cache, disk, download, errors, remote

GIB = 2**30
CACHE = 32.0  # GiB
READERS = 32  # requests to a bucket at a time, where many are known at once
_WINDOW = 2**20  # bytes that are fetched at a time of a file that is looked through


def place(path: str, cache_gib: float = CACHE, *, deep: bool = True) -> "Local | Bucket":
    """The folder at a path or gs:// URL. deep: whether files in folders inside count, too.

    cache_gib: of local disk, for what is read of a bucket.
    """
    if path.startswith(remote.SCHEME):
        return Bucket(path.rstrip("/"), int(cache_gib * GIB), deep)
    return Local(path, deep)


def split(path: str, suffix: str) -> tuple[str, str]:
    """(folder, name) of the path of a file, which on gs:// ends in `suffix`; else (path, "")."""
    path = path if path.strip("/") == "" else path.rstrip("/")
    is_file = path.endswith(suffix) if path.startswith(remote.SCHEME) else not os.path.isdir(path)
    return os.path.split(path) if is_file else (path, "")


class Local:
    """A folder of this machine; `folder / name` is for messages, and to open a file by."""

    def __init__(self, path, deep: bool):
        self.folder, self._deep, self._open = pathlib.Path(path), deep, {}

    def __getstate__(self):
        return self.__dict__ | {"_open": {}}

    def names(self) -> list[str]:
        """Paths of the files relative to the folder."""
        if not self.folder.is_dir():
            return []
        if not self._deep:
            return [entry.name for entry in os.scandir(self.folder)]
        walk = os.walk(self.folder)
        files = (pathlib.Path(parent, name) for parent, _, names in walk for name in names)
        return [file.relative_to(self.folder).as_posix() for file in files]

    def size(self, name: str) -> int:
        """Bytes; raises OSError for what is no regular file."""
        return disk.check_regular(self.folder / name)

    def read(self, name: str) -> bytes:
        """The file; raises OSError, also where it is no regular one."""
        self.size(name)
        return (self.folder / name).read_bytes()

    def part(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer where it ends; raises OSError."""
        if name not in self._open:
            # Two reader threads may get here at once: the first one's file stays.
            self._open.setdefault(name, (self.folder / name).open("rb", buffering=0))
        # pread has no shared file position, so threads need no lock.
        return os.pread(self._open[name].fileno(), size, offset)

    def index(self, names, make) -> list:
        """`make(path, file)` of each file, opened to be looked through."""
        found = []
        for name in names:
            with disk.reading(self.folder / name):
                self.size(name)
                with (self.folder / name).open("rb") as file:
                    found.append(make(self.folder / name, file))
        return found

    def ahead(self, read, handles: dict):
        """(read, {key: {key: handle}}) for many reads that will be wanted in this order."""
        return read, handles


class Bucket:
    """A folder on gs://, listed once. What is read stays in a cache that all runs share.

    gcsfs tries again what may pass, six times over half a minute.

    Raises:
      UsageError: it cannot be listed, or holds nothing.
    """

    def __init__(self, url: str, limit: int, deep: bool):
        self.url = url
        self._cache = cache.Cache(download.cache() / "data", limit)
        remedy = "check the name and this account's rights (gcloud auth application-default login)."
        try:
            found = _storage().find(url, maxdepth=None if deep else 1, detail=True)
        except Exception as e:  # the bucket, the network and the account fail in many ways
            why = errors.reason(e)
            raise errors.UsageError(f"{url} cannot be read ({why}): {remedy}") from e
        inside = len(url.removeprefix(remote.SCHEME)) + 1
        # A name that ends in "/" is a folder that a browser's console made.
        self._files = {
            path[inside:]: (int(about["size"]), str(about.get("generation") or about.get("etag")))
            for path, about in found.items()
            if path[inside:] and not path.endswith("/")
        }
        if not self._files:
            raise errors.UsageError(f"{url} holds no files: {remedy}")

    @property
    def folder(self):
        return self

    def __str__(self):
        return self.url

    def __truediv__(self, name: str) -> "Blob":
        return Blob(self, name)

    def names(self) -> list[str]:
        return list(self._files)

    def has(self, name: str) -> bool:
        return name in self._files

    def size(self, name: str) -> int:
        return self._about(name)[0]

    def read(self, name: str) -> bytes:
        return self.part(name, 0, self.size(name))

    def part(self, name: str, offset: int, size: int) -> bytes:
        key = self._key(name, offset, size)
        data = self._cache.get(key)
        if data is None:
            data = self.fetch(name, offset, size)
            self._cache.put(key, data)
        return data

    def fetch(self, name: str, offset: int, size: int) -> bytes:
        """As `part`, past the cache.

        Raises:
          OSError: there is no such file any more. RunError: the bucket does not answer.
        """
        size = min(size, self.size(name) - offset)
        if size <= 0:
            return b""
        try:
            return _storage().cat_file(f"{self.url}/{name}", start=offset, end=offset + size)
        except FileNotFoundError:
            raise
        except Exception as e:  # as in __init__
            raise errors.RunError(
                f"{self.url}/{name} cannot be read ({errors.reason(e)}), tried again for half a "
                "minute: see that the bucket can be reached, then give the same command again."
            ) from e

    def index(self, names, make) -> list:
        """As of Local; `make` gives what JSON holds, which is kept, too."""

        def one(name):
            key = self._key(name, "index")
            if (known := self._cache.get(key)) is not None:
                return json.loads(known)
            with disk.reading(f"{self.url}/{name}"), (self / name).open() as file:
                found = make(self / name, file)
            self._cache.put(key, json.dumps(found).encode())
            return found

        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(one, names))

    def ahead(self, read, handles: dict):
        """As of Local: the reads are done here, many at a time."""
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            done = {
                key: {inner: pool.submit(read, handle) for inner, handle in given.items()}
                for key, given in handles.items()
            }
        return concurrent.futures.Future.result, done

    def _about(self, name: str) -> tuple[int, str]:
        if name not in self._files:
            raise FileNotFoundError(f"{self.url}/{name}: there is no such file.")
        return self._files[name]

    def _key(self, name: str, *which) -> str:
        return " ".join(map(str, (self.url, name, self._about(name)[1], *which)))


class Blob:
    """A file of a bucket, with what is used here of a pathlib.Path."""

    def __init__(self, bucket: Bucket, name: str):
        self._bucket, self._name = bucket, name

    def __str__(self):
        return f"{self._bucket.url}/{self._name}"

    def exists(self) -> bool:
        return self._bucket.has(self._name)

    def open(self, mode: str = "rb"):
        """A file of bytes to look through."""
        return io.BufferedReader(_Raw(self._bucket, self._name), _WINDOW)


class _Raw(io.RawIOBase):
    """A file of a bucket that can be looked through."""

    def __init__(self, bucket: Bucket, name: str):
        self._bucket, self._name, self._at = bucket, name, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (self._bucket.size(self._name) if begin is None else begin)
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        data = self._bucket.fetch(self._name, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _storage():
    """This process's connection, which the library keeps."""
    import gcsfs

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it says, the errors here say
    return gcsfs.GCSFileSystem(use_listings_cache=False)
