"""A trial's work on a group of workers, from the trial's own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sweeps.run.folder import WORKERS_FOLDER
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import StageRow
from sweeps.run.storage import storage_of
from sweeps.trial.execute import Execution, RowSink, StageSink, execute
from sweeps.trial.worker_group import GroupShape, drop_group, kept_group
from trainers import plugins
from trainers.training.fit import NonFiniteLossError


def execute_on_workers(
    plan: TrialPlan, site: Site, on_epoch: RowSink, on_stage: StageSink
) -> Execution:
    """As `execute`, by `site.workers` processes under TorchTrainer; the sinks are called here.

    Raises:
        RankFailed: the work raised on a worker.
        WorkersDied: a worker's process ended; called again, its fits go on from their last
            checkpoints.
    """
    shape = GroupShape(site.workers, site.threads, site.gpus_per_worker)
    # Ray Train's own files, which all nodes must reach
    files = storage_of(site).tune_storage(WORKERS_FOLDER)
    group = kept_group(shape, files, (NonFiniteLossError, ValueError))

    def take(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            on_epoch(event["row"])
        else:
            on_stage(StageRow.model_validate(event["row"]))

    payload = (plan.model_dump(mode="json"), site.model_dump(mode="json"))
    try:
        result = group.run(_job, payload, take)
    finally:
        if not site.keep_workers:
            drop_group()
    return Execution(**result)


def _job(
    payload: tuple[dict[str, Any], dict[str, Any]],
    emit: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """What each worker does: as plain values, since a plugin's classes may not be loaded yet."""
    site = Site.model_validate(payload[1])
    plugins.load(site.plugins)
    plan = TrialPlan.model_validate(payload[0])
    return asdict(
        execute(
            plan,
            site,
            lambda row: emit({"kind": "epoch", "row": row}),
            lambda row: emit({"kind": "stage", "row": row.model_dump(mode="json")}),
        )
    )
