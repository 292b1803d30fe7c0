"""The stage cache: finished stages by key (`compress.keys`), and leases against doing work twice.

A finished stage is a folder `<root>/<key>`, published by one rename, with hashes over all of
it. A lease is a file beside it. Correctness never depends on a lease: two trials that do the
same work get the same result, and of two renames the second has no effect.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.keys import content_key
from compress.metrics import Value
from trainers.files import parse_json, whole_folder, write_atomic
from trainers.lease import Lease
from trainers.leftovers import remove_leftovers, tag
from trainers.models.arch import ModelState
from trainers.remote import Remote

_log = logging.getLogger(__name__)
_LAST = "stage.json"
"""Written last: an artifact with this file is whole."""


@dataclass
class Artifact:
    """A finished stage.

    Attributes:
        model: what it returned.
        seconds: that it took, over all the processes that worked on it.
        metrics: what it reported.
        rows: its epochs, as the training loop described them.
    """

    model: ModelState
    seconds: float
    metrics: dict[str, Value] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the model and, last, `stage.json` with everything else and its hash."""
        self.model.save(folder)
        note = {"seconds": self.seconds, "metrics": self.metrics, "rows": self.rows}
        content = {"note": note, "hash": content_key(note)}
        write_atomic(folder / _LAST, json.dumps(content).encode())

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and verify what `save` wrote.

        Raises:
            ValueError: damaged or incomplete.
        """
        path = folder / _LAST
        try:
            content = parse_json(path.read_text())
            note = content["note"]
            intact = content["hash"] == content_key(note)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: unreadable {_LAST} ({error})") from error
        if not intact:
            raise ValueError(f"{folder}: {_LAST} differs from its hash")
        return cls(ModelState.load(folder), **note)


class StageCache:
    """Artifacts under a folder.

    Args:
        root: a folder that all trials of a sweep see, or this node's copy of `remote`.
        remote: where nodes without a common folder exchange artifacts.
        heartbeat_seconds, silence_seconds: of the leases; see `trainers.lease.Lease`.
    """

    def __init__(
        self,
        root: Path,
        *,
        remote: Remote | None = None,
        heartbeat_seconds: float = 2.0,
        silence_seconds: float = 30.0,
    ) -> None:
        self.root = root
        self.remote = remote
        self.heartbeat_seconds = heartbeat_seconds
        self.silence_seconds = silence_seconds

    def clean(self) -> None:
        """Remove what killed processes left: half-written artifacts, and leases of nobody."""
        for folder in (self.root, self.root / "fits"):  # `compress.continuing`
            remove_leftovers(folder)
        for path in self.root.glob("*.lease"):
            owner = Lease(path).owner()
            if owner is not None and owner.is_gone():
                path.unlink(missing_ok=True)

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
            if not folder.exists():  # another process removed the damaged one meanwhile
                return None
            _log.warning("damaged artifact, built again: %s", error)
            aside = self.root / f".damaged-{tag()}"
            with contextlib.suppress(OSError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return None

    def _fetch(self, key: str) -> bool:
        """Copy an artifact that another node published; whether it is here now."""
        if self.remote is None or not self.remote.exists(f"{key}/{_LAST}"):
            return False
        with whole_folder(self.root / key) as beside:
            self.remote.download_missing(key, beside)
        return True

    def publish(self, key: str, artifact: Artifact) -> None:
        """Make the artifact visible at once and whole; keeps the one that is already there."""
        with whole_folder(self.root / key) as beside:
            artifact.save(beside)
        if self.remote is not None:
            self.remote.upload_folder(self.root / key, key, last=_LAST)

    def get_or_build(
        self, key: str, build: Callable[[Path], Artifact]
    ) -> tuple[Artifact, bool]:
        """The artifact of a key, from the cache or newly built.

        Args:
            build: gets the work folder; where it fails, nothing is published.

        Returns:
            The artifact, and whether it came from the cache.
        """
        found = self.load(key)
        if found is not None:
            return found, True
        lease = Lease(
            self.root / f"{key}.lease",
            heartbeat_seconds=self.heartbeat_seconds,
            silence_seconds=self.silence_seconds,
        )
        with lease.held_unless((self.root / key).exists):
            found = self.load(key)
            if found is not None:
                return found, True
            workdir = self.workdir(key)
            workdir.mkdir(parents=True, exist_ok=True)
            artifact = build(workdir)
            self.publish(key, artifact)
            shutil.rmtree(workdir, ignore_errors=True)
            return artifact, False
