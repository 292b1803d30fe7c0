"""A trial's work on a group of workers, from the trial's own process."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sweeps.run.storage import place_of
from sweeps.trial.execute import Execution, Plan, RowSink, execute
from sweeps.trial.worker_group import GroupShape, drop_group, kept_group
from trainers.training.fit import NonFiniteLossError


def execute_on_workers(plan: Plan, on_epoch: RowSink, on_stage: RowSink) -> Execution:
    """As `execute`, by `plan["workers"]` processes under TorchTrainer; the sinks are called here.

    Raises:
        RankFailed: the work raised on a worker.
        WorkersDied: a worker's process ended; called again, its fits go on from their last
            checkpoints.
    """
    shape = GroupShape(plan["workers"], plan["threads"], plan["gpus_per_worker"])
    sinks = {"epoch": on_epoch, "stage": on_stage}
    files = (  # Ray Train's own: all nodes must reach it
        f"{place_of(plan).tune_storage()}/workers"
    )
    group = kept_group(shape, files, (NonFiniteLossError, ValueError))
    try:
        result = group.run(_job, plan, lambda event: sinks[event["kind"]](event["row"]))
    finally:
        if not plan["keep_workers"]:
            drop_group()
    return Execution(**result)


def _job(plan: Plan, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    return asdict(
        execute(
            plan,
            lambda row: emit({"kind": "epoch", "row": row}),
            lambda row: emit({"kind": "stage", "row": row}),
        )
    )
