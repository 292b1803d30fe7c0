"""What became of each trial: typed records, one folder a trial.

`trials/<id>/plan.json` says what a trial is (`sweeps.run.plan`), `record.json` what became of it,
`epochs.jsonl` holds its epochs, `layers.json` the layers of its model and `classes.json` how well
that recognises each class. Only this module writes the last four, and only `sweeps.run.plan` the
first. A trial that has a plan and no record counts as running: the driver will start it, or end
its record if its process dies (`sweeps.drive.trial_events`).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from analysis.contract import (
    CLASSES_FILE,
    EPOCHS_FILE,
    LAYERS_FILE,
    PLAN_FILE,
    PREDICTIONS_FILE,
    RECOGNISED,
    RECORD_FILE,
    RECORD_SCHEMA,
    Objective,
    Status,
    finite_values,
)
from sweeps.run.faults import RecordTakenError, TrialError
from sweeps.run.folder import full_trial_id, trial_folder, trial_ids
from sweeps.run.plan import TrialPlan, read_plan, write_plan
from trainers.files import parse_json, read_json, write_atomic
from trainers.option_types import Strategy

Row = dict[str, Any]
"""One epoch of a stage's training, one layer or one class of a model: column → JSON value."""


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> bytes:
    """JSON text as the run folder's files hold it."""
    return json.dumps(value, indent=1, default=str).encode()


class _Part(BaseModel):
    """A part of a record. Metrics of records of earlier versions may be NaN or infinite."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Device(_Part):
    """What a trial computed on. `type` is cpu or cuda; `threads` are torch's."""

    type: str
    name: str
    threads: int


class Machine(_Part):
    """Where and with what a trial ran.

    Attributes:
        device: kind, name and threads.
        versions: library → version, of those that can change a result.
        host, pid: the trial's own process.
        world_size: processes that trained together.
        strategy: what each of them held of a model in training.
        code: what `sweeps.run.code_version.code_version` said there.
    """

    device: Device
    versions: dict[str, str]
    host: str = ""
    pid: int = 0
    world_size: int = 1
    strategy: Strategy = "ddp"
    code: dict[str, JsonValue] = Field(default_factory=dict)


class StageRow(_Part):
    """What happened to one stage: a row of a record's `stages`.

    Attributes:
        index: place in the pipeline, from 0.
        stage: its kind.
        key: its key in the stage cache.
        cached: whether it came from there.
        seconds: spent now.
        seconds_full: spent when it was computed.
    """

    index: int
    name: str
    stage: str
    phase: str
    key: str
    cached: bool
    seconds: float
    seconds_full: float
    metrics: dict[str, Any] = Field(default_factory=dict)


class Pruned(_Part):
    """Where a stopping rule ended a trial: stage, its epoch from 1, the metric compared by."""

    stage: str
    epoch: int
    metric: str


class Outcome(_Part):
    """How a trial stands or has ended.

    Attributes:
        status: see `analysis.contract.Status`.
        metrics: name → value, of the final model; of a pruned trial those of its last epoch.
        stage_runs: what happened to its stages so far.
        error: why it failed or was interrupted.
        feasible: whether a complete trial keeps all bounds.
        inputs: hashes of the source's weights and of the data.
        seconds: spent by this attempt.
        seconds_full: what it would have taken without the stage cache.
        pruned: where a stopping rule ended it.
    """

    status: Status = "running"
    metrics: dict[str, Any] = Field(default_factory=dict)
    stage_runs: tuple[StageRow, ...] = ()
    error: TrialError | None = None
    feasible: bool | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = None
    seconds_full: float | None = None
    pruned: Pruned | None = None


