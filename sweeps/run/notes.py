"""Writing what people note about trials; `analysis.notes` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.contract import BASELINE, NOTES_FOLDER, RECORD_SCHEMA
from sweeps.run.folder import trial_folder
from sweeps.run.record import now, to_json
from trainers.files import write_atomic


def write_note(run: Path, trial_id: str, text: str, tags: Sequence[str]) -> None:
    """Write the note of one trial in place of an earlier one; an empty one removes it.

    Raises:
        ValueError: the run has no such trial.
    """
    folder = trial_folder(run, trial_id)
    is_name = Path(trial_id).name == trial_id and trial_id not in ("", ".", "..")
    if not is_name or trial_id == BASELINE or not folder.is_dir():
        raise ValueError(f"{run}: has no trial {trial_id!r}")
    path = run / NOTES_FOLDER / f"{trial_id}.json"
    if not text and not tags:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    content = {"schema": RECORD_SCHEMA, "note": text, "tags": [*tags], "written": now()}
    write_atomic(path, to_json(content))
