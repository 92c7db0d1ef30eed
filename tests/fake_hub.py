"""A Hugging Face Hub of one process: the part of its HTTP API that huggingface_hub speaks.

`serve()` listens on a free port of this machine. `server.repositories` is {"owner/name": {file:
bytes}}; `server.plain` is {path: bytes} of files outside of any repository. What goes wrong is
said by `server.failures` (so many requests get `server.status`), `server.private` (repositories
that want TOKEN), `server.cut` (paths whose first answer breaks off) and `server.wrong` (paths of
other bytes). `server.log` lists (method, path, whether with a token) of all requests.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_fake"
LFS = (".safetensors", ".bin", ".pth", ".npz", ".png")  # stored apart, named by their sha256


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.plain, self.uploads = {}, {}, {}
        self.failures, self.status = 0, 503
        self.private, self.cut, self.wrong, self.log = set(), set(), set(), []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self):
        """The same server under another name, as files of the Hub lie on others."""
        return f"http://localhost:{self.server_port}"

    def commit(self, repository) -> str:
        files = self.repositories[repository]
        names = "".join(f"{name}{hashlib.sha1(files[name]).hexdigest()}" for name in sorted(files))
        return hashlib.sha1(names.encode()).hexdigest()

    def count(self, part: str, method="GET") -> int:
        return len([1 for verb, path, _ in self.log if verb == method and part in path])

    def handle_error(self, request, client_address):
        """Clients that leave in the middle of an answer are no news."""


@contextlib.contextmanager
def serve():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def _answer(self, method):
        server, length = self.server, int(self.headers.get("Content-Length") or 0)
        self.body, path = self.rfile.read(length), urllib.parse.unquote(self.path)
        path, _, self.query = path.partition("?")
        with server.lock:
            server.log.append((method, path, "authorization" in self.headers))
            failing, server.failures = server.failures > 0, max(0, server.failures - 1)
        if failing:
            return self._send(server.status, b"", {"Retry-After": "0"})
        for pattern, action in (
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/api/repos/create", self._create),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/lfs/(.+)", self._store),
            (r"/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
            (r"/api/whoami-v2", self._who),
            (r"(/.+)", self._plain),
        ):
            if match := re.fullmatch(pattern, path):
                return action(*match.groups())
        return self._send(404, b"")

    def _send(self, status, content, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, headers=None):
        content = json.dumps(value).encode()
        self._send(200, content, {"Content-Type": "application/json"} | (headers or {}))

    def _error(self, status, code):
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _allowed(self, repository, create=False) -> bool:
        """Whether the client may see it; as the Hub does, nothing and private look the same."""
        key = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository not in self.server.repositories and not create:
            self._error(404 if key else 401, "RepoNotFound")
        elif not key and (create or repository in self.server.private):
            self._error(401, "RepoNotFound")
        else:
            return True
        return False

    def _known(self, repository, revision) -> bool:
        if revision in ("main", self.server.commit(repository)):
            return True
        self._error(404, "RevisionNotFound")
        return False

    def _info(self, repository, revision="main"):
        if self._allowed(repository) and self._known(repository, revision):
            files = self.server.repositories[repository]
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repository, "sha": self.server.commit(repository), "siblings": siblings}
            self._json(about | {"private": repository in self.server.private})

    def _tree(self, repository, revision):
        if self._allowed(repository) and self._known(repository, revision):
            self._json([_entry(*file) for file in self.server.repositories[repository].items()])

    def _resolve(self, repository, revision, name):
        server = self.server
        if not (self._allowed(repository) and self._known(repository, revision)):
            return None
        content = server.repositories[repository].get(name)
        headers = {"X-Repo-Commit": server.commit(repository)}
        if content is None:
            return self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        if name.endswith(LFS):  # lies elsewhere
            own = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            key = f"/cdn/{repository}/{name}"
            server.plain[key] = content
            return self._send(302, b"", headers | own | {"Location": server.elsewhere + key})
        return self._whole(f"/{name}", content, headers | {"ETag": f'"{git_hash(content)}"'})

    def _plain(self, path):
        if path.startswith("/moved/"):
            target = self.server.url + path.removeprefix("/moved")
            return self._send(302, b"", {"Location": target})
        if path not in self.server.plain:
            return self._send(404, b"")
        return self._whole(path, self.server.plain[path], {"ETag": '"x"'})

    def _whole(self, path, content, headers):
        server = self.server
        if path in server.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = int(re.search(r"\d+", self.headers.get("Range") or "0")[0])
        length, status = len(content) - begin, 206 if begin else 200
        if begin:
            own = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            headers = headers | {"Content-Range": own}
        part = content[begin:]
        with server.lock:
            cut = path in server.cut and self.command == "GET"
            server.cut -= {path} if cut else set()
        if cut:
            part, self.close_connection = part[: length // 2], True
        return self._send(status, part, headers, length)

    # What an upload asks for: where the files go, then their content, then the commit.

    def _who(self):
        if self._allowed("", create=True):
            self._json({"name": "somebody", "type": "user"})

    def _create(self):
        wanted = json.loads(self.body)
        repository = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        if repository in self.server.repositories:
            own = {"error": "You already created it", "url": f"{self.server.url}/{repository}"}
            return self._send(409, json.dumps(own).encode(), {"Content-Type": "application/json"})
        if self._allowed(repository, create=True):
            self.server.repositories[repository] = {}
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.server.private |= {repository} if private else set()
            self._json({"url": f"{self.server.url}/{repository}"})

    def _preupload(self, repository, revision):
        if self._allowed(repository):
            files = json.loads(self.body)["files"]
            mode = lambda name: "lfs" if name.endswith(LFS) else "regular"
            own = [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                for f in files
            ]
            self._json({"files": own})

    def _batch(self, repository):
        if self._allowed(repository):
            wanted = json.loads(self.body)["objects"]
            put = lambda oid: {"upload": {"href": f"{self.server.url}/lfs/{oid}", "header": {}}}
            own = [o | {"actions": put(o["oid"])} for o in wanted]
            answer = {"objects": own, "transfer": "basic"}
            self._json(answer, {"Content-Type": "application/vnd.git-lfs+json"})

    def _store(self, oid):
        self.server.uploads[oid] = self.body
        self._send(200, b"")

    def _commit(self, repository, revision):
        if not self._allowed(repository):
            return
        files = dict(self.server.repositories[repository])
        for line in self.body.decode().splitlines():
            own = json.loads(line)
            key, value = own["key"], own["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
        self.server.repositories[repository] = files
        oid = self.server.commit(repository)
        url = f"{self.server.url}/{repository}/commit/{oid}"
        self._json({"success": True, "commitUrl": url, "commitOid": oid})


def _entry(name, content):
    own = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if name.endswith(LFS):
        own["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return own
