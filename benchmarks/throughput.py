"""What the cluster's driver costs: trials that only sleep, on simulated slots.

python benchmarks/throughput.py slots [--slots 8] [--trials 200] [--seconds 1]
python benchmarks/throughput.py memory [--trials 1000]

slots: the wall time from the moment at which the last slot took its first trial to the last
trial's end, beside the ideal of the trials that began after it. memory: resident memory of
the driver's process over its finished trials.
"""

import argparse
import contextlib
import os
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from sweeps.check import check_spec
from sweeps.drive.cluster import start_ray
from sweeps.drive.driver import run_sweep
from sweeps.drive.progress import Progress
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Device, Machine, Outcome, TrialRecord, trial_records
from sweeps.spec.load import spec_from

_MIB = 2**20


def sleeping_trial(plan: TrialPlan, site: Site) -> Outcome:
    """A trial with its record, and sleep for work."""
    import time

    device = Device(type="cpu", name="", threads=1)
    machine = Machine(device=device, versions={}, host="", pid=os.getpid())
    record = TrialRecord.begin(trial_folder(site.run, plan.trial_id), plan, machine)
    time.sleep(plan.stages[0].config["lr"])
    metrics = {"accuracy": plan.draw["stages.finetune.min_lr"], "gmacs": 1.0}
    record.finish("complete", metrics=metrics, seconds=1.0, seconds_full=1.0)
    return record.outcome


def sweep(storage: Path, trials: int, seconds: float) -> Path:
    """Run it with random points; its run folder."""
    spec = {
        "name": "throughput",
        "storage": str(storage),
        "source": {"model": "resnet20_cifar"},
        "stages": {"finetune": {"epochs": 0}},
        "objectives": [
            {"metric": "accuracy", "mode": "max"},
            {"metric": "gmacs", "mode": "min"},
        ],
        "search": {
            "sampler": "random",
            "trials": trials,
            "space": {
                "stages.finetune.lr": {"choices": {"sleep": max(seconds, 1e-9)}},
                "stages.finetune.min_lr": {"low": 0.0, "high": 1.0},
            },
        },
    }
    checked = check_spec(spec_from(spec))
    with open(
        os.devnull, "w"
    ) as nowhere:  # a buffer would be memory that grows with the trials
        return run_sweep(
            checked,
            trial=sleeping_trial,
            progress=Progress(checked.spec.objectives, Console(file=nowhere)),
        ).folder


def slots(options: argparse.Namespace, storage: Path) -> None:
    """Print wall time and ratio to the ideal."""
    run = sweep(storage, options.trials, options.seconds)
    rows = list(trial_records(run))
    begun, ended = (
        np.sort([datetime.fromisoformat(getattr(r, key)).timestamp() for r in rows])
        for key in ("started", "ended")
    )
    first: dict[int, float] = {}
    for row in rows:
        at = datetime.fromisoformat(row.started).timestamp()
        pid = row.machine.pid
        first[pid] = min(at, first.get(pid, at))
    busy = max(first.values())
    later = int((begun > busy).sum())
    wall = ended[-1] - busy
    # at `busy` every slot has a trial that began at most one trial's time ago: half of it
    # is left on average
    ideal = (later + options.slots / 2) * options.seconds / options.slots
    print(
        f"{options.slots} slots ({len(first)} processes), {options.trials} trials of"
        f" {options.seconds:g} s: all slots busy {busy - begun[0]:.1f} s after the"
        f" first trial began; from then {later} trials in {wall:.1f} s, ideal"
        f" {ideal:.1f} s: {ideal / wall:.0%} of ideal"
    )


def memory(options: argparse.Namespace, storage: Path) -> None:
    """Print the driver's resident memory at tenths of the trials."""
    ended = threading.Event()

    def watch() -> None:
        told = -1
        while not ended.wait(0.5):
            done = (
                sum(1 for _ in (storage / "throughput" / "trials").glob("*"))
                if storage.is_dir()
                else 0
            )
            tenth = done * 10 // options.trials
            if tenth > told:
                told = tenth
                print(
                    f"{done:5} trials begun: driver {resident_mib():.0f} MiB",
                    flush=True,
                )

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.callback(ended.set)
        sweep(storage, options.trials, 0.0)
    print(
        f"{options.trials} trials of no work in {time.perf_counter() - began:.0f} s,"
        " tables and report included"
    )


def resident_mib() -> float:
    """Of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["slots", "memory"])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    options.trials = options.trials or {"slots": 200, "memory": 1000}[options.what]
    start_ray(options.slots if options.what == "slots" else 2)
    with tempfile.TemporaryDirectory() as folder:
        {"slots": slots, "memory": memory}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
