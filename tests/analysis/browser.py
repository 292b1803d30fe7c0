"""One Chromium for all tests, spoken to over the pipe of its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_AS_3_AND_4 = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for number, fd in enumerate(pipes, start=3):
    os.dup2(fd, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
_HINT = "willReadFrequently"
"""Part of a hint about speed that Plotly's own use of a canvas causes."""


class Page:
    """A page whose plots are all drawn; `console` is what it wrote there, but for hints."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session
        self.console: list[str] = []

    def run(self, script: str) -> Any:
        """The JSON value that the body of a function gives."""
        answer = self.browser.call(
            "Runtime.evaluate",
            self.session,
            expression=f"(() => {{ {script} }})()",
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def dom(self) -> str:
        """The page as the browser holds it."""
        return str(self.run("return document.documentElement.outerHTML"))

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"not within {seconds} s: {condition}"
            time.sleep(0.02)

    def close(self) -> None:
        """Forget the page."""
        self.browser.call("Target.closeTarget", targetId=self.target)


class Browser:
    """A running Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        self._buffer = b""
        self._numbers = itertools.count(1)
        self.pages: dict[str, Page] = {}
        # the protocol's pipes are the program's descriptors 3 and 4
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _AS_3_AND_4,
                str(commands),
                str(answers),
                program,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._send("Browser.close", None, {})
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def open(self, place: Path | str, width: int = 1280, height: int = 900) -> Page:
        """A page of a file or an address, once it says that all is drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, target, session["sessionId"])
        self.pages[page.session] = page
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable", page.session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            page.session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Page.navigate",
            page.session,
            url=place if isinstance(place, str) else place.as_uri(),
        )
        page.wait("document.documentElement?.dataset.ready")
        return page

    def call(self, method: str, session: str | None = None, **given: Any) -> Any:
        """The result of a command of the protocol."""
        number = self._send(method, session, given)
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._heard(message)

    def _send(self, method: str, session: str | None, given: dict[str, Any]) -> int:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": given}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        return number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            assert ready, "the browser says nothing"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _heard(self, message: dict[str, Any]) -> None:
        """Keep what a page writes to its console."""
        texts: dict[str, Callable[[Any], str]] = {
            "Runtime.consoleAPICalled": lambda p: json.dumps(p["args"]),
            "Runtime.exceptionThrown": lambda p: json.dumps(p["exceptionDetails"]),
            "Log.entryAdded": lambda p: str(p["entry"]["text"]),
        }
        page = self.pages.get(message.get("sessionId", ""))
        if page is not None and message.get("method") in texts:
            text = texts[message["method"]](message["params"])
            if _HINT not in text:
                page.console.append(text)
