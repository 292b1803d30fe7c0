"""One measurement of time at a time on a node, while the work that would disturb it stands still.

    node's folder/measuring.json       the lease: who measures, on what, for how long at most
    node's folder/processes/P.busy     a process that works; P.still while it stands still

A process that works is registered (`taking_part`) and passes pause points between its steps
(`pause_point`), where it looks for the lease at most ten times a second. One that measures
(`alone`) takes the lease, and waits until all whom it would share cores or a GPU with stand
still; those who pass no pause point are waited for shortly. Time spent standing still is no
working time (`working_seconds`); `paused_seconds` says how much it was.

Nobody waits for ever. A holder that died is passed over at once, one that is stopped after
`SILENCE_SECONDS` without a heartbeat, one that hangs after the time that it asked for.
All runs and users of a node share the folder; it decides no result, so whatever is wrong with
it costs a quiet measurement at worst.
"""

import contextlib
import json
import logging
import os
import socket
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainers.files import expanded, read_json, write_atomic
from trainers.lease import Lease, Owner
from trainers.machine import core_numbers
from trainers.processes import process_exists

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Between two looks for the lease, at least."""
SILENCE_SECONDS = 10.0
"""A holder without a heartbeat for this long is passed over."""
PATIENCE_SECONDS = 5.0
"""How long one that measures waits for others to stand still."""
MATES_SECONDS = 0.5
"""How long for the other processes of a trial of which one stands still: they wait for it."""
LONGEST_QUEUE_SECONDS = 600.0
"""How long it waits for others to end their measurements."""
_TOUCH_SECONDS = 1.0
_ABSENT_SECONDS = 60.0
_FORGOTTEN_SECONDS = 86_400.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Use:
    """What a process uses of its node.

    Attributes:
        cores: numbers of the processor cores that it may run on.
        gpu: identifier of its GPU; "" for none.
        threads: of its operators.
    """

    cores: frozenset[int]
    gpu: str = ""
    threads: int = 1

    @classmethod
    def of(cls, device: torch.device) -> "Use":
        """What this process uses when it works on `device`."""
        gpu = ""
        if device.type == "cuda":
            gpu = str(torch.cuda.get_device_properties(device).uuid)
        return cls(core_numbers(), gpu, torch.get_num_threads())

    def disturbs(self, other: "Use") -> bool:
        """Whether this one's work slows the other's."""
        return bool(self.cores & other.cores) or self.gpu == other.gpu != ""

    def to_json(self) -> dict[str, object]:
        return {"cores": sorted(self.cores), "gpu": self.gpu, "threads": self.threads}

    @classmethod
    def from_json(cls, content: dict[str, object]) -> "Use":
        """Raises KeyError, TypeError or ValueError for anything else than `to_json` gives."""
        cores, threads = content["cores"], content["threads"]
        if not isinstance(cores, list) or not isinstance(threads, int):
            raise TypeError("cores are a list, threads a number")
        return cls(frozenset(map(int, cores)), str(content["gpu"]), threads)


@dataclass(frozen=True)
class _Process:
    """A registered process as its file describes it."""

    pid: int
    host: str
    group: str
    use: Use


class Node:
    """The folder through which the processes of a node see one another.

    Args:
        folder: where it is, or is to be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = folder / "processes"
        self.lease = folder / "measuring.json"

    def make(self) -> None:
        """Make the folders; every user of the node may write there."""
        for folder in (self.folder, self.processes):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):  # another user was quicker
                    folder.chmod(0o777)

    def others(self, not_in: str) -> Iterator[tuple[Path, _Process]]:
        """Registered processes that live, but those of the group `not_in`; the files of those
        that died are removed.
        """
        here = socket.gethostname()
        for path in sorted(self.processes.glob("*.*")):
            content = read_json(path) or {}
            try:
                process = _Process(
                    pid=int(content["pid"]),
                    host=str(content["host"]),
                    group=str(content["group"]),
                    use=Use.from_json(content),
                )
                age = time.time() - path.stat().st_mtime
            except (KeyError, TypeError, ValueError, OSError):
                continue  # it went meanwhile, or is no file of ours
            dead = process.host == here and not process_exists(process.pid)
            if dead or age > _FORGOTTEN_SECONDS:
                with contextlib.suppress(OSError):
                    path.unlink()
            elif process.group != not_in:
                yield path, process


