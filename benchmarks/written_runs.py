"""Run folders that are written, not run: trials that ended with given metrics and seconds."""

from collections.abc import Mapping
from pathlib import Path

from analysis.contract import PLAN_FILE, RECORD_FILE, RECORD_SCHEMA
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan
from sweeps.run.record import Outcome, StageRow, TrialRecord, now, to_json
from sweeps.search.prefixes import REST


def stage_rows(seconds: Mapping[str, float]) -> tuple[StageRow, ...]:
    """Rows of stages that took so long; `REST` is none."""
    return tuple(
        StageRow(
            index=index,
            name=name,
            stage=name,
            phase="train",
            key=name,
            cached=False,
            seconds=spent,
            seconds_full=spent,
        )
        for index, (name, spent) in enumerate(seconds.items())
        if name != REST
    )


def write_trial(
    run: Path,
    plan: TrialPlan,
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
) -> None:
    """Plan and record of a trial that ended, without waiting for the disk."""
    folder = trial_folder(run, plan.trial_id)
    folder.mkdir(parents=True)
    record = TrialRecord(folder, plan, started=now(), ended=now())
    record.outcome = Outcome(
        status="complete",
        metrics=dict(metrics),
        stage_runs=stage_rows(seconds),
        seconds=sum(seconds.values()),
    )
    content = {"schema": RECORD_SCHEMA, **plan.model_dump(mode="json")}
    (folder / PLAN_FILE).write_bytes(to_json(content))
    (folder / RECORD_FILE).write_bytes(to_json(record.to_json()))
