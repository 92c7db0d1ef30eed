"""A Google Cloud Storage of one process: the part of its JSON API that our libraries speak.

`serve()` listens on a free port of this machine. `server.objects` is {(bucket, name): bytes};
`server.failures` answers that many requests with 503; `server.forbidden` are buckets that give 403.
`server.trouble()`, called for every request, says what becomes of it: "" or one of TROUBLES.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TROUBLES = {  # what a client gets, and whether its request had an effect before
    "refused": (503, False),
    "cut": (None, False),  # the connection ends without an answer
    "refused after": (503, True),
    "cut after": (None, True),
}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.generations, self.uploads = {}, {}, {}
        self.failures, self.failed, self.forbidden = 0, 0, set()
        self.lock, self.trouble = threading.RLock(), lambda: ""

    def handle_error(self, request, client_address):
        """Clients that leave in the middle of an answer are no news."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, bucket, name, data):
        self.objects[bucket, name] = bytes(data)
        self.generations[bucket, name] = self.generations.get((bucket, name), 0) + 1
        return self.about(bucket, name)

    def about(self, bucket, name):
        data, generation = self.objects[bucket, name], self.generations[bucket, name]
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "etag": str(generation),
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _handle(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        with self.server.lock:
            self._answer, effect = TROUBLES.get(self.server.trouble(), ("", True))
            self.server.failed += self._answer != ""
            if not effect:
                return self._reply(200)
            if self.server.failures:
                self.server.failures -= 1
                self.server.failed += 1
                return self._error(503)
            if url.path.startswith("/batch/"):
                return self._batch(body)
            match = re.fullmatch(
                r"/(upload/|download/)?storage/v1/b/([^/]+)(/storageLayout|/o(?:/(.*))?)?", url.path
            )
            if not match:
                return self._error(404)
            kind, bucket, rest, name = match.groups()
            if bucket in self.server.forbidden:
                return self._error(403)
            if kind == "upload/":
                return self._upload(bucket, query, body)
            if not rest or rest == "/storageLayout":
                return self._json({"kind": "storage#bucket", "id": bucket, "name": bucket})
            if name is None:
                return self._list(bucket, query)
            return self._object(bucket, name, query)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _object(self, bucket, name, query):
        if match := re.fullmatch(r"(.*)/(copy|move|rewrite)To/(?:b/([^/]+)/)?o/(.*)", name):
            source, target = (urllib.parse.unquote(match[i]) for i in (1, 4))
            if (bucket, source) not in self.server.objects:
                return self._error(404)
            data = self.server.objects[bucket, source]
            made = self.server.put(match[3] or bucket, target, data)
            if match[2] == "move":
                del self.server.objects[bucket, source]
            whole = {"done": True, "resource": made, "objectSize": made["size"]}
            whole["totalBytesRewritten"] = made["size"]
            return self._json(whole if match[2] == "rewrite" else made)
        name = urllib.parse.unquote(name)
        if (bucket, name) not in self.server.objects:
            return self._error(404)
        if self.command == "DELETE":
            wanted = query.get("ifGenerationMatch", self.server.generations[bucket, name])
            if int(wanted) != self.server.generations[bucket, name]:
                return self._error(412)
            del self.server.objects[bucket, name]
            return self._reply(204)
        if query.get("alt") != "media":
            return self._json(self.server.about(bucket, name))
        data = self.server.objects[bucket, name]
        headers = {"X-Goog-Generation": str(self.server.generations[bucket, name])}
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self._error(416)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._reply(206, data[first : last + 1], headers)
        return self._reply(200, data, headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        low, high = query.get("startOffset", ""), query.get("endOffset", "")
        items, folders = [], set()
        for its_bucket, name in sorted(self.server.objects):
            outside = name < low or (high and name >= high)
            if its_bucket != bucket or not name.startswith(prefix) or outside:
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders.add(f"{prefix}{inner}{delimiter}")
            else:
                items.append(self.server.about(bucket, name))
        self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _upload(self, bucket, query, body):
        kind = query.get("uploadType")
        if self.command == "POST" and kind == "media":
            return self._store(bucket, query["name"], body, query)
        if self.command == "POST" and kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
            parts = [part.lstrip(b"\r\n") for part in body.split(b"--" + mark.encode())[1:3]]
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            data = re.sub(rb"\r?\n\Z", b"", data)
            name = json.loads(about).get("name") or query["name"]
            return self._store(bucket, name, data, query)
        if "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = str(len(self.server.uploads))
            self.server.uploads[key] = (bucket, name, bytearray(), query)
            where = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={key}"
            return self._reply(200, headers={"Location": where})
        bucket, name, so_far, query = self.server.uploads[query["upload_id"]]
        so_far += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self._reply(308, headers={"Range": f"bytes=0-{len(so_far) - 1}"})
        self._store(bucket, name, so_far, query)

    def _store(self, bucket, name, data, query):
        wanted = query.get("ifGenerationMatch")
        exists = (bucket, name) in self.server.objects
        now = self.server.generations[bucket, name] if exists else 0
        if wanted is not None and int(wanted) != now:
            return self._error(412)
        self._json(self.server.put(bucket, name, data))

    def _batch(self, body):
        """Deletions, many in one request."""
        answers = []
        for part in re.finditer(
            rb"Content-ID:\s*<?([^>\r\n]+)>?.*?DELETE (\S+)", body, re.S | re.I
        ):
            path = urllib.parse.urlsplit(part[2].decode()).path
            bucket, name = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.*)", path).groups()
            found = self.server.objects.pop((bucket, urllib.parse.unquote(name)), None)
            code = 404 if found is None else 204
            answers.append(
                "--part\r\nContent-Type: application/http\r\nContent-ID: <response-"
                f"{part[1].decode()}>\r\n\r\nHTTP/1.1 {code} x\r\n\r\n{{}}\r\n"
            )
        whole = ("".join(answers) + "--part--\r\n").encode()
        self._reply(200, whole, {"Content-Type": "multipart/mixed; boundary=part"})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _json(self, content, code=200):
        self._reply(code, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, code):
        self._json({"error": {"code": code, "message": f"fake {code}"}}, code)

    def _reply(self, code, body=b"", headers=None):
        if self._answer is None:
            self.close_connection = True
            return
        if self._answer:
            code, body, headers = self._answer, b"", None
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def environment(server: Server) -> dict[str, str]:
    """Where the libraries look for Google's storage."""
    return {
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "STORAGE_EMULATOR_HOST": server.url,
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def serve() -> Server:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
