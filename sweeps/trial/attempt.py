"""One trial: a plan and a site in, an outcome in the record. It runs anywhere, without Ray."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from analysis.contract import Objective, is_feasible
from compress.keys import library_versions
from sweeps.run.faults import RecordTakenError, StorageFaultError, is_storage_fault
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Device, Machine, Outcome, TrialRecord
from sweeps.trial.epoch_curve import EpochCounter, EpochReport
from sweeps.trial.execute import Execution, RowSink, StageSink, execute
from trainers.machine import processor_name
from trainers.training.fit import NonFiniteLossError

Executor = Callable[[TrialPlan, Site, RowSink, StageSink], Execution]
"""(plan, site, on_epoch, on_stage) → what the work gave: `sweeps.trial.execute.execute`, here or
in a group of workers.
"""


class NonFiniteMetricError(ArithmeticError):
    """A metric of the final model is NaN or infinite."""


def run_trial(
    plan: TrialPlan,
    site: Site,
    execute: Executor = execute,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> Outcome:
    """Run a trial to its final record; what a stage raises ends in the record, not in the caller.

    Args:
        execute: does the work.
        on_epoch: gets each epoch that a stopping rule looks at, after the record has its row. Who
            wants the trial to end there ends its record (`sweeps.trial.epoch_curve.prune`) and
            raises SystemExit.

    Returns:
        How the trial ended: complete, failed, or what another process made of it.

    Raises:
        StorageFaultError: the storage is full or read-only.
    """
    folder = trial_folder(site.run, plan.trial_id)
    retries = site.max_failures
    earlier = TrialRecord.read(folder)
    if earlier is not None and earlier.status == "running":
        retries -= earlier.attempts  # attempts whose process died
    while True:
        record = TrialRecord.begin(folder, plan, machine_of(site))
        try:
            is_final = _attempt(record, site, execute, on_epoch)
        except RecordTakenError:
            now = TrialRecord.read(folder)
            return now.outcome if now is not None else Outcome(status="interrupted")
        if is_final or retries <= 0:
            return record.outcome
        retries -= 1


def _attempt(
    record: TrialRecord,
    site: Site,
    execute: Executor,
    on_epoch: Callable[[EpochReport], None],
) -> bool:
    """Do the work once and end the record; whether trying again could not end otherwise."""
    begun = time.perf_counter()
    count = EpochCounter(record.plan.stopping, on_epoch)  # each attempt counts from 1

    def note_epoch(row: dict[str, object]) -> None:
        record.add_epoch(row)
        count(row)

    try:
        done = execute(record.plan, site, note_epoch, record.add_stage)
    except RecordTakenError:
        raise
    except Exception as error:
        # the boundary: whatever a stage raises belongs in the record
        if is_storage_fault(error):
            with contextlib.suppress(OSError):
                record.finish("interrupted", error=error)
            raise StorageFaultError(str(error)) from error
        record.finish("failed", error=error, seconds=time.perf_counter() - begun)
        return _would_fail_again(error)
    except BaseException as error:
        if record.is_mine:  # the driver has ended a pruned one
            seconds = time.perf_counter() - begun
            record.finish("interrupted", error=error, seconds=seconds)
        raise
    diverged = _what_diverged(done.metrics)
    if diverged is not None:
        record.finish("failed", error=diverged, seconds=done.seconds)
        return True
    record.set_layers(done.layers)
    record.set_classes(done.classes, done.recognised)
    record.set_predictions(done.predictions)
    record.finish(
        "complete",
        metrics=done.metrics,
        seconds=done.seconds,
        seconds_full=done.seconds_full,
        feasible=is_feasible(done.metrics, _objectives(record.plan, site)),
        inputs=done.inputs,
    )
    return True


def _what_diverged(metrics: Mapping[str, object]) -> NonFiniteMetricError | None:
    """An error that names the metrics which are no finite numbers, if there are any."""
    not_finite = [
        f"{name} is {value}"
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if not not_finite:
        return None
    return NonFiniteMetricError(
        f"the final model's {', '.join(not_finite)}: it has diverged, or its source's"
        " weights have"
    )


def _objectives(plan: TrialPlan, site: Site) -> list[Objective]:
    """The sweep's, with what its plan knows of their bounds."""
    return [
        replace(o, bound=plan.bounds.get(o.metric, o.bound)) for o in site.objectives
    ]


def _would_fail_again(error: Exception) -> bool:
    """Whether the same bits would fail the same way."""
    is_deterministic = isinstance(error, NonFiniteLossError | ValueError)
    return is_deterministic or getattr(error, "deterministic", False)


def machine_of(site: Site) -> Machine:
    """This process's machine, as a record tells of it."""
    name = processor_name()
    if site.device == "cuda":
        # a trial of several workers has no GPU in its own process
        available = torch.cuda.is_available()
        name = torch.cuda.get_device_name("cuda") if available else "cuda"
    return Machine(
        device=Device(type=site.device, name=name, threads=site.threads),
        versions=library_versions(),
        host=socket.gethostname(),
        pid=os.getpid(),
        world_size=site.workers,
        strategy=site.strategy if site.workers > 1 else "ddp",
        code=site.code,
    )
