"""What the driver says as JSON, an object a line, for programs that start sweeps.

Each line has `event` and `time`: `note` (text), `started` (trial), `stage` (trial, stage),
`running` (trials; every few minutes), `ended` (trial, status, metrics, seconds, configuration,
error, on_front), and last `end` (folder, report, fault, exit_code).
"""

from __future__ import annotations

import json

from pydantic import JsonValue

from sweeps.drive.progress import Progress
from sweeps.drive.running import RunningTrial
from sweeps.run.record import TrialRecord, now


class JsonLines(Progress):
    """`Progress` for programs: it draws no bar and folds no line."""

    def tell(self, event: str, **values: JsonValue) -> None:
        """Print one line."""
        text = json.dumps({"event": event, "time": now(), **values})
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @property
    def _is_drawn(self) -> bool:
        return False

    def note(self, line: str) -> None:
        """A line of the driver's."""
        self.tell("note", text=line)

    def started(self, trial_id: str) -> None:
        """One more trial runs."""
        super().started(trial_id)
        self.tell("started", trial=trial_id)

    def _stage_ended(self, trial: RunningTrial, stage: str) -> None:
        self.tell("stage", trial=trial.trial_id, stage=stage)

    def _tell_standing(self) -> None:
        trials = {} if self.running is None else self.running.trials
        shown: list[JsonValue] = [
            {"trial": name, **trial.facts()} for name, trial in trials.items()
        ]
        self.tell("running", trials=shown)

    def _tell_end(self, record: TrialRecord, is_best: bool) -> None:
        outcome, error = record.outcome, record.outcome.error
        self.tell(
            "ended",
            trial=record.trial_id,
            status=record.status,
            metrics={o.metric: outcome.metrics.get(o.metric) for o in self.objectives},
            seconds=outcome.seconds,
            configuration=dict(record.plan.configuration),
            error=None if error is None else f"{error.type}: {error.message}",
            on_front=is_best,
        )
