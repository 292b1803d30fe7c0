"""Forks Ray's workers from a process that has torch, timm and our packages imported.

Ray starts a process for each trial that it places, and its imports take three seconds of processor
time; a sweep whose driver is killed two hundred times, or a test suite with forty sweeps, would do
little else. So `chaos.py` and the tests give Ray a command for its workers that asks here for one.
Ray reads its own variables of a worker's environment while it is imported, among them which raylet
it belongs to. So it is imported in a process for each set of them that is asked for, a mother, of
which the workers are forked. What is run from there on is Ray's own worker, in a process of its
own.

python benchmarks/nursery.py SOCKET
"""

import contextlib
import functools
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

_PRELOADED = (
    "numpy",
    "pandas",
    "pyarrow.fs",
    "requests",
    "sweeps.trial.execute",
)
_OF_RAY = (
    "ray.train.torch",
    "ray.tune",
    "ray._private.workers.default_worker",
    "sweeps.trial.in_tune",
    "sweeps.trial.workers",
)
_READ_BY_RAY = ("RAY_", "TUNE_")
_MOST_MOTHERS = 4

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


@contextlib.contextmanager
def without_drawn_ids() -> Iterator[None]:
    """What is imported inside draws no random number of Ray's.

    Ray draws an id for each class of actors that is defined, several while Tune is imported. Its
    generator is seeded by the first draw; forks of a process that has drawn draw the same ids, and
    the second one that asks for room in the object store dies of that.
    """
    import ray.actor

    real = ray.actor.ActorClassID

    class FromTheSystem:
        @staticmethod
        def from_random() -> object:
            return real(os.urandom(real.size()))

    ray.actor.ActorClassID = FromTheSystem
    try:
        yield
    finally:
        ray.actor.ActorClassID = real


class _Mothers:
    """Processes that have Ray imported, and fork its workers."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, socket.socket] = OrderedDict()

    def pass_on(self, server: socket.socket) -> None:
        """Let the right one, which may have to be started, fork the worker that is asked for."""
        asking, _ = server.accept()
        text, fds, *_ = socket.recv_fds(asking, 2**20, 2)
        while text and not text.endswith(b"\1"):
            text += asking.recv(2**20)
        if text:
            _, environment = _parted(text[:-1].decode())
            mother = self._of(environment, server, asking)
            socket.send_fds(mother, [text[:-1]], [asking.fileno(), *fds])
        for fd in fds:
            os.close(fd)
        asking.close()

    def _of(self, environment: dict[str, str], *ours: socket.socket) -> socket.socket:
        """The one for that environment; `ours` it shall not keep."""
        # among them the job: a worker of a job that has ended would end at once
        read = sorted(k for k in environment if k.startswith(_READ_BY_RAY))
        key = repr([(k, environment[k]) for k in read])
        if key not in self._found:
            while len(self._found) >= _MOST_MOTHERS:
                self._found.popitem(last=False)[1].close()  # it ends, its workers go on
            self._found[key] = self._started(environment, ours)
        self._found.move_to_end(key)
        return self._found[key]

    def _started(
        self, environment: dict[str, str], ours: tuple[socket.socket, ...]
    ) -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            for each in (*ours, here, *self._found.values()):
                each.close()
            os.environ.clear()
            os.environ.update(environment)
            with without_drawn_ids():
                for name in _OF_RAY:
                    importlib.import_module(name)
            gc.freeze()  # a collection in a worker would copy what it shares
            _fork_workers(there)
            os._exit(0)
        there.close()
        return here


def _parted(text: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a worker."""
    fields = text.split("\0")
    split = fields.index("")
    pairs = [field.partition("=") for field in fields[split + 1 :]]
    return fields[:split], {name: value for name, _, value in pairs}


def _fork_workers(asked: socket.socket) -> None:
    """A worker for each message, until nobody can send one."""
    while True:
        text, fds, *_ = socket.recv_fds(asked, 2**20, 3)
        if not text:
            return
        if os.fork() == 0:
            asked.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            # the first stays open as long as this process lives, which its client waits for
            for here, there in zip(fds[1:], (1, 2), strict=True):
                os.dup2(here, there)
                os.close(here)
            arguments, environment = _parted(text.decode())
            os.environ.clear()
            os.environ.update(environment)
            _become_worker(arguments)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _become_worker(arguments: list[str]) -> None:
    """Run Ray's worker, with these arguments."""
    ours = ("--serialized-runtime-env-context", "--language")
    arguments = [each for each in arguments if not each.startswith(ours)]
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
    mothers = _Mothers()
    while server in select.select([server, sys.stdin], [], [])[0]:
        mothers.pass_on(server)


if __name__ == "__main__":
    main()
