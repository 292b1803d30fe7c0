"""A sweep that is ended by a signal at random moments, and started again until it comes to its end.

python benchmarks/kill_driver.py [--rounds 10] [--seed 0] [--signal KILL] [--to driver]

Each round: a signal to a 12-trial sweep at a random moment after its first trial began, then the
sweep once more, uninterrupted. The signal goes to the driver alone, to its process group with all
that it started there (a closed terminal, `timeout`), or to every process below it (systemd,
Slurm). Asserts that exactly 12 trials are recorded, each complete and with the point and the
values of an uninterrupted sweep, that trials which were complete at the signal did not run again,
and that the front is the same. After TERM, HUP and INT also: exit code 130, no trial left running
in the records, tables, a report, and no traceback. The sampler is deterministic (one trial at a
time, TPE after a random start), the trials report three epochs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import analysis
from sweeps.check import check_spec
from sweeps.cli.terminal import INTERRUPTED, lasting_output
from sweeps.drive.driver import run_sweep
from sweeps.drive.metrics import units
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


def driver(storage: Path, output: Path) -> int:
    """Process id of a new driver: a fork, since the imports take longer than the sweep."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started us may ignore it
        code = 1
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                checked = checked_spec(storage)
                progress = Progress(
                    checked.spec.objectives, units(checked), Console(file=file)
                )
                with lasting_output():
                    outcome = run_sweep(checked, trial=trial, progress=progress)
                code = INTERRUPTED if outcome.interrupted else 0
            except BaseException:  # noqa: BLE001 (the fork ends here)
                traceback.print_exc(file=file)
            finally:
                file.flush()
                os._exit(code)
    return pid


def exit_code(pid: int, output: Path, seconds: float = 90.0) -> int:
    """Of a driver, which must end in time."""
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"no end within {seconds:.0f} s: {output.read_text()}")


def descendants(pid: int) -> list[int]:
    """All processes below one, from Linux's /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the fields after the name, which is in brackets: state, parent, …
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = children.get(pid, [])
    for child in found:
        found.extend(children.get(child, []))
    return found


def processes(pid: int, to: str) -> list[int]:
    """Who gets the signal."""
    below = descendants(pid)
    if to == "driver":
        return [pid]
    if to == "group":
        return [p for p in (pid, *below) if os.getpgid(p) == os.getpgid(pid)]
    return [pid, *below]


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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
    storage: Path,
    wanted: Any,
    moment: random.Random,
    usual_seconds: float,
    options: Any,
) -> str:
    """One round; a line about it."""
    run, output = storage / "killed", storage / "output.txt"
    storage.mkdir()
    number = signal.Signals[f"SIG{options.signal}"]
    pid = driver(storage, output)
    while not any(record.attempts for record in records(run).values()):
        time.sleep(0.01)
    after = moment.uniform(0, usual_seconds)
    time.sleep(after)
    send(number, processes(pid, options.to))
    sent = time.monotonic()
    code = exit_code(pid, output)
    took = time.monotonic() - sent
    before = records(run)
    if number != signal.SIGKILL:
        check_ending(run, code, output)
    complete = {k: r.ended for k, r in before.items() if r.status == "complete"}
    again = storage / "again.txt"
    assert exit_code(driver(storage, again), again) == 0, again.read_text()
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
        f"{options.signal} {after:4.1f} s in, ended {took:4.1f} s later with {code}:"
        f" {len(before):2} begun, {len(complete):2} complete; then {len(told)}, front {front}"
    )


def check_ending(run: Path, code: int, output: Path) -> None:
    """Assert that a driver which was asked to end has ended in order."""
    said = output.read_text()
    assert code == INTERRUPTED, (code, said)
    assert "Traceback" not in said, said
    assert "\x1b" not in said, said
    left = {r.status for r in records(run).values()}
    assert left <= {"complete", "interrupted"}, left
    assert len(analysis.load(run).trials) == len(records(run))
    assert (run / "report.html").exists(), said
    assert not (run / "driver.json").exists(), said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL"
    )
    parser.add_argument("--to", choices=("driver", "group", "all"), default="driver")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "whole"
        output = Path(folder) / "whole.txt"
        assert exit_code(driver(storage, output), output) == 0, output.read_text()
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
        for i in range(options.rounds):
            seed = options.seed + i
            line = killed_once(
                Path(folder) / str(i), wanted, random.Random(seed), usual, options
            )
            print(f"seed {seed}: {line}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
