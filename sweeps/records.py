"""Records of a run: one folder a trial, written from its start and finalised by every outcome.

`<run>/run.json` says what the sweep is, `<run>/trials/<id>/record.json` what a trial is and became,
`<run>/trials/<id>/epochs.jsonl` its epochs, `<run>/trials/<id>/layers.json` the layers of its model. Only this module writes them.
"""

import json
import os
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trainers.files import write_atomic

SCHEMA = 1
Status = Literal["running", "complete", "pruned", "failed", "interrupted"]


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, default=str).encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that is whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class TrialRecord:
    """The record of one trial, owned by one process at a time."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def begin(cls, folder: Path, facts: dict[str, Any]) -> "TrialRecord":
        """Start a trial, or start it again: attempts are counted over processes, epochs begin anew."""
        earlier = read_json(folder / "record.json") or {}
        content = {
            "schema": SCHEMA, **facts, "status": "running", "attempts": earlier.get("attempts", 0) + 1,
            "metrics": {}, "stages": [], "error": None, "started": now(), "ended": None,
            "seconds": None, "seconds_full": None,
        }  # fmt: skip
        record = cls(folder, content)
        record.save()
        (folder / "epochs.jsonl").write_text("")
        (folder / "layers.json").unlink(missing_ok=True)
        return record

    @classmethod
    def read(cls, folder: Path) -> "TrialRecord | None":
        content = read_json(folder / "record.json")
        return None if content is None else cls(folder, content)

    @property
    def status(self) -> str:
        return self.content.get("status", "running")

    def save(self) -> None:
        write_atomic(self.folder / "record.json", to_json(self.content))

    def add_epoch(self, row: dict[str, Any]) -> None:
        with open(self.folder / "epochs.jsonl", "a") as file:
            file.write(json.dumps(row, default=str) + "\n")

    def add_stage(self, row: dict[str, Any]) -> None:
        self.content["stages"].append(row)
        self.save()

    def set_layers(self, rows: list[dict[str, Any]]) -> None:
        """The layers of the trial's model (`compress.measure_layers`)."""
        write_atomic(self.folder / "layers.json", to_json({"schema": SCHEMA, "layers": rows}))

    def finish(self, status: Status, *, error: BaseException | str | None = None, **facts: Any) -> None:
        """Finalise; epochs reach the disk first."""
        epochs = self.folder / "epochs.jsonl"
        if epochs.exists():
            with open(epochs, "rb") as file:
                os.fsync(file.fileno())
        self.content |= {"status": status, "ended": now(), "error": _error(error), **facts}
        self.save()


def _error(error: BaseException | str | None) -> dict[str, str] | None:
    if error is None:
        return None
    if isinstance(error, str):
        return {"type": "ProcessDied", "message": error, "traceback": ""}
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}


def trial_folder(run: Path, trial_id: str) -> Path:
    return run / "trials" / trial_id


def trial_records(run: Path) -> Iterator[TrialRecord]:
    """All readable records of a run, by trial id."""
    trials = run / "trials"
    for folder in sorted(trials.iterdir()) if trials.is_dir() else ():
        record = TrialRecord.read(folder)
        if record is not None:
            yield record
