"""Where a run is kept: in a folder that all nodes see, or in object storage with a local mirror.

The driver's mirror of the run folder is the truth of a sweep: it fetches a trial's folder
when the trial has ended, and brings run-level files (spec, study, tables, report) to the
store. A node's mirror holds what its trials write. The stage cache is shared artifact by
artifact (`compress.cache`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.contract import (
    DRIVER_FILE,
    ENDED,
    PLAN_FILE,
    RECORD_FILE,
    RUN_FILE,
    SPEC_FILE,
    STOP_FILE,
    STUDY_FILE,
    TABLES_FOLDER,
    TRIALS_FOLDER,
    Status,
)
from sweeps.run.folder import (
    TENSORBOARD_FOLDER,
    trial_folder,
    trial_ids,
    trial_place,
)
from sweeps.run.plan import Site
from sweeps.run.record import TrialRecord
from sweeps.spec.yaml_text import SpecError
from trainers.files import expanded, user_cache
from trainers.remote import Remote, child_uri, is_uri, parent_uri

_UNCHANGING: tuple[Status, ...] = ("complete", "failed")
"""Statuses of trials whose process has written its last word; a pruned one may still write."""
_OWN_FOLDERS = (TABLES_FOLDER, TENSORBOARD_FOLDER)
_HERE_ONLY = (DRIVER_FILE, STOP_FILE)
_SECONDS_BETWEEN_JOURNALS = 30.0


def mirror_folder(uri: str) -> Path:
    """This machine's copy of what lies at a URI: below $SWEEPS_MIRROR, or in a folder of
    the user's cache.
    """
    base = os.environ.get("SWEEPS_MIRROR")
    root = Path(expanded(base)) if base else user_cache() / "mirror"
    return root / hashlib.sha256(child_uri(uri).encode()).hexdigest()[:16]


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
    storage, name = parent_uri(run)
    if not storage.partition("://")[2]:
        raise ValueError(f"{run}: is the URI of no run; give s3://BUCKET/FOLDER/NAME")
    folder = mirror_folder(storage) / name
    MirroredStorage(storage, folder).pull()
    return folder


def find_run(given: str, *, to_read: bool = False) -> Path:
    """A run folder from its path, from its name under runs/, or from its URI (fetched first).

    Args:
        to_read: whether a folder that holds a run's records or its tables alone will do.

    Raises:
        SpecError: none of them.
    """
    try:
        folder = local_run(given)
    except ValueError as error:
        raise SpecError(str(error)) from error
    candidates = [folder]
    if not is_uri(given) and not folder.is_absolute():
        candidates.append(Path("runs") / given)
    kept = (TRIALS_FOLDER, TABLES_FOLDER) if to_read else ()
    for candidate in candidates:
        if (candidate / RUN_FILE).is_file():
            return candidate.absolute()
        if any((candidate / name).is_dir() for name in kept):
            return candidate.absolute()
    if folder.is_file():
        raise SpecError(
            f"{given}: a file, and a run is a folder: storage/name of its spec"
        )
    raise SpecError(
        f"{given}: not a run folder: no {RUN_FILE} in"
        f" {' or '.join(map(str, candidates))}; it is storage/name of its spec"
    )


def run_storage(storage: str, run: Path) -> RunStorage:
    """Where a run is kept that has its files in the folder `run` on this machine.

    Args:
        storage: a URI, or anything else where all nodes see the run folder.
    """
    return MirroredStorage(storage, run) if is_uri(storage) else RunStorage(run)


def storage_of(site: Site) -> RunStorage:
    """Where the run of a site is kept."""
    return run_storage(site.remote or "", site.run)


class RunStorage:
    """A run folder that all nodes see, so that nothing needs to be copied."""

    shared = True

    def __init__(self, run: Path) -> None:
        self.run = run

    def tune_storage(self, *names: str) -> str:
        """A folder or URI for the files of Ray Tune and Ray Train."""
        return str(self.run.joinpath(*names))

    def pull(self) -> None:
        """Fetch what other machines know of the run."""

    def pull_plan(self, trial_id: str) -> None:
        """Fetch the plan of a trial that is to run here."""

    def pull_trial(self, trial_id: str) -> None:
        """Fetch what a trial's node wrote."""

    def push_trial(self, trial_id: str) -> None:
        """Show a trial to other machines."""

    def push_run(self, *, everything: bool = False) -> None:
        """Show the run's own files to other machines: the study now and then, all at the end."""

    def delete(self, *names: str) -> None:
        """Remove folders of the run everywhere; the whole run where no names are given."""
        for folder in [self.run / name for name in names] or [self.run]:
            shutil.rmtree(folder, ignore_errors=bool(names))


