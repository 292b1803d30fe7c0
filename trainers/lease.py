"""One owner at a time: a small file that all processes see, on any node.

The file names its owner (host, process, token) and carries a heartbeat that the owner raises
every few seconds. A lease whose owner died is taken over: at once where the owner ran on this
host and its process is gone, otherwise after the heartbeat has stood still for a while.

The stage cache waits for a lease and gives up when somebody else has published the result; the
driver of a sweep does not wait: a living owner is an error. Both use the same two methods.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainers.files import read_json, write_atomic
from trainers.processes import process_exists

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_LATE_SECONDS = 1.0
"""A process that looks later than it meant to by more than this was itself stopped meanwhile."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease.

    Attributes:
        host, pid: where the owner runs.
        token: unique to this one acquisition.
        since: UTC time of the acquisition, ISO 8601.
        beat: heartbeats so far.
        note: what the owner tells those who look.
    """

    host: str
    pid: int
    token: str
    since: str = ""
    beat: int = 0
    note: str = ""

    @classmethod
    def new(cls, note: str = "") -> "Owner":
        """This process, from now on."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        host, token = socket.gethostname(), uuid.uuid4().hex
        return cls(host, os.getpid(), token, now, note=note)

    def is_gone(self) -> bool:
        """Whether the owner ran on this host and its process no longer exists."""
        here = self.host == socket.gethostname() and self.pid != os.getpid()
        return here and not process_exists(self.pid)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class LeaseHeldError(Exception):
    """Another process holds the lease and is alive.

    Attributes:
        path: the lease's file.
        owner: who holds it.
    """

    def __init__(self, path: Path, owner: Owner) -> None:
        super().__init__(
            f"{path} is held by process {owner.pid} on {owner.host}, since {owner.since}"
        )
        self.path, self.owner = path, owner


class Lease:
    """The lease that the file `path` stands for.

    Args:
        path: must lie where every process that competes for the lease sees it.
        heartbeat_seconds: between two heartbeats of the owner.
        silence_seconds: an owner without a heartbeat for this long is dead. It is measured by
            the clock of the process that waits: clocks of nodes and file servers differ. Time in
            which that process was stopped too (a machine that slept) does not count.
        longest_pause_seconds: between two looks of a process that waits.
        note: what the owner tells those who look.
    """

    def __init__(
        self,
        path: Path,
        *,
        heartbeat_seconds: float = 2.0,
        silence_seconds: float = 30.0,
        longest_pause_seconds: float = _LONGEST_PAUSE_SECONDS,
        note: str = "",
    ) -> None:
        self.path = path
        self.heartbeat_seconds = heartbeat_seconds
        self.silence_seconds = silence_seconds
        self.longest_pause_seconds = longest_pause_seconds
        self.note = note

    def owner(self) -> Owner | None:
        """Who is written in the file, dead or alive; None if there is no whole file."""
        return _owner_of(read_json(self.path))

    def clear(self) -> None:
        """Remove a lease whose owner is dead; nothing to do where there is none.

        Raises:
            LeaseHeldError: the owner is alive.
        """
        with self.held():
            pass

    @contextlib.contextmanager
    def held(self) -> Iterator[Owner]:
        """Hold the lease inside the `with` block. A living owner is not waited for.

        Raises:
            LeaseHeldError: the owner is alive.
        """

        def refuse(owner: Owner) -> None:
            raise LeaseHeldError(self.path, owner)

        owner = self._acquire(on_heartbeat=refuse, unless=lambda: False)
        assert owner is not None
        with self._beating(owner):
            yield owner

    @contextlib.contextmanager
    def held_unless(self, done: Callable[[], bool]) -> Iterator[Owner | None]:
        """Wait until the lease is free, and hold it inside the `with` block.

        Args:
            done: asked while waiting; once it says yes, the lease is no longer wanted, and the
                block runs without it, with None.
        """
        owner = self._acquire(on_heartbeat=lambda owner: None, unless=done)
        if owner is None:
            yield None
            return
        with self._beating(owner):
            yield owner

    def _acquire(
        self, on_heartbeat: Callable[[Owner], None], unless: Callable[[], bool]
    ) -> Owner | None:
        """Create the file, or take it over from a dead owner; None once `unless` holds."""
        me = Owner.new(self.note)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last, looked, pause = self.owner(), time.monotonic(), _FIRST_PAUSE_SECONDS
        silence_seconds = 0.0
        while not unless():
            if self._create(me):
                return me
            seen = self.owner()
            if seen != last:
                if seen is not None and last is not None:
                    on_heartbeat(seen)
                last, silence_seconds = seen, 0.0
            else:
                silence_seconds += min(time.monotonic() - looked, pause + _LATE_SECONDS)
            looked = time.monotonic()
            silent = silence_seconds > self.silence_seconds
            if (silent or (seen is not None and seen.is_gone())) and self._take_over(
                seen, me
            ):
                return me
            time.sleep(pause)
            pause = min(self.longest_pause_seconds, pause * 1.5)
        return None

    def _create(self, me: Owner) -> bool:
        """Write the file where there is none; the file system lets one process succeed."""
        try:
            with open(self.path, "xb") as file:
                file.write(me.to_json())
        except FileExistsError:
            return False
        except PermissionError:
            # Windows says so while another process removes or replaces the file
            if sys.platform != "win32":
                raise
            return False
        return True

    def _take_over(self, dead: Owner | None, me: Owner) -> bool:
        """Replace what a dead owner left, unless somebody else was quicker."""
        with one_at_a_time(self.path.with_name(f".{self.path.name}.lock")):
            if self.owner() != dead:
                return False
            write_atomic(self.path, me.to_json())
            return True

    @contextlib.contextmanager
    def _beating(self, me: Owner) -> Iterator[None]:
        """Raise the heartbeat from a thread inside the block; then remove the file."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(me, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if self._is_mine(me):
                self.path.unlink(missing_ok=True)

    def _beat(self, me: Owner, stop: threading.Event) -> None:
        while not stop.wait(self.heartbeat_seconds):
            if not self._is_mine(me):
                # this process slept for so long that others took it for dead
                log.warning("%s was taken over by %s", self.path, self.owner())
                return
            me = replace(me, beat=me.beat + 1)
            # a full disk is reported by whoever writes results
            with contextlib.suppress(OSError):
                write_atomic(self.path, me.to_json())

    def _is_mine(self, me: Owner) -> bool:
        seen = self.owner()
        return seen is not None and seen.token == me.token


def _owner_of(content: dict[str, Any] | None) -> Owner | None:
    """The owner that a lease file names; None where the content is not a lease's."""
    names = {field.name for field in fields(Owner)}
    try:
        return Owner(**{k: v for k, v in (content or {}).items() if k in names})
    except TypeError:
        return None


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """A lock among the processes of this host, for work that need not be done twice. It does
    nothing where the file system knows no locks: correctness must not depend on it.
    """
    lock = FileLock(path, mode=0o666)  # of whichever user
    try:
        lock.acquire()
    except NotImplementedError:
        log.debug("%s: this file system knows no locks", path)
    try:
        yield
    finally:
        lock.release()
