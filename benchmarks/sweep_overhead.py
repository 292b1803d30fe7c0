"""What the search itself costs: trials that only sleep, beside the ideal.

Run: python benchmarks/sweep_overhead.py [--trials 24] [--seconds 1] [--cpus 2] [--repeats 3]

Prints the wall time of `run_sweep` (search, records, tables and report; Ray started before
the clock) and of its trials alone, with the ratio to trials × seconds / cpus.
"""

import argparse
import tempfile
import time

from sweeps.check import check_spec
from sweeps.drive.cluster import start_ray
from sweeps.drive.driver import run_sweep
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Outcome, TrialRecord
from sweeps.spec.load import spec_from
from trainers.seeding import derive_seed


def sleeping_trial(plan: TrialPlan, site: Site) -> Outcome:
    """A trial with its record, and sleep for work."""
    record = TrialRecord.begin(trial_folder(site.run, plan.trial_id), plan)
    time.sleep(plan.stages[0].config["lr"])
    metrics = {
        "accuracy": derive_seed(plan.number) / 2**63,
        "gmacs": derive_seed(plan.number, 1) / 2**63,
    }
    record.finish("complete", metrics=metrics, seconds=1.0, seconds_full=1.0)
    return record.outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    start_ray(options.cpus, 1)
    ideal = options.trials * options.seconds / options.cpus
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            spec = {
                "name": "overhead",
                "storage": folder,
                "source": {"model": "resnet20_cifar"},
                "stages": {"finetune": {"epochs": 0, "lr": options.seconds}},
                "objectives": [
                    {"metric": "accuracy", "mode": "max"},
                    {"metric": "gmacs", "mode": "min"},
                ],
                "search": {
                    "trials": options.trials,
                    "space": {"stages.finetune.min_lr": {"low": 0.0, "high": 1.0}},
                },
            }
            checked = check_spec(spec_from(spec))
            begun = time.perf_counter()
            run_sweep(checked, trial=sleeping_trial)
            wall = time.perf_counter() - begun
        print(
            f"repeat {repeat}: {wall:.1f} s for {options.trials} trials of"
            f" {options.seconds:g} s on {options.cpus} CPUs; ideal {ideal:.1f} s; ratio"
            f" {wall / ideal:.2f}"
        )


if __name__ == "__main__":
    main()
