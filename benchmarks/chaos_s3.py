"""An object store on loopback that fails and stalls: as much of S3 as Arrow's client asks for."""

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "chaos"
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


class Server(ThreadingHTTPServer):
    """Objects in memory. Some requests are spoilt while the file `orders` says so.

    `orders` holds {"fail": share of 500s, "lose": share of requests that are done and never
    answered, "stall": share of requests that wait, "seconds": so long}.
    """

    daemon_threads = True

    def __init__(self, port: int, orders: Path, seed: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.orders, self.moment = orders, random.Random(seed)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}

    def spoils(self) -> tuple[str, float]:
        """What happens to the next request, and for how long."""
        try:
            order = json.loads(self.orders.read_text())
        except (OSError, ValueError):
            return "", 0.0
        drawn = self.moment.random()
        for kind in ("fail", "lose", "stall"):
            drawn -= order.get(kind, 0.0)
            if drawn < 0:
                return kind, order["seconds"]
        return "", 0.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *rest: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        body = self._body()
        kind, seconds = self.server.spoils()
        if kind == "fail":
            self._answer(500, b"")
            return
        if kind == "stall":
            time.sleep(seconds)
        self._is_lost = kind == "lose"
        split = urlsplit(self.path)
        key = unquote(split.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        query = {k: v[0] for k, v in parse_qs(split.query, True).items()}
        getattr(self, f"_{self.command.lower()}")(key, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            raw = b"".join(parts)
        else:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        coding = self.headers.get("content-encoding", "")
        return _unframed(raw) if "aws-chunked" in coding else raw

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        if getattr(self, "_is_lost", False):
            self._is_lost, self.close_connection = False, True
            return
        self.send_response(status)
        for key, value in {"content_length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _xml(self, text: str) -> None:
        self._answer(200, f"{_XML}{text}".encode(), content_type="application/xml")

    def _head(self, key: str, query: dict[str, str], body: bytes) -> None:
        found = b"" if not key else self.server.objects.get(key)
        if found is None:
            self._answer(404, b"")
            return
        facts = {"etag": _etag(found), "last_modified": _DATE}
        self._answer(200, b"", **facts, content_length=str(len(found)))

    def _get(self, key: str, query: dict[str, str], body: bytes) -> None:
        if not key:
            self._list(query)
            return
        found = self.server.objects.get(key)
        if found is None:
            said = (
                f"{_XML}<Error><Code>NoSuchKey</Code><Key>{escape(key)}</Key></Error>"
            )
            self._answer(404, said.encode(), content_type="application/xml")
            return
        facts = {"etag": _etag(found), "last_modified": _DATE}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted is None:
            self._answer(200, found, **facts)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(found) - 1), len(found) - 1)
        facts["content_range"] = f"bytes {first}-{last}/{len(found)}"
        self._answer(206, found[first : last + 1], **facts)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys, folders = [], dict[str, None]()
        for key in sorted(self.server.objects):
            if not key.startswith(prefix):
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter or "\0")
            if delimiter and mark:
                folders[f"{prefix}{head}{mark}"] = None
            else:
                keys.append(key)
        keys = keys[: int(query.get("max-keys", 10_000))]
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        ]
        rows += [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in folders
        ]
        count = len(keys) + len(folders)
        self._xml(
            f"<ListBucketResult {_SPACE}><Name>{BUCKET}</Name><KeyCount>{count}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        )

    def _put(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            parts = self.server.parts.setdefault(query["uploadId"], {})
            parts[int(query["partNumber"])] = body
        elif key:
            self.server.objects[key] = body
        self._answer(200, b"", etag=_etag(body))

    def _post(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            name = f"{self.server.moment.getrandbits(64):x}"
            self._xml(
                f"<InitiateMultipartUploadResult {_SPACE}><Bucket>{BUCKET}</Bucket>"
                f"<Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        elif "uploadId" in query:
            parts = self.server.parts.get(query["uploadId"], {})
            whole = b"".join(parts[number] for number in sorted(parts))
            self.server.objects[key] = whole
            self._xml(
                f"<CompleteMultipartUploadResult {_SPACE}><Bucket>{BUCKET}</Bucket>"
                f"<Key>{escape(key)}</Key><ETag>{_etag(whole)}</ETag>"
                "</CompleteMultipartUploadResult>"
            )
        else:  # delete several
            for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.server.objects.pop(name, None)
            self._xml(f"<DeleteResult {_SPACE}></DeleteResult>")

    def _delete(self, key: str, query: dict[str, str], body: bytes) -> None:
        self.server.objects.pop(key, None)
        self._answer(204, b"")


def _unframed(raw: bytes) -> bytes:
    """The content of AWS's own framing: a size in hexadecimal, then so many bytes."""
    parts = []
    while raw:
        head, _, raw = raw.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            break
        parts.append(raw[:size])
        raw = raw[size + 2 :]
    return b"".join(parts)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class Store:
    """The server in a process of its own."""

    def __init__(self, orders: Path, seed: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = int(server.getsockname()[1])
        self._pid = os.fork()
        if self._pid == 0:
            server = Server(self.port, orders, seed)
            threading.Thread(target=server.serve_forever).start()
            threading.Event().wait()

    @property
    def uri(self) -> str:
        place = f"127.0.0.1:{self.port}"
        return f"s3://{BUCKET}/runs?endpoint_override={place}&scheme=http"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
