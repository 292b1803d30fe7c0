"""Forks Ray's workers from a process that has torch, timm and our packages imported.

Ray starts a process for each trial that it places, and its imports take three seconds of processor
time; a sweep whose driver is killed two hundred times, or a test suite with forty sweeps, would do
little else. So `chaos.py` and the tests give Ray a command for its workers that asks here for one.
Ray itself is not imported here: it reads a worker's environment while it is imported. What is run
from there on is Ray's own worker, in a process of its own.

python benchmarks/nursery.py SOCKET
"""

import functools
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

_PRELOADED = (
    "numpy",
    "pandas",
    "pyarrow.fs",
    "requests",
    "sweeps.trial.execute",
)

CLIENT = """
import os, socket, sys
here = socket.socket(socket.AF_UNIX)
here.connect(os.environ["RAY_NURSERY"])
fields = [*sys.argv[1:], "", *(f"{k}={v}" for k, v in os.environ.items())]
socket.send_fds(here, ["\\0".join(fields).encode() + b"\\1"], [1, 2])
while here.recv(1):
    pass
"""
"""Ray's command for a worker: it asks here for one, and ends when that ends."""


class Nursery:
    """The process that forks Ray's workers; its files are in `folder`. It ends with this one."""

    def __init__(self, folder: Path) -> None:
        self.path, self.client = folder / "nursery", folder / "client.py"
        self.client.write_text(CLIENT)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the nursery did not start"

    def use(self) -> None:
        """Let whatever Ray this process starts ask there for its workers."""
        use_nursery(self.path, self.client)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def use_nursery(path: Path | str, client: Path | str) -> None:
    """Let whatever Ray this process starts ask a nursery of another process for its workers."""
    from ray._private.parameter import RayParams

    os.environ["RAY_NURSERY"] = str(path)
    RayParams.__init__ = functools.partialmethod(  # type: ignore[method-assign]
        RayParams.__init__, setup_worker_path=str(client)
    )


def _serve(server: socket.socket) -> None:
    asking, _ = server.accept()
    text, fds, *_ = socket.recv_fds(asking, 2**20, 2)
    while text and not text.endswith(b"\1"):
        text += asking.recv(2**20)
    if text and os.fork() == 0:
        server.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        for here, there in zip(fds, (1, 2), strict=True):
            os.dup2(here, there)
            os.close(here)
        # `asking` stays open as long as this process lives, which its client waits for
        _become_worker(text[:-1].decode().split("\0"))
        os._exit(0)
    for fd in fds:
        os.close(fd)
    asking.close()


def _become_worker(fields: list[str]) -> None:
    """Run Ray's worker, with these arguments and this environment."""
    split = fields.index("")
    os.environ.clear()
    os.environ.update(field.split("=", 1) for field in fields[split + 1 :])
    ours = ("--serialized-runtime-env-context", "--language")
    arguments = [each for each in fields[:split] if not each.startswith(ours)]
    while not arguments[0].endswith(".py"):  # options of the interpreter
        arguments.pop(0)
    sys.argv = arguments
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    path = Path(sys.argv[1])
    for name in _PRELOADED:
        importlib.import_module(name)
    from trainers.torchvision_internals import declare_missing_operators

    declare_missing_operators()
    importlib.import_module("torchmetrics.functional.classification")
    assert "ray" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(64)
    print("ready", flush=True)
    while server in select.select([server, sys.stdin], [], [])[0]:
        _serve(server)


if __name__ == "__main__":
    main()
