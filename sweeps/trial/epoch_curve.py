"""The epochs of a trial that early stopping looks at.

Of the stage that is watched, epochs are counted over all its fits: epoch k of the trial is
its k-th row, be it trained now or restored from a checkpoint, so that the count goes on
where a killed trial left it. Rows of a stage that came from the cache are none: there is
nothing left to save.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from compress.pipeline import NamedStage
from sweeps.run.record import TrialRecord
from sweeps.spec.model import EarlyStopping
from trainers.config import FitOptions, TrainConfig

Row = dict[str, Any]
SEEN = ("accuracy", "top5_accuracy", "loss", "train_loss")
"""What a pruned trial's record keeps of its last epoch."""


def watched_stage(
    stages: Sequence[NamedStage], wanted: str | None
) -> NamedStage | None:
    """The stage of that name, or the last that trains; None where there is none."""
    fitting = [
        s
        for s in stages
        if isinstance(s.config, FitOptions) and wanted in (None, s.name)
    ]
    return fitting[-1] if fitting else None


def watch_of(stages: Sequence[NamedStage], rule: EarlyStopping | None) -> Row | None:
    """The `watch` of a plan: stage, metric, the epoch (from 1) after which stopping saves
    nothing, if known, and cost.
    """
    stage = watched_stage(stages, rule.stage) if rule is not None else None
    if rule is None or stage is None:
        return None
    last = stage.config.epochs if isinstance(stage.config, TrainConfig) else None
    return {"stage": stage.name, "last_epoch": last} | compared(rule)


def compared(rule: EarlyStopping) -> Row:
    """The names of an epoch row's fields that trials are compared by."""
    return {"metric": rule.metric} | (
        {"cost": rule.cost} if rule.scheduler == "moasha" else {}
    )


class WatchedEpochs:
    """An `on_epoch`: passes on {"epoch": from 1, "value", "is_last"}, and "cost" if wanted,
    for each row that counts.
    """

    def __init__(self, watch: Row | None, report: Callable[[Row], None]) -> None:
        self.watch, self.report, self.epoch = watch, report, 0

    def __call__(self, row: Row) -> None:
        watch = self.watch
        if watch is None or row.get("stage") != watch["stage"] or row.get("cached"):
            return
        self.epoch += 1
        found = {"value": watch["metric"]} | (
            {"cost": watch["cost"]} if "cost" in watch else {}
        )
        numbers = {
            name: float(row[column])
            for name, column in found.items()
            if row.get(column) is not None
        }
        if len(numbers) == len(
            found
        ):  # else: not evaluated at this epoch, or of a sweep that watched no cost
            self.report(
                {"epoch": self.epoch, "is_last": self.epoch == watch["last_epoch"]}
                | numbers
            )


def curve(rows: Iterable[Row], watch: Row | None) -> list[Row]:
    """What a trial with these rows reported."""
    seen: list[Row] = []
    note = WatchedEpochs(watch, seen.append)
    for row in rows:
        note(row)
    return seen


def prune(record: TrialRecord, report: Row) -> None:
    """Finalise a running trial's record as pruned after `report`, with what its last
    watched epoch told.
    """
    watch = record.content["watch"]
    rows = [
        row
        for row in record.epochs()
        if row.get("stage") == watch["stage"] and not row.get("cached")
    ]
    metrics = (
        {name: rows[-1][name] for name in SEEN if name in rows[-1]} if rows else {}
    )
    started = datetime.fromisoformat(record.content["started"])
    record.finish(
        "pruned",
        metrics=metrics | {watch["metric"]: report["value"]},
        seconds=(datetime.now(UTC) - started).total_seconds(),
        pruned={
            "stage": watch["stage"],
            "epoch": report["epoch"],
            "metric": watch["metric"],
        },
    )
