"""One trial: a plan in, record and metrics out. Runs anywhere, without Ray."""

import os
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.pipeline import library_versions
from sweeps.execute import Execution, Plan, Row, RowSink, execute
from sweeps.records import TrialRecord, trial_folder
from trainers.fit import NonFiniteLossError

Executor = Callable[[Plan, RowSink, RowSink], Execution]
"""(plan, on_epoch, on_stage) → what the work gave: `sweeps.execute.execute`, here or in a group of workers."""


def run_trial(plan: Plan, execute: Executor = execute, on_epoch: RowSink = lambda row: None) -> dict[str, Any]:
    """Run a trial to a final record; every failure of the trial ends in the record, not in the caller.

    Args:
        execute: does the work.
        on_epoch: sees every epoch row after the record has it.

    Returns:
        {"status": "complete" or "failed", "metrics": name → value}
    """
    folder = trial_folder(Path(plan["run"]), plan["trial_id"])
    retries_left = plan["max_failures"]
    earlier = TrialRecord.read(folder)
    if earlier is not None and earlier.status == "running":
        retries_left -= earlier.content.get("attempts", 1)  # attempts whose process died
    while True:
        record = TrialRecord.begin(folder, _facts(plan))
        begun = time.perf_counter()

        def note_epoch(row: Row, record: TrialRecord = record) -> None:
            record.add_epoch(row)
            on_epoch(row)

        try:
            done = execute(plan, note_epoch, record.add_stage)
        except Exception as error:  # noqa: BLE001 (the boundary: whatever a stage raises belongs in the record)
            record.finish("failed", error=error, seconds=time.perf_counter() - begun)
            # the same bits would fail the same way again
            deterministic = isinstance(error, NonFiniteLossError | ValueError)
            if deterministic or retries_left <= 0:
                return {"status": "failed", "metrics": {}}
            retries_left -= 1
            continue
        except BaseException as error:
            record.finish("interrupted", error=error, seconds=time.perf_counter() - begun)
            raise
        record.set_layers(done.layers)
        record.finish("complete", metrics=done.metrics, seconds=done.seconds, seconds_full=done.seconds_full)
        return {"status": "complete", "metrics": done.metrics}


def _facts(plan: Plan) -> dict[str, Any]:
    keep = ("trial_id", "number", "replicate", "seed", "config", "params", "source", "data", "measure")
    device = torch.device(plan["device"])
    name = _cpu_name()
    if device.type == "cuda":  # a trial of several workers has no GPU in its own process
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cuda"
    return {key: plan[key] for key in keep} | {
        "pipeline": plan["stages"],
        "versions": library_versions(),
        "device": {"type": device.type, "name": name, "threads": plan["threads"]},
        "world_size": plan.get("workers", 1),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
