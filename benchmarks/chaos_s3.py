"""An object store on loopback that fails and stalls: a proxy before moto's S3 server.

moto is a development tool: `pip install 'moto[server]'`, so that `moto_server` is on the path.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "chaos"
_PER_REQUEST = (
    "connection",
    "transfer-encoding",
    "content-length",
    "date",
    "server",
    "expect",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and spoils some of them while the file `orders` says so.

    `orders` holds {"fail": share of 500s, "lose": share of answers that never come back although
    the request was done, "stall": share of requests that wait, "seconds": so long}.
    """

    daemon_threads = True

    def __init__(self, port: int, behind: int, orders: Path, seed: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behind, self.orders, self.moment = behind, orders, random.Random(seed)
        self.spoilt = 0

    def spoils(self) -> tuple[str, float]:
        """What to do to the next request, and for how long."""
        try:
            order = json.loads(self.orders.read_text())
        except (OSError, ValueError):
            return "", 0.0
        drawn = self.moment.random()
        for kind in ("fail", "lose", "stall"):
            drawn -= order.get(kind, 0.0)
            if drawn < 0:
                self.spoilt += 1
                self.orders.with_suffix(".count").write_text(str(self.spoilt))
                return kind, order.get("seconds", 5.0)
        return "", 0.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *rest: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self) -> None:
        body = self._body()
        kind, seconds = self.server.spoils()
        if kind == "fail":
            self.close_connection = True
            self.send_response(500)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        if kind == "stall":
            time.sleep(seconds)
        there = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in _PER_REQUEST
        }
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        content = answer.read()
        if kind == "lose":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _PER_REQUEST:
                self.send_header(key, value)
        length = len(content)
        if self.command == "HEAD":
            length = int(answer.getheader("content-length") or 0)
        self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815


class Store:
    """moto's server and the proxy, in processes of their own."""

    def __init__(self, orders: Path, seed: int) -> None:
        behind, self.port = free_port(), free_port()
        self._moto = subprocess.Popen(
            ["moto_server", "-H", "127.0.0.1", "-p", str(behind)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        give_up_at = time.monotonic() + 60
        while not self._has_bucket(behind):
            assert time.monotonic() < give_up_at, "moto_server did not start"
            time.sleep(0.1)
        self._proxy = os.fork()
        if self._proxy == 0:
            proxy = Proxy(self.port, behind, orders, seed)
            threading.Thread(target=proxy.serve_forever).start()
            threading.Event().wait()

    def _has_bucket(self, port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(
                "PUT", f"/{BUCKET}", headers={"host": "s3.amazonaws.com"}
            )
            return connection.getresponse().status == 200
        except OSError:
            return False

    @property
    def uri(self) -> str:
        place = f"127.0.0.1:{self.port}"
        return f"s3://{BUCKET}/runs?endpoint_override={place}&scheme=http"

    def close(self) -> None:
        self._moto.kill()
        self._moto.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._proxy, 9)
            os.waitpid(self._proxy, 0)
