"""Runs in object storage: work happens in a local mirror, whole files go to the store and
come from it.

The driver's mirror of the run folder is the truth of a sweep: it fetches a trial's folder
when the trial has ended, and brings run-level files (spec, study, tables, report) to the
store. A node's mirror holds what its trials write. The stage cache is shared artifact by
artifact (`compress.cache`).
"""

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeps.run.record import TrialRecord, trial_folder
from sweeps.spec.yaml_text import SpecError
from trainers.remote import Remote, is_uri

_UNCHANGING = ("complete", "failed")  # its process has written its last word
_FINAL = (*_UNCHANGING, "pruned")
_OWN_FOLDERS = ("parquet", "tensorboard")
_HERE_ONLY = ("driver.json", "stop")
_SECONDS_BETWEEN_JOURNALS = 30.0


def mirror_folder(uri: str) -> Path:
    """This machine's copy of what lies at a URI: below $SWEEPS_MIRROR, or in a folder of
    the user's cache.
    """
    base = os.environ.get("SWEEPS_MIRROR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(base) if base else cache / "compression-sweeps" / "mirror"
    return root / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]


def local_folder(storage: str) -> Path:
    """Where a sweep with this `storage` keeps its files on this machine."""
    return mirror_folder(storage) if is_uri(storage) else Path(storage)


def local_run(run: str) -> Path:
    """A run folder here; one given by URI is fetched first.

    Raises:
        ValueError: the storage cannot be reached.
    """
    if not is_uri(run):
        return Path(run)
    storage, name = run.rstrip("/").rsplit("/", 1)
    folder = mirror_folder(storage) / name
    RunMirror(storage, folder).pull()
    return folder


def find_run(given: str, *, to_read: bool = False) -> Path:
    """A run folder from its path, from its name under runs/, or from its URI (fetched first).

    Args:
        to_read: whether a folder that holds a run's records or its tables alone will do.

    Raises:
        SpecError: none of them.
    """
    try:
        place = local_run(given)
    except ValueError as error:
        raise SpecError(str(error)) from error
    places = (
        [place]
        if is_uri(given) or place.is_absolute()
        else [place, Path("runs") / given]
    )
    for folder in places:
        kept = ("trials", "parquet") if to_read else ()
        if (folder / "run.json").is_file() or any(
            (folder / name).is_dir() for name in kept
        ):
            return folder.absolute()
    raise SpecError(
        f"{given}: not a run folder: no run.json in {' or '.join(map(str, places))}; it"
        " is storage/name of its spec"
    )


def run_place(storage: str, run: Path) -> "RunPlace":
    """Where the run that has its files in `run` on this machine is kept."""
    return RunMirror(storage, run) if is_uri(storage) else RunPlace(run)


def place_of(plan: dict[str, Any]) -> "RunPlace":
    """Where the run of a trial's plan is kept."""
    return run_place(plan["remote"] or "", Path(plan["run"]))


class RunPlace:
    """A run folder that all nodes see; nothing needs to be copied."""

    shared = True

    def __init__(self, run: Path) -> None:
        self.run = run

    def tune_storage(self) -> str:
        """For the files of Ray Tune and Ray Train."""
        return str(self.run)

    def pull(self) -> None:
        """Fetch what other machines know of the run."""

    def pull_trial(self, trial_id: str) -> None:
        """Fetch what a trial's node wrote."""

    def push_trial(self, trial_id: str) -> None:
        """Show a trial to other machines."""

    def push_run(self, *, everything: bool = False) -> None:
        """Show the run's own files to other machines: its study now and then, all of them
        at the end.
        """

    def delete(self, *names: str) -> None:
        """Remove folders of the run everywhere; the whole run without names."""
        for folder in [self.run / name for name in names] or [self.run]:
            shutil.rmtree(folder, ignore_errors=bool(names))


class RunMirror(RunPlace):
    """A run folder here and its place in the store."""

    shared = False

    def __init__(self, uri: str, run: Path) -> None:
        super().__init__(run)
        self.remote, self.name = Remote(uri), run.name
        self._next_journal = 0.0

    def tune_storage(self) -> str:
        return f"{self.remote.uri}/{self.name}"

    def pull(self) -> None:
        self.remote.download_missing(
            self.name, self.run, skip=[".validate_storage_marker"]
        )
        for folder in sorted((self.run / "trials").glob("*")):
            if not self._has(folder.name, _UNCHANGING):
                self.pull_trial(folder.name)

    def _has(self, trial_id: str, statuses: Sequence[str]) -> bool:
        record = TrialRecord.read(trial_folder(self.run, trial_id))
        return record is not None and record.status in statuses

    def pull_trial(self, trial_id: str) -> None:
        """A record that is final here is newer than the store's, and goes there."""
        folder, place = (
            trial_folder(self.run, trial_id),
            f"{self.name}/trials/{trial_id}",
        )
        final = self._has(trial_id, _FINAL)
        for name in sorted(
            self.remote.files(place), key=lambda n: n.endswith("record.json")
        ):
            if not (final and name.endswith("record.json")):
                self.remote.download(name, folder / name.removeprefix(f"{place}/"))
        if final:
            self.push_trial(trial_id)

    def push_trial(self, trial_id: str) -> None:
        """The record last."""
        folder = trial_folder(self.run, trial_id)
        self.remote.upload_folder(
            folder, f"{self.name}/trials/{trial_id}", last="record.json"
        )

    def push_run(self, *, everything: bool = False) -> None:
        if everything:
            for path in sorted(
                p
                for p in self.run.iterdir()
                if p.is_file() and not p.name.startswith(".")
            ):
                if path.name not in _HERE_ONLY:
                    self.remote.upload(path, f"{self.name}/{path.name}")
            for folder in (self.run / name for name in _OWN_FOLDERS):
                if folder.is_dir():
                    self.remote.upload_folder(folder, f"{self.name}/{folder.name}")
        elif time.monotonic() > self._next_journal:
            for name in ("run.json", "spec.yaml", "study.journal"):
                if (self.run / name).exists():
                    self.remote.upload(self.run / name, f"{self.name}/{name}")
            self._next_journal = time.monotonic() + _SECONDS_BETWEEN_JOURNALS

    def delete(self, *names: str) -> None:
        super().delete(*names)
        for place in [f"{self.name}/{name}" for name in names] or [self.name]:
            self.remote.delete_folder(place)