@dataclass
class TrialRecord:
    """One trial: its plan, its machine, and how it stands.

    The record is owned by one attempt at a time. An attempt that the driver has ended (pruned,
    interrupted), or that was begun anew elsewhere, can write no more; so a process that outlives
    its driver doubles nothing.

    Attributes:
        folder: the trial's folder.
        plan: what the trial is.
        machine: where it runs or ran; None where no attempt has come so far.
        attempts: how often it was begun, over all processes.
        token: of the attempt that owns the record.
        started, ended: UTC times, ISO 8601.
        earlier: those of the attempts before.
        outcome: how it stands.
    """

    folder: Path
    plan: TrialPlan
    machine: Machine | None = None
    attempts: int = 0
    token: str = ""
    started: str | None = None
    ended: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    outcome: Outcome = field(default_factory=Outcome)

    @classmethod
    def begin(
        cls, folder: Path, plan: TrialPlan, machine: Machine | None = None
    ) -> TrialRecord:
        """Start a trial, or start it again: attempts are counted on, epochs begin anew."""
        earlier = cls.read(folder)
        record = cls(
            folder,
            plan,
            machine,
            attempts=1 + (earlier.attempts if earlier is not None else 0),
            token=uuid.uuid4().hex,
            started=now(),
            earlier=() if earlier is None else earlier.spans(),
        )
        folder.mkdir(parents=True, exist_ok=True)
        # before the record: who sees the new attempt must not see the old one's epochs
        (folder / EPOCHS_FILE).write_text("")
        (folder / LAYERS_FILE).unlink(missing_ok=True)
        (folder / CLASSES_FILE).unlink(missing_ok=True)
        (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
        record._write()
        return record

    @classmethod
    def read(cls, folder: Path) -> TrialRecord | None:
        """The record in a trial's folder; None where neither plan nor record is whole.

        Raises:
            ValueError: a file is whole, but is no plan or record; it names the file.
        """
        plan = read_plan(folder)
        if plan is None:
            return None
        content = read_json(folder / RECORD_FILE)
        if content is None:
            return cls(folder, plan)
        try:
            return _parse(folder, plan, content)
        except ValidationError as error:
            raise ValueError(
                f"{folder / RECORD_FILE}: is no record of a trial: {error}"
            ) from error

    @property
    def trial_id(self) -> str:
        return self.plan.trial_id

    @property
    def status(self) -> Status:
        return self.outcome.status

    def values(self, objectives: Sequence[Objective]) -> list[float] | None:
        """The objectives in their order; None where the trial is not complete, or one of them is
        missing or no finite number.
        """
        if self.status != "complete":
            return None
        return finite_values(self.outcome.metrics, objectives)

    @property
    def is_mine(self) -> bool:
        """Whether this attempt still runs, as far as the disk knows."""
        on_disk = read_json(self.folder / RECORD_FILE) or {}
        token, status = on_disk.get("token", ""), on_disk.get("status", "running")
        return bool(token == self.token and status == "running")

    def spans(self) -> tuple[tuple[str, str], ...]:
        """Beginning and end of every attempt; one that was killed ended with its last sign."""
        if self.started is None:
            return self.earlier
        ended = self.last_sign() if self.ended is None else self.ended
        return (*self.earlier, (self.started, ended))

    def last_sign(self) -> str:
        """UTC time at which the trial last wrote, ISO 8601."""
        names = (RECORD_FILE, EPOCHS_FILE)
        files = [p for name in names if (p := self.folder / name).exists()]
        if not files:
            return now()
        moment = max(file.stat().st_mtime for file in files)
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")

    def _check_mine(self) -> None:
        if not self.is_mine:
            raise RecordTakenError(
                f"{self.folder}: another process has ended this attempt or begun a new one"
            )

    def _write(self) -> None:
        if not (self.folder / PLAN_FILE).exists():  # of version 0.1, or of a notebook
            write_plan(self.folder, self.plan)
        write_atomic(self.folder / RECORD_FILE, to_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """What `record.json` holds, in schema 2."""
        outcome = self.outcome.model_dump(mode="json")
        stages = outcome.pop("stage_runs")
        machine = None if self.machine is None else self.machine.model_dump(mode="json")
        return {
            "schema": RECORD_SCHEMA,
            "trial_id": self.trial_id,
            "status": outcome.pop("status"),
            "attempts": self.attempts,
            "token": self.token,
            "started": self.started,
            "ended": self.ended,
            "earlier": self.earlier,
            "machine": machine,
            "stages": stages,
            **outcome,
        }

    def add_epoch(self, row: Row) -> None:
        """Append an epoch's row. Raises RecordTakenError."""
        self._check_mine()
        with open(self.folder / EPOCHS_FILE, "a") as file:
            file.write(json.dumps(row, default=str) + "\n")

    def add_stage(self, row: StageRow) -> None:
        """Note that a stage has ended. Raises RecordTakenError."""
        self._check_mine()
        stages = (*self.outcome.stage_runs, row)
        self.outcome = self.outcome.model_copy(update={"stage_runs": stages})
        self._write()

    def epochs(self) -> list[Row]:
        """All whole rows of epochs so far, in order."""
        rows, _ = read_epochs(self.folder, 0)
        return rows

    def set_layers(self, rows: list[Row]) -> None:
        """Write the layers of the trial's model (`compress.measure.layers`).

        Raises RecordTakenError.
        """
        self._check_mine()
        content = {"schema": RECORD_SCHEMA, "layers": rows}
        write_atomic(self.folder / LAYERS_FILE, to_json(content))

    def set_classes(
        self, rows: list[Row], recognised: Mapping[str, Row] | None = None
    ) -> None:
        """Write what `compress.evaluated` says of each class, and of single images.

        Raises RecordTakenError.
        """
        self._check_mine()
        content: Row = {"schema": RECORD_SCHEMA, "classes": rows}
        if recognised:
            content[RECOGNISED] = dict(recognised)
        write_atomic(self.folder / CLASSES_FILE, to_json(content))

    def set_predictions(self, shown: dict[str, Any] | None) -> None:
        """Write what its predictions show (`compress.evaluated.shown_predictions`), if anything.

        Raises RecordTakenError.
        """
        self._check_mine()
        if shown is not None:
            content = {"schema": RECORD_SCHEMA, **shown}
            write_atomic(self.folder / PREDICTIONS_FILE, to_json(content))

    def finish(
        self,
        status: Status,
        *,
        error: BaseException | TrialError | str | None = None,
        ended: str | None = None,
        **facts: Any,
    ) -> None:
        """End the trial; its epochs reach the disk first.

        Args:
            status: any but running.
            error: why, where it did not complete.
            ended: when, UTC, ISO 8601; default: now.
            facts: further fields of `Outcome`.

        Raises:
            RecordTakenError: this attempt is over already.
        """
        self._check_mine()
        epochs = self.folder / EPOCHS_FILE
        if epochs.exists():
            with open(epochs, "rb") as file:
                os.fsync(file.fileno())
        said = None if error is None else TrialError.of(error)
        update = {"status": status, "error": said, **facts}
        self.outcome = Outcome.model_validate(dict(self.outcome) | update)
        self.ended = ended or now()
        self._write()

    def reopen(self, why: str) -> None:
        """Make an ended trial one that is to run again."""
        update = {"status": "interrupted", "error": TrialError.of(why)}
        self.outcome = self.outcome.model_copy(update=update)
        self._write()


def _parse(folder: Path, plan: TrialPlan, content: dict[str, Any]) -> TrialRecord:
    machine = content.get("machine")
    if content.get("schema") == 1:
        keys = ("device", "versions", "host", "pid", "world_size", "code")
        found = {key: content[key] for key in keys if content.get(key) is not None}
        machine = found if found.get("device") else None
    facts = {key: value for key, value in content.items() if value is not None}
    return TrialRecord(
        folder,
        plan,
        None if machine is None else Machine.model_validate(machine),
        attempts=facts.get("attempts", 0),
        token=facts.get("token", ""),
        started=facts.get("started"),
        ended=facts.get("ended"),
        earlier=tuple((start, end) for start, end in facts.get("earlier", ())),
        outcome=Outcome.model_validate(facts | {"stage_runs": facts.get("stages", ())}),
    )


def read_epochs(folder: Path, offset: int) -> tuple[list[Row], int]:
    """The whole rows of a trial's epochs from byte `offset` on, and the offset after them.

    A file shorter than `offset` was begun again, and is read from its start.
    """
    try:
        with open(folder / EPOCHS_FILE, "rb") as file:
            if offset > file.seek(0, os.SEEK_END):
                offset = 0
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    return [parse_json(line) for line in whole.splitlines()], offset + len(whole)


def named_record(run: Path, trial_id: str) -> TrialRecord:
    """The record of a trial that somebody asks for.

    Raises:
        ValueError: there is none of that name; it names those that there are.
    """
    record = TrialRecord.read(trial_folder(run, full_trial_id(trial_id)))
    if record is None:
        known = ", ".join(list(trial_ids(run))[:20])
        raise ValueError(f"{run}: no trial {trial_id!r}; its trials: {known or 'none'}")
    return record


def trial_records(run: Path) -> Iterator[TrialRecord]:
    """All trials of a run by their ids, without those whose files are half written."""
    for trial_id in trial_ids(run):
        record = TrialRecord.read(trial_folder(run, trial_id))
        if record is not None:
            yield record