class MirroredStorage(RunStorage):
    """A run folder here, and its copy in a store that all nodes reach."""

    shared = False

    def __init__(self, uri: str, run: Path) -> None:
        super().__init__(run)
        self.remote, self.name = Remote(uri), run.name
        self._next_journal = 0.0

    def tune_storage(self, *names: str) -> str:
        return child_uri(self.remote.uri, self.name, *names)

    def pull(self) -> None:
        self.remote.download_missing(
            self.name, self.run, skip=[".validate_storage_marker"]
        )
        for trial_id in trial_ids(self.run):
            if not self._has(trial_id, _UNCHANGING):
                self.pull_trial(trial_id)

    def _has(self, trial_id: str, statuses: Sequence[Status]) -> bool:
        record = TrialRecord.read(trial_folder(self.run, trial_id))
        return record is not None and record.status in statuses

    def _remote_folder(self, trial_id: str) -> str:
        return f"{self.name}/{trial_place(trial_id)}"

    def pull_plan(self, trial_id: str) -> None:
        self.remote.download(
            f"{self._remote_folder(trial_id)}/{PLAN_FILE}",
            trial_folder(self.run, trial_id) / PLAN_FILE,
        )

    def pull_trial(self, trial_id: str) -> None:
        """Fetch what a trial's node wrote. An ended record here is newer, and is sent instead."""
        folder, remote = trial_folder(self.run, trial_id), self._remote_folder(trial_id)
        has_ended = self._has(trial_id, ENDED)
        names = self.remote.files(remote)
        for name in sorted(names, key=lambda n: n.endswith(RECORD_FILE)):
            if not (has_ended and name.endswith(RECORD_FILE)):
                self.remote.download(name, folder / name.removeprefix(f"{remote}/"))
        if has_ended:
            self.push_trial(trial_id)

    def push_trial(self, trial_id: str) -> None:
        """Send a trial's files, the record last: who sees it sees what it speaks of."""
        folder = trial_folder(self.run, trial_id)
        remote = self._remote_folder(trial_id)
        self.remote.upload_folder(folder, remote, last=RECORD_FILE)

    def push_run(self, *, everything: bool = False) -> None:
        if everything:
            self._push_all()
        elif time.monotonic() > self._next_journal:
            for name in (RUN_FILE, SPEC_FILE, STUDY_FILE):
                if (self.run / name).exists():
                    self.remote.upload(self.run / name, f"{self.name}/{name}")
            self._next_journal = time.monotonic() + _SECONDS_BETWEEN_JOURNALS

    def _push_all(self) -> None:
        for path in sorted(self.run.iterdir()):
            is_ours = path.is_file() and not path.name.startswith(".")
            if is_ours and path.name not in _HERE_ONLY:
                self.remote.upload(path, f"{self.name}/{path.name}")
        for name in _OWN_FOLDERS:
            if (self.run / name).is_dir():
                self.remote.upload_folder(self.run / name, f"{self.name}/{name}")

    def delete(self, *names: str) -> None:
        super().delete(*names)
        for folder in [f"{self.name}/{name}" for name in names] or [self.name]:
            self.remote.delete_folder(folder)