def node_folder() -> Path:
    """Where the processes of this node see one another: `$SWEEPS_NODE_FOLDER`, or a folder beside
    other temporary files.
    """
    given = os.environ.get("SWEEPS_NODE_FOLDER")
    if given:
        return Path(expanded(given))
    name = f"compression-sweeps-{socket.gethostname()}"
    return Path(tempfile.gettempdir()) / name


class Member:
    """This process as one that works on its node.

    Args:
        node: where it is registered.
        use: what it uses of the node.
        group: the processes of one trial have the same; they never wait for one another.
    """

    def __init__(self, node: Node, use: Use, group: str) -> None:
        self.node, self.use, self.group = node, use, group
        self.paused = 0.0
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._path: Path | None = None
        self._look_at = 0.0
        self._touch_at = 0.0
        self._lease = Lease(node.lease)
        self._holder = _Holder()

    def join(self) -> None:
        """Register; without a folder to do so, this process disturbs others and says so once."""
        content = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "group": self.group,
            **self.use.to_json(),
        }
        path = self.node.processes / f"{self._name}.busy"
        try:
            self.node.make()
            write_atomic(path, json.dumps(content).encode())
        except OSError as error:
            log.warning(
                "%s cannot be written (%s), so measurements of others on this node will"
                " not wait for this process; SWEEPS_NODE_FOLDER names another folder",
                self.node.folder,
                error,
            )
            return
        self._path = path

    def leave(self) -> None:
        """Be forgotten."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None

    def pause_point(self) -> None:
        """Stand still here while another process measures that this one would disturb."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        if now >= self._touch_at:
            self._touch_at = now + _TOUCH_SECONDS
            self._touch()
        if self._holder.to_wait_for(self._lease, self.use) is None:
            return
        with self.still():
            while self._holder.to_wait_for(self._lease, self.use) is not None:
                time.sleep(_POLL_SECONDS)
        self._look_at = 0.0  # the next one may hold the lease already

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Show to others that this process uses nothing inside the block; its time is paused."""
        begun = time.perf_counter()
        self._rename("still")
        try:
            yield
        finally:
            self._rename("busy")
            self.paused += time.perf_counter() - begun

    def _rename(self, state: str) -> None:
        if self._path is None:
            return
        path = self._path.with_suffix(f".{state}")
        # whoever removed the file took this process for dead; it is not waited for then
        with contextlib.suppress(OSError):
            self._path.rename(path)
        self._path = path

    def _touch(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.utime(self._path)


class _Holder:
    """What a process that may have to wait has seen of the lease's holder so far."""

    def __init__(self) -> None:
        self._token = ""
        self._beat = -1
        self._since = 0.0
        self._beat_since = 0.0

    def to_wait_for(self, lease: Lease, use: Use) -> Owner | None:
        """The holder, where it lives, keeps within its time, and `use` would disturb it."""
        if not lease.path.exists():
            return None
        owner = lease.owner()
        if owner is None or owner.is_gone():
            return None
        try:
            content = json.loads(owner.note)
            measured, seconds = Use.from_json(content), float(content["seconds"])
        except (KeyError, TypeError, ValueError):
            return None
        now = time.monotonic()
        if owner.token != self._token:
            self._token, self._since, self._beat = owner.token, now, -1
        if owner.beat != self._beat:
            self._beat, self._beat_since = owner.beat, now
        if now - self._since > seconds or now - self._beat_since > SILENCE_SECONDS:
            return None
        return owner if use.disturbs(measured) else None


_here: Member | None = None
"""This process, while it works."""
_paused_before = 0.0
"""Seconds for which earlier members of this process stood still."""


@contextlib.contextmanager
def taking_part(
    device: torch.device, group: str, folder: Path | None = None
) -> Iterator[Member]:
    """Work inside the block, and stand still at its pause points while others measure.

    Args:
        device: where it works.
        group: the same for all processes of one trial.
        folder: of the node; see `node_folder`.
    """
    global _here, _paused_before
    member = Member(Node(folder or node_folder()), Use.of(device), group)
    before = _here
    member.join()
    _here = member
    try:
        yield member
    finally:
        _here = before
        _paused_before += member.paused
        member.leave()


