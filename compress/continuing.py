"""More epochs of a stage go on from the end of fewer.

A stage whose first epochs do not depend on how many follow ends with a checkpoint of its fits, and
the same stage with more epochs begins there, as a trial does that was killed after them: with the
same bits as if it had trained without a break. Stage trees (Hippo: Shin et al., VLDB 2022) share
what different schedules have in common; here a schedule is shared by its options alone.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.keys import content_key, shorter_stage_keys
from compress.stage import Stage
from trainers.config import TrainConfig
from trainers.files import (
    copy_atomic,
    read_json,
    sha256_file,
    whole_folder,
    write_atomic,
)
from trainers.remote import Remote
from trainers.training.checkpoint import CheckpointFolder
from trainers.training.optim import set_by_length

ITSELF = "the stage itself"
_log = logging.getLogger(__name__)
_LAST = "fits.json"
"""Written last: file → its fit, epochs and hash, and a hash of all that."""


def why_from_start(config: Stage) -> str | None:
    """Why a stage with more epochs trains from its first one on; None where it goes on from the
    end of fewer.

    Returns:
        What depends on the number of epochs: an option as `name: value`, or `ITSELF`.
    """
    if not config.continues or not isinstance(config, TrainConfig):
        return ITSELF
    return set_by_length(config)


def goes_on_from(
    before: str, kind: str, config: Stage, teachers: Sequence[str]
) -> list[str]:
    """Keys of the stages from whose end this one may go on, its own first; empty where it trains
    from its first epoch on.

    Args:
        before, kind, config, teachers: as `compress.keys.stage_key` takes them.
    """
    if why_from_start(config) is not None:
        return []
    assert isinstance(config, TrainConfig)
    return shorter_stage_keys(before, kind, config, teachers)


class FinishedFits:
    """Last checkpoints of the fits of finished stages, by the stage's key in the cache.

    Args:
        root: of the stage cache; they lie in `fits/KEY`, and what is deleted there is only trained
            again.
        remote: where nodes without a common folder exchange them.
    """

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root, self.remote = root, remote

    def _folder(self, key: str) -> Path:
        return self.root / "fits" / key

    def keep(self, key: str, workdir: Path) -> None:
        """Move the last checkpoint of each fit from a stage's work folder to where a longer stage
        finds it; what is there already stays.
        """
        ends = {
            fit.name: newest
            for fit in sorted(path for path in workdir.iterdir() if path.is_dir())
            if (newest := CheckpointFolder(fit).newest()) is not None
        }
        if not ends:
            return
        with whole_folder(self._folder(key)) as beside:
            notes = {}
            for number, (fit, (epochs, checkpoint)) in enumerate(ends.items()):
                file = beside / f"{number}.pt"
                checkpoint.replace(file)
                sha256 = sha256_file(file)
                notes[file.name] = {"fit": fit, "epochs": epochs, "sha256": sha256}
            content = {"fits": notes, "hash": content_key(notes)}
            write_atomic(beside / _LAST, json.dumps(content).encode())
        if self.remote is not None:
            self.remote.upload_folder(self._folder(key), f"fits/{key}", last=_LAST)

    def put_back(self, keys: Sequence[str], workdir: Path) -> dict[str, int]:
        """Copy the checkpoints of the first of these stages that has any into a work folder.

        Returns:
            Name of each fit → epochs that it has done; empty where there are none.
        """
        key = self._first(keys)
        if key is None:
            return {}
        folder = self._folder(key)
        notes = _intact(folder)
        if not notes:
            _log.warning("damaged checkpoints, not gone on from: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
        for name, note in notes.items():
            target = CheckpointFolder(workdir / note["fit"]).path(note["epochs"])
            copy_atomic(folder / name, target)
        return {note["fit"]: note["epochs"] for note in notes.values()}

    def _first(self, keys: Sequence[str]) -> str | None:
        """The first stage that has checkpoints, here or where nodes exchange them."""
        for key in keys:
            if (self._folder(key) / _LAST).exists():
                return key
        if self.remote is None:
            return None
        found = self.remote.existing([f"fits/{key}/{_LAST}" for key in keys])
        for key in keys:
            if f"fits/{key}/{_LAST}" in found:
                self.remote.download_missing(f"fits/{key}", self._folder(key))
                return key
        return None


def _intact(folder: Path) -> dict[str, Any]:
    """File → its fit, epochs and hash; empty where one of them is damaged."""
    content = read_json(folder / _LAST) or {}
    notes = content.get("fits", {})
    if content.get("hash") != content_key(notes):
        return {}
    paths = [(folder / name, note["sha256"]) for name, note in notes.items()]
    whole = all(p.exists() and sha256_file(p) == sha256 for p, sha256 in paths)
    return dict(notes) if whole else {}
