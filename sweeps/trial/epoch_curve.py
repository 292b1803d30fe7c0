"""The epochs of a trial that a stopping rule looks at.

Of one stage, epochs are counted over all its fits: epoch k of the trial is that stage's k-th row,
whether it was trained now or restored from a checkpoint, so that the count goes on where a killed
trial left it. Rows of a stage that came from the stage cache do not count: nothing could be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sweeps.run.plan import Stopping
from sweeps.run.record import Pruned, Row, TrialRecord
from trainers.config import FitOptions, TrainConfig
from trainers.training.epoch_metrics import epoch_metrics

if TYPE_CHECKING:  # torch: Tune's part of a trial's process does without
    from compress.pipeline import NamedStage
    from sweeps.spec.search_options import EarlyStopping


@dataclass(frozen=True)
class EpochReport:
    """An epoch as a stopping rule sees it.

    Attributes:
        epoch: from 1, over all fits of the stage.
        value: the metric that trials are compared by.
        cost: the second number that they are compared by; None where there is none.
        is_last: whether stopping after it would save nothing.
    """

    epoch: int
    value: float
    cost: float | None = None
    is_last: bool = False

    def to_row(self) -> dict[str, Any]:
        """As plain values under the attributes' names; without a cost where there is none."""
        row = {"epoch": self.epoch, "value": self.value, "is_last": self.is_last}
        return row if self.cost is None else row | {"cost": self.cost}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EpochReport:
        """From what `to_row` gave, whatever else is there."""
        return cls(row["epoch"], row["value"], row.get("cost"), row["is_last"])


def trained_stage(
    stages: Sequence[NamedStage], wanted: str | None
) -> NamedStage | None:
    """The stage of that name, or the last that trains; None where there is none."""
    fitting = [
        stage
        for stage in stages
        if isinstance(stage.config, FitOptions) and wanted in (None, stage.name)
    ]
    return fitting[-1] if fitting else None


def stopping_of(
    stages: Sequence[NamedStage], rule: EarlyStopping | None
) -> Stopping | None:
    """What the rule looks at in a trial of these stages; None where it looks at nothing."""
    stage = trained_stage(stages, rule.stage) if rule is not None else None
    if rule is None or stage is None:
        return None
    last = stage.config.epochs if isinstance(stage.config, TrainConfig) else None
    return Stopping(
        stage=stage.name,
        last_epoch=last,
        metric=rule.metric,
        cost=compared_cost(rule),
    )


def compared_cost(rule: EarlyStopping) -> str | None:
    """The second number that the rule compares trials by, if any."""
    return rule.cost if rule.scheduler == "moasha" else None


class EpochCounter:
    """Turns rows of epochs into reports: an `on_epoch` that passes on each epoch that counts."""

    def __init__(
        self, stopping: Stopping | None, report: Callable[[EpochReport], None]
    ) -> None:
        self.stopping, self.report, self.epoch = stopping, report, 0

    def __call__(self, row: Row) -> None:
        stopping = self.stopping
        if stopping is None or not _counts(row, stopping):
            return
        self.epoch += 1
        value, cost = row.get(stopping.metric), None
        if value is None:  # not evaluated at this epoch
            return
        if stopping.cost is not None:
            cost = row.get(stopping.cost)
            if cost is None:  # of a sweep that compared by no cost
                return
        self.report(
            EpochReport(
                self.epoch,
                float(value),
                None if cost is None else float(cost),
                is_last=self.epoch == stopping.last_epoch,
            )
        )


def _counts(row: Row, stopping: Stopping) -> bool:
    return row.get("stage") == stopping.stage and not row.get("cached")


def curve(rows: Iterable[Row], stopping: Stopping | None) -> list[EpochReport]:
    """What a trial with these rows reported."""
    reports: list[EpochReport] = []
    count = EpochCounter(stopping, reports.append)
    for row in rows:
        count(row)
    return reports


def prune(record: TrialRecord, report: EpochReport) -> None:
    """End a running trial's record as pruned after `report`, with the metrics of its last epoch.

    Raises:
        RecordTakenError: it has ended otherwise.
    """
    stopping = record.plan.stopping
    assert stopping is not None, "only a trial with a stopping rule is pruned"
    rows = [row for row in record.epochs() if _counts(row, stopping)]
    last: Row = rows[-1] if rows else {}
    metrics: dict[str, Any] = {
        name: last[name] for name in epoch_metrics() if name in last
    }
    seconds = None
    if record.started is not None:
        started = datetime.fromisoformat(record.started)
        seconds = (datetime.now(UTC) - started).total_seconds()
    record.finish(
        "pruned",
        metrics=metrics | {stopping.metric: report.value},
        seconds=seconds,
        pruned=Pruned(stage=stopping.stage, epoch=report.epoch, metric=stopping.metric),
    )
