"""One trial: a plan in, record and metrics out. Runs anywhere, without Ray."""

import contextlib
import os
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.contract import Objective
from compress.keys import library_versions
from sweeps.run.record import (
    RecordTakenError,
    TrialRecord,
    is_storage_fault,
    trial_folder,
)
from sweeps.trial.epoch_curve import WatchedEpochs
from sweeps.trial.execute import Execution, Plan, Row, RowSink, execute
from sweeps.values import is_feasible
from trainers.training.fit import NonFiniteLossError

Executor = Callable[[Plan, RowSink, RowSink], Execution]
"""(plan, on_epoch, on_stage) → what the work gave: `sweeps.trial.execute.execute`, here or
in a group of workers.
"""


def run_trial(
    plan: Plan, execute: Executor = execute, on_epoch: RowSink = lambda row: None
) -> dict[str, Any]:
    """Run a trial to a final record; every failure of the trial ends in the record, not in
    the caller.

    Args:
        execute: does the work.
        on_epoch: gets what `sweeps.trial.epoch_curve.WatchedEpochs` reports, after the
            record has the row. Who wants the trial to end there finalises its record
            (`sweeps.trial.epoch_curve.prune`) and raises SystemExit.

    Returns:
        {"status": "complete" or "failed", or what another process made of it, "metrics":
        name → value}, and "fault" where the storage is full or read-only: the trial is
        interrupted, and no other need start.
    """
    folder = trial_folder(Path(plan["run"]), plan["trial_id"])
    retries_left = plan["max_failures"]
    earlier = TrialRecord.read(folder)
    if earlier is not None and earlier.status == "running":
        retries_left -= earlier.content.get(
            "attempts", 1
        )  # attempts whose process died
    while True:
        record = TrialRecord.begin(folder, _facts(plan))
        begun = time.perf_counter()
        watched = WatchedEpochs(
            plan.get("watch"), on_epoch
        )  # each attempt counts its epochs from 1

        def note_epoch(
            row: Row, record: TrialRecord = record, watched: WatchedEpochs = watched
        ) -> None:
            record.add_epoch(row)
            watched(row)

        try:
            done = execute(plan, note_epoch, record.add_stage)
        except RecordTakenError:
            now = TrialRecord.read(folder)
            return {
                "status": now.status if now is not None else "interrupted",
                "metrics": {},
            }
        except Exception as error:  # noqa: BLE001
            # the boundary: whatever a stage raises belongs in the record
            if is_storage_fault(error):
                with contextlib.suppress(OSError):
                    record.finish("interrupted", error=error)
                return {"status": "interrupted", "metrics": {}, "fault": str(error)}
            record.finish("failed", error=error, seconds=time.perf_counter() - begun)
            # the same bits would fail the same way again
            deterministic = isinstance(
                error, NonFiniteLossError | ValueError
            ) or getattr(error, "deterministic", False)
            if deterministic or retries_left <= 0:
                return {"status": "failed", "metrics": {}}
            retries_left -= 1
            continue
        except BaseException as error:
            if record.is_mine:  # the driver has finalised a pruned one
                record.finish(
                    "interrupted", error=error, seconds=time.perf_counter() - begun
                )
            raise
        record.set_layers(done.layers)
        record.finish(
            "complete",
            metrics=done.metrics,
            seconds=done.seconds,
            seconds_full=done.seconds_full,
            feasible=is_feasible(
                done.metrics, [Objective(**o) for o in plan.get("objectives", [])]
            ),
            inputs=done.inputs,
        )
        return {"status": "complete", "metrics": done.metrics}


def _facts(plan: Plan) -> dict[str, Any]:
    keep = (
        "trial_id",
        "number",
        "replicate",
        "seed",
        "config",
        "params",
        "source",
        "data",
        "measure",
    )
    optional = ("watch", "refines", "code")
    device = torch.device(plan["device"])
    name = cpu_name()
    if (
        device.type == "cuda"
    ):  # a trial of several workers has no GPU in its own process
        name = (
            torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cuda"
        )
    return (
        {key: plan[key] for key in keep}
        | {key: plan.get(key) for key in optional}
        | {
            "pipeline": plan["stages"],
            "versions": library_versions(),
            "device": {"type": device.type, "name": name, "threads": plan["threads"]},
            "world_size": plan.get("workers", 1),
            "global_batch": {
                s["name"]: s["config"]["batch_size"]
                for s in plan["stages"]
                if "batch_size" in s["config"]
            },
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    )


def cpu_name() -> str:
    """The processor, as its maker calls it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
