"""A sweep whose driver is killed at random moments, and started again until it ends.

python benchmarks/kill_driver.py [--kills 10] [--seed 0]

Each round: SIGKILL to the driver of a 12-trial sweep at a random moment after its first
trial began, then the sweep once more, uninterrupted. Asserts that exactly 12 trials are
recorded, each complete and with the point and the values of an uninterrupted sweep, that
trials which were complete at the kill did not run again, and that the front is the same.
The sampler is deterministic (one trial at a time, TPE after a random start), the trials
report three epochs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.drive.progress import Progress
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Outcome, TrialRecord, trial_records
from sweeps.search.refine import front_numbers
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from

TRIALS, EPOCHS, EPOCH_SECONDS = 12, 3, 0.15


def trial(plan: TrialPlan, site: Site) -> Outcome:
    """Epochs that only sleep; metrics that follow from the configuration."""
    record = TrialRecord.begin(trial_folder(site.run, plan.trial_id), plan)
    for epoch in range(EPOCHS):
        time.sleep(EPOCH_SECONDS)
        record.add_epoch({"stage": "finetune", "epoch": epoch, "accuracy": 0.5})
    lr = plan.configuration["stages.finetune.lr"]
    floor = plan.configuration["stages.finetune.min_lr"]
    metrics = {
        "accuracy": 1 - (lr - 0.3) ** 2 - 0.1 * floor,
        "gmacs": 1 + lr + floor**2,
    }
    seconds = EPOCHS * EPOCH_SECONDS
    record.finish("complete", metrics=metrics, seconds=seconds, seconds_full=seconds)
    return record.outcome


def checked_spec(storage: Path) -> Sweep:
    """Two objectives, two dimensions, one trial at a time."""
    space = {
        f"stages.finetune.{name}": {"low": 0.0, "high": 1.0}
        for name in ("lr", "min_lr")
    }
    space["stages.finetune.lr"]["low"] = 0.01
    return check_spec(
        spec_from(
            {
                "name": "killed",
                "storage": str(storage),
                "source": {"model": "resnet20_cifar"},
                "stages": {"finetune": {"epochs": 0}},
                "objectives": [
                    {"metric": "accuracy", "mode": "max"},
                    {"metric": "gmacs", "mode": "min"},
                ],
                "search": {
                    "trials": TRIALS,
                    "space": space,
                    "sampler_options": {"n_startup_trials": 4},
                },
                "resources": {"cpus": 1},
            }
        )
    )


def driver(storage: Path) -> int:
    """Process id of a new driver: a fork, since the imports take longer than the sweep."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                checked = checked_spec(storage)
                run_sweep(
                    checked,
                    trial=trial,
                    progress=Progress(checked.spec.objectives, Console(file=nowhere)),
                )
            code = 0
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def records(run: Path) -> dict[str, TrialRecord]:
    return {record.trial_id: record for record in trial_records(run)}


def outcome(run: Path) -> tuple[dict[str, Any], list[int]]:
    """(trial id → configuration and metrics, the front's numbers)"""
    found = records(run)
    told = {
        trial_id: (record.plan.configuration, record.outcome.metrics)
        for trial_id, record in found.items()
    }
    return told, sorted(
        front_numbers(
            list(found.values()), checked_spec(run.parent).spec.objectives, TRIALS
        )
    )


def killed_once(
    storage: Path, wanted: Any, moment: random.Random, usual_seconds: float
) -> str:
    """One round; a line about it."""
    run = storage / "killed"
    pid = driver(storage)
    while not records(run):
        time.sleep(0.01)
    after = moment.uniform(0, usual_seconds)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = records(run)
    complete = {k: r.ended for k, r in before.items() if r.status == "complete"}
    assert ended_well(driver(storage)), "the second driver failed"
    after_all = records(run)
    assert len(after_all) == TRIALS, sorted(after_all)
    assert {r.status for r in after_all.values()} == {"complete"}
    assert len({json.dumps(r.plan.draw) for r in after_all.values()}) == TRIALS, (
        "a point was tried twice"
    )
    assert {k: after_all[k].ended for k in complete} == complete, (
        "a complete trial ran again"
    )
    assert all(
        len((run / "trials" / k / "epochs.jsonl").read_text().splitlines()) == EPOCHS
        for k in after_all
    )
    told, front = outcome(run)
    assert told == wanted[0], (
        "other points or values than those of the uninterrupted sweep"
    )
    assert front == wanted[1], (front, wanted[1])
    return (
        f"killed {after:4.1f} s in: {len(before):2} begun, {len(complete):2} complete;"
        f" then {len(told)}, front {front}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "whole"
        assert ended_well(driver(storage)), "the uninterrupted sweep failed"
        found = records(storage / "killed").values()
        times = [
            datetime.fromisoformat(getattr(r, key))
            for r in found
            for key in ("started", "ended")
        ]
        usual = (max(times) - min(times)).total_seconds()
        wanted = outcome(storage / "killed")
        print(
            f"uninterrupted: {usual:.1f} s from first to last trial; front {wanted[1]}",
            flush=True,
        )
        for i in range(options.kills):
            seed = options.seed + i
            line = killed_once(
                Path(folder) / str(i), wanted, random.Random(seed), usual
            )
            print(f"seed {seed}: {line}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
