"""The stage cache: immutable artifacts by key, and leases that keep two trials from the same work.

An artifact is a folder `<root>/<key>` published by one rename, with hashes over all of it.
A lease is a file beside it. Correctness never depends on a lease: two trials doing the same
work get the same artifact, and the second rename loses.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainers.files import write_atomic
from trainers.models.arch import ModelState
from trainers.remote import Remote

_log = logging.getLogger(__name__)
_LAST = "stage.json"  # an artifact with this file is whole


def content_key(*parts: Any) -> str:
    """SHA-256 of JSON-able parts, in order."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()


@dataclass
class Artifact:
    """A finished stage: its model, what it reported, its epoch rows and the seconds that it
    took.
    """

    model: ModelState
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        self.model.save(folder)
        note = {"seconds": self.seconds, "metrics": self.metrics, "rows": self.rows}
        write_atomic(
            folder / _LAST,
            json.dumps({"note": note, "hash": content_key(note)}).encode(),
        )

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and verify.

        Raises:
            ValueError: damaged or incomplete.
        """
        try:
            content = json.loads((folder / "stage.json").read_text())
            note, intact = (
                content["note"],
                content["hash"] == content_key(content["note"]),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: unreadable stage.json ({error})") from error
        if not intact:
            raise ValueError(f"{folder}: stage.json differs from its hash")
        return cls(ModelState.load(folder), **note)


@dataclass(frozen=True)
class _Owner:
    host: str
    pid: int
    token: str
    beat: int


class StageCache:
    """Artifacts under `root`, a folder that all trials of a sweep see, or this node's copy
    of `remote`.
    """

    def __init__(
        self,
        root: Path,
        *,
        remote: Remote | None = None,
        beat_seconds: float = 2.0,
        stale_seconds: float = 30.0,
    ) -> None:
        self.root, self.remote, self.beat_seconds, self.stale_seconds = (
            root,
            remote,
            beat_seconds,
            stale_seconds,
        )

    def workdir(self, key: str) -> Path:
        """Where the stage of this key keeps its checkpoints until it is published."""
        return self.root / "work" / key

    def load(self, key: str) -> Artifact | None:
        """The artifact, or None. A damaged one is named in a warning and removed."""
        folder = self.root / key
        if not folder.exists() and not self._fetch(key):
            return None
        try:
            return Artifact.load(folder)
        except ValueError as error:
            if not folder.exists():  # somebody else removed it as damaged meanwhile
                return None
            _log.warning("damaged artifact, built again: %s", error)
            aside = self.root / f".damaged-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return None

    def _fetch(self, key: str) -> bool:
        """Copy an artifact that another node published; whether it is here now."""
        if self.remote is None or not self.remote.exists(f"{key}/{_LAST}"):
            return False
        beside = self.root / f".new-{uuid.uuid4().hex}"
        self.remote.download_missing(key, beside)
        with contextlib.suppress(OSError):  # another process of this node was quicker
            beside.rename(self.root / key)
        shutil.rmtree(beside, ignore_errors=True)
        return (self.root / key).exists()

    def publish(self, key: str, artifact: Artifact) -> None:
        """Make the artifact visible at once and whole; keeps the one that is already there."""
        beside = self.root / f".new-{uuid.uuid4().hex}"
        artifact.save(beside)
        for path in beside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        try:
            beside.rename(self.root / key)
        except OSError:
            if not (self.root / key).exists():
                raise
            shutil.rmtree(beside, ignore_errors=True)
        if self.remote is not None:
            self.remote.upload_folder(self.root / key, key, last=_LAST)

    def get_or_build(
        self, key: str, build: Callable[[Path], Artifact]
    ) -> tuple[Artifact, bool]:
        """(artifact, whether it was there). `build` gets the work folder; a failure leaves
        nothing published.
        """
        if (artifact := self.load(key)) is not None:
            return artifact, True
        with self._lease(key):
            if (artifact := self.load(key)) is not None:
                return artifact, True
            workdir = self.workdir(key)
            workdir.mkdir(parents=True, exist_ok=True)
            artifact = build(workdir)
            self.publish(key, artifact)
            shutil.rmtree(workdir, ignore_errors=True)
            return artifact, False

    @contextlib.contextmanager
    def _lease(self, key: str) -> Iterator[None]:
        path = self.root / f"{key}.lease"
        owner = _Owner(socket.gethostname(), os.getpid(), uuid.uuid4().hex, 0)
        self.root.mkdir(parents=True, exist_ok=True)
        if not self._acquire(path, owner, key):
            yield  # published while we waited
            return
        stop = threading.Event()
        beats = threading.Thread(
            target=self._keep_beating, args=(path, owner, stop), daemon=True
        )
        beats.start()
        try:
            yield
        finally:
            stop.set()
            beats.join()
            seen = _read_owner(path)
            if seen is not None and seen.token == owner.token:
                path.unlink(missing_ok=True)

    def _acquire(self, path: Path, owner: _Owner, key: str) -> bool:
        last, since, pause = None, time.monotonic(), 0.05
        while not (self.root / key).exists():
            try:
                with open(path, "x") as file:
                    json.dump(asdict(owner), file)
                return True
            except FileExistsError:
                seen = _read_owner(path)
            if seen != last:
                last, since = seen, time.monotonic()
            # our own clock decides: clocks of nodes and of a file server differ
            if _is_dead(seen) or time.monotonic() - since > self.stale_seconds:
                write_atomic(path, json.dumps(asdict(owner)).encode())
                return True
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
        return False

    def _keep_beating(self, path: Path, owner: _Owner, stop: threading.Event) -> None:
        beat = 0
        while not stop.wait(self.beat_seconds):
            beat += 1
            with contextlib.suppress(OSError):
                write_atomic(path, json.dumps(asdict(owner) | {"beat": beat}).encode())


def _read_owner(path: Path) -> _Owner | None:
    try:
        return _Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_dead(owner: _Owner | None) -> bool:
    if owner is None or owner.host != socket.gethostname() or owner.pid == os.getpid():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
