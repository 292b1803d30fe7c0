"""The trials that run now: how far each has come, from what it has recorded of its epochs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from analysis.contract import Objective
from analysis.numbers import duration, number
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord, read_epochs
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import SpecError

SECONDS_BETWEEN_LOOKS = 2.0
MOST = 0.95
"""Share of a trial that is done when nothing is left but to measure it."""


@dataclass
class RunningTrial:
    """One trial that runs.

    Attributes:
        trial_id: its id.
        stages: name and number of epochs of each of its stages, in order.
        begun: when it started, by the monotonic clock.
        token: of the attempt whose epochs were read.
        offset: byte of its epochs up to which they were read.
        row: its last epoch.
        curve: the epochs of its present stage.
        ended: names of the stages that have ended.
    """

    trial_id: str
    stages: Mapping[str, int] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    token: str = ""
    offset: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    ended: Sequence[str] = ()

    @property
    def stage(self) -> str:
        """The stage that it is in, as far as is known."""
        following = [name for name in self.stages if name not in self.ended]
        return following[0] if following else "measuring"

    @property
    def epochs(self) -> int:
        """Epochs of the present stage that are done."""
        return int(self.row.get("epoch", -1)) + 1 if self._is_current else 0

    @property
    def _is_current(self) -> bool:
        return self.row.get("stage") == self.stage

    @property
    def share(self) -> float:
        """Share of its epochs that is done, less than 1: its measurements follow."""
        total = sum(self.stages.values())
        done = sum(self.stages.get(name, 0) for name in self.ended) + self.epochs
        return min(done / total, MOST) if total else 0.0

    def said(self, objectives: Sequence[Objective]) -> str:
        """'finetune, epoch 3 of 6, accuracy 0.8733, 297 images/s, 12 s left'; the time is that of
        the present stage.
        """
        if not self.stages:
            return f"for {duration(time.monotonic() - self.begun)}"
        parts = [self.stage]
        of = self.stages.get(self.stage, 0)
        if of and self._is_current:
            parts.append(f"epoch {self.epochs} of {of}")
            parts += self._measured(objectives)
            speed, seconds = self.row.get("images_per_second"), self.row.get("seconds")
            if isinstance(speed, int | float):
                parts.append(f"{number(round(speed))} images/s")
            if isinstance(seconds, int | float) and of > self.epochs:
                parts.append(f"{duration(seconds * (of - self.epochs))} left")
        return ", ".join(parts)

    def facts(self) -> dict[str, JsonValue]:
        """The same as values; the seconds are those that the present stage still takes."""
        of, seconds = self.stages.get(self.stage, 0), self.row.get("seconds")
        left = None
        if self._is_current and isinstance(seconds, int | float):
            left = seconds * (of - self.epochs)
        return {
            "stage": self.stage if self.stages else None,
            "epoch": self.epochs,
            "epochs": of,
            "share": round(self.share, 4),
            "seconds_left": left,
        }

    def _measured(self, objectives: Sequence[Objective]) -> list[str]:
        """The first objective that the epoch has measured, else its accuracy."""
        names = [o.metric for o in objectives] + ["accuracy"]
        found = [name for name in names if isinstance(self.row.get(name), float)]
        return [f"{found[0]} {number(self.row[found[0]])}"] if found else []


class RunningTrials:
    """Reads now and then what the trials that run have recorded, in a folder that all nodes see.

    Args:
        run: the run folder.
        seconds: that pass between two looks.
    """

    def __init__(self, run: Path, seconds: float = SECONDS_BETWEEN_LOOKS) -> None:
        self.run, self.seconds = run, seconds
        self.trials: dict[str, RunningTrial] = {}
        self._next_look = 0.0

    def started(self, trial_id: str) -> None:
        """A trial runs from now on, or again."""
        self.trials[trial_id] = RunningTrial(trial_id)
        self._next_look = 0.0

    def ended(self, trial_id: str) -> None:
        """A trial runs no more."""
        self.trials.pop(trial_id, None)

    @property
    def share(self) -> float:
        """Trials' worth of work that is done by those that run."""
        return sum(trial.share for trial in self.trials.values())

    def look(self) -> bool:
        """Read what is new, if the last look was a while ago; whether it was read."""
        if time.monotonic() < self._next_look:
            return False
        for trial in self.trials.values():
            # a plan that cannot be read leaves its trial's stage unknown
            with contextlib.suppress(ValueError):
                folder = trial_folder(self.run, trial.trial_id)
                _follow(trial, TrialRecord.read(folder))
        self._next_look = time.monotonic() + self.seconds
        return True


def _follow(trial: RunningTrial, record: TrialRecord | None) -> None:
    if record is None or not record.attempts:  # planned, and not begun
        return
    if record.token != trial.token:
        trial.token, trial.offset, trial.row = record.token, 0, {}
        trial.curve = []
    if not trial.stages:
        trial.stages = _epochs_of(record)
    trial.ended = [stage.name for stage in record.outcome.stage_runs]
    rows, trial.offset = read_epochs(record.folder, trial.offset)
    trial.row = rows[-1] if rows else trial.row
    trial.curve = [
        row
        for row in [*trial.curve, *rows]
        if row.get("stage") == trial.row.get("stage")
    ]


def _epochs_of(record: TrialRecord) -> dict[str, int]:
    """Epochs of each stage of a trial's plan; 0 where its config cannot be read here."""
    found = {}
    for stage in record.plan.stages:
        try:
            config = build_stage(stage.kind, stage.config, f"stages.{stage.name}")
            found[stage.name] = config.num_epochs()
        except SpecError:
            found[stage.name] = 0
    return found
