"""What changes in a run folder while its sweep runs, noticed at the cost of one `stat` a trial."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from analysis.contract import (
    BASELINE,
    ENDED,
    EPOCHS_FILE,
    NOTES_FOLDER,
    RECORD_FILE,
    RUN_FILE,
    TRIALS_FOLDER,
)
from analysis.tables.read import Signature, signature_of
from sweeps.drive.running import RunningTrials
from sweeps.run.folder import trial_folder
from trainers.files import read_json

_UNSURE_NS = 100_000_000
"""A folder that has changed within this time may change again without a new time stamp."""


@dataclass(frozen=True)
class Changes:
    """What one look has found.

    Attributes:
        trials: a trial began or ended, or something else that the tables hold has changed.
        epochs: a running trial has ended an epoch or a stage.
    """

    trials: bool
    epochs: bool


class Watch:
    """Follows a run folder. Files of ended trials are replaced whole, which changes the time of
    their folder; only a running trial's epochs grow in place.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.running = RunningTrials(run, seconds=0.0)
        self._folders: dict[str, int] = {}
        self._signatures: dict[str, Signature] = {}
        self._sizes: dict[str, int] = {}
        self._beside: tuple[int, ...] = ()

    def look(self) -> Changes:
        """What has changed since the last look."""
        beside = self._times_beside()
        has_changed, self._beside = beside != self._beside, beside
        has_changed |= self._look_at_folders()
        sizes = {trial: self._epoch_bytes(trial) for trial in self.running.trials}
        has_epochs, self._sizes = sizes != self._sizes, sizes
        if has_epochs:
            self.running.look()
        return Changes(has_changed, has_epochs)

    @property
    def folders(self) -> Collection[str]:
        """Ids of the trials that have a folder."""
        return self._folders

    def _times_beside(self) -> tuple[int, ...]:
        """When what lies beside the trials has changed."""
        return tuple(
            _changed_at(self.run / name) for name in (RUN_FILE, NOTES_FOLDER, BASELINE)
        )

    def _look_at_folders(self) -> bool:
        """Which trials began and which ended; whether anything in their folders has changed."""
        try:
            entries = [e for e in os.scandir(self.run / TRIALS_FOLDER) if e.is_dir()]
        except FileNotFoundError:
            return False
        has_changed = False
        gone = self._folders.keys() - {entry.name for entry in entries}
        for name in gone:
            del self._folders[name], self._signatures[name]
            self.running.ended(name)
        for entry in entries:
            changed = entry.stat().st_mtime_ns
            if self._folders.get(entry.name) == changed:
                continue
            is_sure = time.time_ns() - changed > _UNSURE_NS
            self._folders[entry.name] = changed if is_sure else 0
            has_changed |= self._look_at_trial(entry.name)
        return has_changed or bool(gone)

    def _look_at_trial(self, name: str) -> bool:
        """Whether a trial has begun or ended, or has ended before and changed."""
        folder = trial_folder(self.run, name)
        signature = signature_of(folder)
        before = self._signatures.get(name)
        if before == signature:
            return False
        self._signatures[name] = signature
        record = read_json(folder / RECORD_FILE) or {}
        has_ended = record.get("status") in (*ENDED, "interrupted")
        # a folder is there before its plan, and a plan before its record
        has_begun = before is None or _files(before) != _files(signature)
        if has_ended:
            self.running.ended(name)
        elif name not in self.running.trials:
            self.running.started(name)
        return has_ended or has_begun

    def _epoch_bytes(self, trial: str) -> int:
        """What a trial has written of its epochs and stages, as a number that changes with it."""
        folder = trial_folder(self.run, trial)
        try:
            size = (folder / EPOCHS_FILE).stat().st_size
        except FileNotFoundError:
            size = 0
        return size + _changed_at(folder)


def _files(signature: Signature) -> list[bool]:
    """Whether plan and record are there."""
    return [file is not None for file in signature[:2]]


def _changed_at(path: Path) -> int:
    """When a file or a folder was changed, in ns; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
