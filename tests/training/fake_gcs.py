"""A bucket on this machine: the part of Cloud Storage's JSON API that gcsfs, tensorstore and google-cloud-storage use.

Objects are in memory and have generations; writes and deletes check preconditions; lists have prefixes, offsets and
pages; folders cannot be renamed and objects cannot be appended to.
"""

import email
import json
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 7  # small, so that lists have more than one page
LIST = {"kind": "storage#objects"}


class FakeBucket(ThreadingHTTPServer):
    """A server of one bucket named "bucket" on a free port, in a thread; use as a context.

    Attributes:
      objects: (content, generation) by name.
      written: the name of each write, in order.
      before_write: called with an object's name before each write; returns a status that replaces the write, or None.
      closed: True forbids every read.
    """

    daemon_threads = True
    closed = False

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.written: list[str] = []
        self.before_write: Callable[[str], int | None] = lambda name: None
        self.lock = threading.Lock()
        self.uploads: dict[str, tuple[str, bytes]] = {}  # resumable: name and received bytes
        self._generation = 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables that direct the three libraries to this server."""
        url = f"http://localhost:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore looks for credentials elsewhere
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs would query the bucket's type by gRPC in the cloud
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignores clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def put(self, name: str, content: bytes, expected: str | None = None) -> dict | None:
        """Writes an object; returns None if its generation is not `expected` ("0": the object must not exist)."""
        with self.lock:
            if not self.matches(name, expected):
                return None
            self._generation += 1
            self.objects[name] = content, self._generation
            self.written.append(name)
            return self.resource(name)

    def matches(self, name: str, expected: str | None) -> bool:
        """Returns True if the object has the generation of a precondition."""
        return expected is None or int(expected) == self.objects.get(name, (b"", 0))[1]

    def resource(self, name: str) -> dict:
        """Returns an object's metadata."""
        content, generation = self.objects[name]
        described = {"kind": "storage#object", "bucket": "bucket", "name": name, "size": str(len(content))}
        return described | {"generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer: a second one waits 40 ms for an acknowledgement
    server: FakeBucket

    def log_message(self, *unused):
        pass

    def do_GET(self):
        if self.server.closed:
            self.answer(403)
        elif self.parts is None:
            self.answer(200, {"kind": "storage#bucket", "name": "bucket"})
        elif self.parts == "":
            self.answer(200, self.listed())
        elif self.parts not in self.server.objects:
            self.answer(404)
        elif self.query.get("alt") == "media":
            self.media()
        else:
            self.answer(200, self.server.resource(self.parts))

    def do_POST(self):
        body = self.body()
        moved = re.fullmatch(r"(.+)/(moveTo|rewriteTo/b/bucket)/o/(.+)", self.raw or "")
        if moved:
            source, verb, target = unquote(moved[1]), moved[2], unquote(moved[3])
            if source not in self.server.objects:
                self.answer(404)
                return
            resource = self.server.put(target, self.server.objects[source][0])
            if verb == "moveTo":
                del self.server.objects[source]
            self.answer(200, resource if verb == "moveTo" else {"done": True, "resource": resource})
        elif self.query["uploadType"] == "multipart":
            message = email.message_from_bytes(
                b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body
            )
            described, content = message.get_payload()
            self.write(json.loads(described.get_payload())["name"], content.get_payload(decode=True))
        elif self.query["uploadType"] == "resumable" and "upload_id" not in self.query:
            upload = str(len(self.server.uploads))
            self.server.uploads[upload] = json.loads(body)["name"], b""
            where = f"http://{self.headers['Host']}{self.path}&upload_id={upload}"
            self.answer(200, {}, {"Location": where})
        elif self.query["uploadType"] == "resumable":
            self.resume(body)
        else:
            self.write(self.query["name"], body)

    do_PUT = do_POST

    def do_DELETE(self):
        with self.server.lock:
            if self.parts not in self.server.objects:
                self.answer(404)
            elif not self.server.matches(self.parts, self.query.get("ifGenerationMatch")):
                self.answer(412)
            else:
                del self.server.objects[self.parts]
                self.answer(204)

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def raw(self) -> str | None:
        """The path after the bucket: None for the bucket itself, "" for its list, else an object, quoted."""
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/bucket(?:/o(?:/(.*))?)?", urlsplit(self.path).path)
        if found is None:
            return "no such bucket"
        return None if not urlsplit(self.path).path.partition("/b/bucket")[2] else found[1] or ""

    @property
    def parts(self) -> str | None:
        return None if self.raw is None else unquote(self.raw)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def write(self, name: str, content: bytes):
        refused = self.server.before_write(name)
        resource = None if refused else self.server.put(name, content, self.query.get("ifGenerationMatch"))
        self.answer(200 if resource else refused or 412, resource or {})

    def resume(self, body: bytes):
        name, begun = self.server.uploads[self.query["upload_id"]]
        begun += body
        self.server.uploads[self.query["upload_id"]] = name, begun
        if self.headers["Content-Range"].endswith("/*"):
            self.answer(308, {}, {"Range": f"bytes=0-{len(begun) - 1}"})
        else:
            self.write(name, begun)

    def listed(self) -> dict:
        query, items, prefixes = self.query, [], []
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, end = max(query.get("startOffset", ""), query.get("pageToken", "")), query.get("endOffset")
        limit = min(int(query.get("maxResults", PAGE)), PAGE)
        with self.server.lock:
            for name in sorted(self.server.objects):
                if not name.startswith(prefix) or name < first or (end and name >= end):
                    continue
                folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found and prefix + folder + found in prefixes:
                    continue
                if len(items) + len(prefixes) == limit:
                    return LIST | {"items": items, "prefixes": prefixes, "nextPageToken": name}
                if found:
                    prefixes.append(prefix + folder + found)
                else:
                    items.append(self.server.resource(name))
        return LIST | {"items": items, "prefixes": prefixes}

    def media(self):
        content, generation = self.server.objects[self.parts]
        if self.query.get("ifGenerationNotMatch") == str(generation):
            self.answer(304)
            return
        headers = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.answer(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first >= len(content):
            self.answer(416)
        else:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(206, content[first : last + 1], headers)

    def answer(self, status: int, content: dict | bytes = b"", headers: dict[str, str] | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.end_headers()
        self.wfile.write(body)