def pause_point() -> None:
    """Between two steps of work: stand still while another process of this node measures."""
    if _here is not None:
        _here.pause_point()


def paused_seconds() -> float:
    """How long this process has stood still, in the work that it is at."""
    return 0.0 if _here is None else _here.paused


def count_as_paused(seconds: float) -> None:
    """Count time as paused that this process spent waiting for one that stood still."""
    if _here is not None:
        _here.paused += seconds


def working_seconds() -> float:
    """A clock in seconds that stands while this process stands still for others."""
    return time.perf_counter() - _paused_before - paused_seconds()


@contextlib.contextmanager
def alone(
    device: torch.device, seconds: float, folder: Path | None = None
) -> Iterator[bool]:
    """Measure inside the block, as the only one on this node.

    What passes until the block begins is paused time.

    Args:
        device: what is measured.
        seconds: that the block may take; others go on after that.
        folder: of the node; see `node_folder`.

    Yields:
        Whether all stand still who would disturb the measurement.
    """
    node = _here.node if _here is not None and folder is None else None
    node = node or Node(folder or node_folder())
    group = "" if _here is None else _here.group
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if _here is None else _here.still():
            quiet = _take(node, Use.of(device), group, seconds, stack)
        yield quiet


def _take(
    node: Node, use: Use, group: str, seconds: float, stack: contextlib.ExitStack
) -> bool:
    """Take the lease until `stack` ends, and wait for the others; whether all stand still."""
    give_up_at = time.monotonic() + LONGEST_QUEUE_SECONDS
    try:
        node.make()
        measured = _with_room(node, use, group)
        note = json.dumps(measured.to_json() | {"seconds": seconds + PATIENCE_SECONDS})
        lease = Lease(
            node.lease,
            heartbeat_seconds=1.0,
            silence_seconds=SILENCE_SECONDS,
            longest_pause_seconds=LOOK_SECONDS,
            note=note,
        )
        held = lease.held_unless(lambda: time.monotonic() > give_up_at)
        owner = stack.enter_context(held)
    except OSError as error:
        log.warning(
            "%s cannot be used (%s), so other work on this node goes on while latency is"
            " measured; SWEEPS_NODE_FOLDER names another folder",
            node.folder,
            error,
        )
        return False
    if owner is None:
        log.warning(
            "%s was not free within %.0f s; latency is measured beside other work",
            node.lease,
            LONGEST_QUEUE_SECONDS,
        )
        return False
    return _wait_until(lambda: _busy(node, measured, group))


def _with_room(node: Node, use: Use, group: str) -> Use:
    """What must not be used by others. A measurement on a GPU needs no core that is shared,
    where there are enough for all.
    """
    if not use.gpu:
        return use
    sharing = [p.use for _, p in node.others(group) if p.use.cores & use.cores]
    threads = use.threads + sum(other.threads for other in sharing)
    if threads > len(use.cores):
        return use
    return replace(use, cores=frozenset())


def _wait_until(busy: Callable[[], Counter[str]]) -> bool:
    """Wait, but not for long, until nobody is busy; whether that came true."""
    begun = time.monotonic()
    while found := busy():
        passed = time.monotonic() - begun
        mates_only = not found["others"]
        if passed > (MATES_SECONDS if mates_only else PATIENCE_SECONDS):
            return mates_only
        time.sleep(_POLL_SECONDS / 2)
    return True


def _busy(node: Node, measured: Use, group: str) -> Counter[str]:
    """How many processes work that would disturb; "mates" of one that stands still wait for it."""
    found = [
        (path, process)
        for path, process in node.others(group)
        if process.use.disturbs(measured)
    ]
    waiting = {process.group for path, process in found if path.suffix == ".still"}
    counts: Counter[str] = Counter()
    for path, process in found:
        if path.suffix != ".busy" or _long_absent(path):
            continue
        counts["mates" if process.group in waiting else "others"] += 1
    return counts


def _long_absent(path: Path) -> bool:
    """Whether its process has passed no pause point for long, and so hardly will now."""
    try:
        return time.time() - path.stat().st_mtime > _ABSENT_SECONDS
    except OSError:
        return True
