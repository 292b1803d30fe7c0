"""Records of a run: one folder a trial, written from its start and finalised by every outcome.

`<run>/run.json` says what the sweep is, `<run>/trials/<id>/record.json` what a trial is and became,
`<run>/trials/<id>/epochs.jsonl` its epochs, `<run>/trials/<id>/layers.json` the layers of
its model. Only this module writes them.
"""

import errno
import json
import os
import traceback
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trainers.files import read_json, write_atomic

SCHEMA = 1
Status = Literal["running", "complete", "pruned", "failed", "interrupted"]


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, default=str).encode()


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_storage_fault(error: BaseException) -> bool:
    """Whether a disk is full or read-only: no trial's fault, and nothing that trying again
    would mend.
    """
    return (isinstance(error, OSError) and error.errno in _FULL) or os.strerror(
        errno.ENOSPC
    ) in str(error)


class RecordTakenError(Exception):
    """Somebody else has ended this attempt, or begun another: this process's part in the
    trial is over.
    """


class TrialRecord:
    """The record of one trial, owned by one attempt at a time.

    An attempt whose record was ended by the driver (pruned, interrupted) or begun anew
    elsewhere can write no more: a process that outlived its driver doubles nothing.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def begin(cls, folder: Path, facts: dict[str, Any]) -> "TrialRecord":
        """Start a trial, or start it again: attempts are counted over processes, epochs
        begin anew.
        """
        earlier = read_json(folder / "record.json") or {}
        content = {
            "schema": SCHEMA,
            **facts,
            "status": "running",
            "attempts": earlier.get("attempts", 0) + 1,
            "metrics": {},
            "stages": [],
            "error": None,
            "started": now(),
            "ended": None,
            "seconds": None,
            "seconds_full": None,
            "token": uuid.uuid4().hex,
        }
        record = cls(folder, content)
        folder.mkdir(parents=True, exist_ok=True)
        # before the record: who sees the new attempt must not see the old one's epochs
        (folder / "epochs.jsonl").write_text("")
        (folder / "layers.json").unlink(missing_ok=True)
        record._write()
        return record

    @classmethod
    def read(cls, folder: Path) -> "TrialRecord | None":
        content = read_json(folder / "record.json")
        return None if content is None else cls(folder, content)

    @property
    def status(self) -> str:
        return self.content.get("status", "running")

    @property
    def is_mine(self) -> bool:
        """Whether this attempt still runs, as far as the disk knows."""
        on_disk = read_json(self.folder / "record.json") or {}
        return (
            on_disk.get("token") == self.content.get("token")
            and on_disk.get("status") == "running"
        )

    def _check_mine(self) -> None:
        if not self.is_mine:
            raise RecordTakenError(
                f"{self.folder}: ended or begun again by another process"
            )

    def _write(self) -> None:
        write_atomic(self.folder / "record.json", to_json(self.content))

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Raises RecordTakenError."""
        self._check_mine()
        with open(self.folder / "epochs.jsonl", "a") as file:
            file.write(json.dumps(row, default=str) + "\n")

    def add_stage(self, row: dict[str, Any]) -> None:
        """Raises RecordTakenError."""
        self._check_mine()
        self.content["stages"].append(row)
        self._write()

    def epochs(self) -> list[dict[str, Any]]:
        """Its whole epoch rows so far, in order."""
        rows, _ = read_epochs(self.folder, 0)
        return rows

    def set_layers(self, rows: list[dict[str, Any]]) -> None:
        """The layers of the trial's model (`compress.measure.layers`)."""
        write_atomic(
            self.folder / "layers.json", to_json({"schema": SCHEMA, "layers": rows})
        )

    def finish(
        self, status: Status, *, error: BaseException | str | None = None, **facts: Any
    ) -> None:
        """Finalise; epochs reach the disk first. Raises RecordTakenError."""
        self._check_mine()
        epochs = self.folder / "epochs.jsonl"
        if epochs.exists():
            with open(epochs, "rb") as file:
                os.fsync(file.fileno())
        self.content |= {
            "status": status,
            "ended": now(),
            "error": _error(error),
            **facts,
        }
        self._write()

    def reopen(self, why: str) -> None:
        """Make an ended trial one that is to run again."""
        self.content |= {"status": "interrupted", "error": _error(why)}
        self._write()


def _error(error: BaseException | str | None) -> dict[str, str] | None:
    if error is None:
        return None
    if isinstance(error, str):
        return {"type": "ProcessDied", "message": error, "traceback": ""}
    if (
        details := getattr(error, "details", None)
    ) is not None:  # it was raised in another process
        return dict(details)
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}


def read_epochs(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """(whole epoch rows of a trial's folder from byte `offset` on, the offset after them).

    A file shorter than `offset` was begun again, and is read from its start.
    """
    try:
        with open(folder / "epochs.jsonl", "rb") as file:
            if offset > file.seek(0, os.SEEK_END):
                offset = 0
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def trial_folder(run: Path, trial_id: str) -> Path:
    return run / "trials" / trial_id


def named_record(run: Path, trial_id: str) -> TrialRecord:
    """The record of a trial that somebody asks for.

    Raises:
        ValueError: none of that name can be read.
    """
    record = TrialRecord.read(trial_folder(run, trial_id))
    if record is None:
        known = (
            sorted(p.name for p in (run / "trials").iterdir())
            if (run / "trials").is_dir()
            else []
        )
        raise ValueError(
            f"{run}: no trial {trial_id!r}; its trials:"
            f" {', '.join(known[:20]) or 'none'}"
        )
    return record


def trial_records(run: Path) -> Iterator[TrialRecord]:
    """All readable records of a run, by trial id."""
    trials = run / "trials"
    for folder in sorted(trials.iterdir()) if trials.is_dir() else ():
        record = TrialRecord.read(folder)
        if record is not None:
            yield record
