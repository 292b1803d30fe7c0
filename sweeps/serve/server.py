"""The live page's server: the standard library's, one thread for each reader.

GET  /                       the runs; the page where there is only one
GET  /run/NAME/              the page
GET  /run/NAME/data          its content as JSON, with an ETag
GET  /run/NAME/events        server-sent events: what runs now, whenever it has changed
GET  /run/NAME/configuration/TRIAL
GET  /run/NAME/predictions/TRIAL
POST /run/NAME/stop, resume, try, note
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from analysis.notes import LONGEST_NOTE, LONGEST_TAG, MOST_TAGS
from analysis.report.html import element, join
from sweeps.run.driving import is_driven, request_stop, withdraw_stop
from sweeps.run.notes import write_note
from sweeps.run.requests import ask_for
from sweeps.serve.guard import COOKIE, Guard
from sweeps.serve.live import LiveRun

MOST_BYTES = 100_000
"""A wish is no longer than this."""
SECONDS_BETWEEN_BEATS = 15.0
"""Something is sent at least so often, so that a reader who has gone is noticed."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"


class Refusal(Exception):
    """A request that is not answered as wished."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class LiveServer(ThreadingHTTPServer):
    """Serves some runs.

    Attributes:
        runs: by the name that stands in their addresses.
        guard: who may look.
    """

    daemon_threads = True

    def __init__(
        self, place: tuple[str, int], runs: Sequence[LiveRun], guard: Guard
    ) -> None:
        self.runs = {run.name: run for run in runs}
        self.guard = guard
        super().__init__(place, _Handler)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        token = "" if self.guard.token is None else f"?token={self.guard.token}"
        return f"http://{name}:{port}/{token}"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    protocol_version = "HTTP/1.1"
    timeout = 120

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log of each look would hide the address that was printed."""

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        """Answer, or say what was refused."""
        try:
            url = urlsplit(self.path)
            given = parse_qs(url.query).get("token", [None])[0]
            said = self.server.guard.refusal(dict(self.headers.items()), given)
            if said is not None:
                raise Refusal(HTTPStatus.FORBIDDEN, said)
            if given is not None:
                self._keep_token(given, url.path)
                return
            answer([unquote(part) for part in url.path.split("/")[1:]])
        except Refusal as error:
            self._json({"error": str(error)}, error.status)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader has gone
        except (ValueError, OSError) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _keep_token(self, token: str, path: str) -> None:
        """The token moves from the address, which is seen and copied, into a cookie."""
        self.send_response(HTTPStatus.SEE_OTHER)
        kept = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
        self.send_header("Set-Cookie", kept)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _get(self, parts: list[str]) -> None:
        runs = self.server.runs
        if parts == [""]:
            if len(runs) == 1:
                self._moved(f"/run/{quote(next(iter(runs)), safe='')}/")
                return
            self._send(_list_of(runs).encode(), "text/html; charset=utf-8")
            return
        run = self._run(parts)
        match parts[2:]:
            case [""]:
                secret = self.server.guard.secret
                self._send(run.page(secret), "text/html; charset=utf-8")
            case ["data"]:
                self._data(run)
            case ["events"]:
                self._events(run)
            case ["configuration", trial]:
                self._json({"text": run.configuration(trial)})
            case ["predictions", trial]:
                self._json(run.predictions(trial))
            case []:
                self._moved(f"/run/{quote(run.name, safe='')}/")
            case _:
                raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _run(self, parts: list[str]) -> LiveRun:
        found = self.server.runs.get(parts[1]) if len(parts) > 1 else None
        if parts[0] != "run" or found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        return found

    def _data(self, run: LiveRun) -> None:
        edition = run.edition()
        tag = f'"{edition.version}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        answer, packed = edition.answer, "gzip" in self._accepted()
        if not packed:
            answer = gzip.decompress(answer)
        more = {"ETag": tag} | ({"Content-Encoding": "gzip"} if packed else {})
        self._send(answer, "application/json", more, pack=False)

    def _events(self, run: LiveRun) -> None:
        """What runs now, as long as the reader listens."""
        run.edition()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        before = b""
        while True:
            said = run.heard(before, SECONDS_BETWEEN_BEATS)
            self.wfile.write(b"data: " + said + b"\n\n" if said != before else b":\n\n")
            self.wfile.flush()
            before = said

    def _post(self, parts: list[str]) -> None:
        said = self.server.guard.refusal_of_wish(dict(self.headers.items()))
        if said is not None:
            raise Refusal(HTTPStatus.FORBIDDEN, said)
        content = self._content()
        run = self._run(parts)
        if not run.is_writable:
            raise Refusal(
                HTTPStatus.CONFLICT,
                "this is a copy of a run in a store; its driver does not see what is asked here",
            )
        match parts[2:]:
            case ["note"]:
                _write_note(run, content)
            case ["stop" | "resume" | "try" as wish]:
                _wish(run, wish, content)
            case _:
                raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._json(run.now())

    def _content(self) -> Mapping[str, Any]:
        """The JSON object that was sent."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            raise Refusal(HTTPStatus.BAD_REQUEST, "too long, or of no length")
        content = json.loads(self.rfile.read(int(length)))
        if not isinstance(content, dict):
            raise ValueError("a wish is a JSON object")
        return content

    def _accepted(self) -> str:
        return str(self.headers.get("Accept-Encoding", ""))

    def _moved(self, path: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status=status)

    def _send(
        self,
        content: bytes,
        kind: str,
        more: Mapping[str, str] | None = None,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        pack: bool = True,
    ) -> None:
        headers = {"Content-Type": kind, "X-Content-Type-Options": "nosniff"}
        headers |= {"Cache-Control": "no-cache", "X-Frame-Options": "DENY"}
        headers |= {"Referrer-Policy": "no-referrer"}
        if pack and len(content) > 10_000 and "gzip" in self._accepted():
            content = gzip.compress(content, compresslevel=3)
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in (headers | dict(more or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _wish(run: LiveRun, wish: str, content: Mapping[str, Any]) -> None:
    """Write down what the driver shall do. Raises ValueError where there is none."""
    if not is_driven(run.folder):
        raise ValueError(f"nobody drives this run now; `sweeps resume {run.folder}`")
    if wish == "stop":
        request_stop(run.folder)
    elif wish == "resume":
        withdraw_stop(run.folder)
    else:
        ask_for(run.folder, content)


def _write_note(run: LiveRun, content: Mapping[str, Any]) -> None:
    text, tags = content.get("note", ""), content.get("tags", [])
    is_fit = isinstance(text, str) and len(text) <= LONGEST_NOTE
    if not is_fit or not isinstance(tags, list) or len(tags) > MOST_TAGS:
        raise ValueError(
            f"a note has at most {LONGEST_NOTE} characters and {MOST_TAGS} tags"
        )
    if not all(isinstance(tag, str) and len(tag) <= LONGEST_TAG for tag in tags):
        raise ValueError(f"a tag is a text of at most {LONGEST_TAG} characters")
    write_note(run.folder, str(content.get("trial", "")), text, tags)


def _list_of(runs: Mapping[str, LiveRun]) -> str:
    """The page of several runs."""
    entries = []
    for name, run in runs.items():
        run.look()
        link = element("a", run.heading, href=f"/run/{quote(name, safe='')}/")
        entries.append(element("li", link, " ", element("small", run.now()["line"])))
    style = (
        "body{font:16px/1.6 system-ui,sans-serif;max-width:50em;margin:3em auto;padding:0 1em;"
        "color-scheme:light dark}small{display:block;opacity:.7}"
    )
    policy = element("meta", http_equiv="Content-Security-Policy", content=_POLICY)
    head = join([policy, element("title", "Sweeps"), element("style", style)])
    body = join([element("h1", "Sweeps"), element("ul", *entries)])
    html = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{html}"
