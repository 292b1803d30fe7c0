"""What a trial of two workers costs beside its own seconds, and whether two workers learn
what one does.

python benchmarks/distributed_trials.py overhead    six trials of 2 s each on 2 workers, on 2 CPUs
python benchmarks/distributed_trials.py accuracy    digits, 3 seeds, 1 worker against 2
"""

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Outcome, trial_records
from sweeps.spec.load import spec_from

SPEC: dict[str, Any] = {
    "source": {
        "model": "vit_tiny_patch16_224",
        "args": {
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 3,
            "num_heads": 3,
            "drop_path_rate": 0.0,
        },
    },
    "data": {"dataset": "digits", "val_fraction": 0.2},
    "objectives": [{"metric": "accuracy", "mode": "max"}],
    "measure": {"latency": False},
}
TRAINED = {
    "finetune": {
        "epochs": 15,
        "batch_size": 32,
        "lr": 1e-3,
        "lr_scaling": "unscaled",
        "warmup": "10%",
        "augment": "none",
    }
}


def sleeping_trial(plan: TrialPlan, site: Site, execute: Any = None) -> Outcome:
    """Two seconds on each worker of this process's group, recorded like a trial."""
    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution
    from sweeps.trial.worker_group import GroupShape, kept_group

    def sleep(seconds: float, emit: Any) -> None:
        import time

        time.sleep(seconds)
        emit({})

    def on_group(
        plan: TrialPlan, site: Site, on_epoch: Any, on_stage: Any
    ) -> Execution:
        shape = GroupShape(site.workers, site.threads, 0)
        group = kept_group(shape, str(site.run / "workers"))
        group.run(sleep, 2.0, lambda event: None)
        return Execution({"accuracy": 0.5}, [], 2.0, 2.0, {})

    return run_trial(plan, site, on_group)


def overhead(storage: Path) -> None:
    """Seconds from one trial's end to the next one's, which for the first holds the start
    of the workers.
    """
    spec = SPEC | {
        "name": "overhead",
        "storage": str(storage),
        "stages": {"random_init": {}},
        "search": {"trials": 6},
        "resources": {"workers": 2},
    }
    spec["search"]["space"] = {"source.args.depth": [1, 2, 3, 4, 5, 6]}
    begun = time.time()
    outcome = run_sweep(check_spec(spec_from(spec)), trial=sleeping_trial)
    ends = sorted(
        datetime.fromisoformat(r.ended).timestamp()
        for r in trial_records(outcome.folder)
    )
    steps = [
        after - before for before, after in zip([begun, *ends], ends, strict=False)
    ]
    print(
        f"start-up and first trial {steps[0]:.1f} s; then, of 2 s each:"
        f" {', '.join(f'{s:.2f}' for s in steps[1:])} s"
    )


def accuracy(storage: Path) -> None:
    """Test accuracy over three seeds, with one and with two workers."""
    for workers in (1, 2):
        spec = SPEC | {
            "name": f"workers-{workers}",
            "storage": str(storage),
            "stages": TRAINED,
            "search": {"trials": 1, "replicates": 3},
            "resources": {"workers": workers},
        }
        outcome = run_sweep(check_spec(spec_from(spec)))
        found = [
            r.outcome.metrics["test_accuracy"] for r in trial_records(outcome.folder)
        ]
        mean, spread = statistics.mean(found), statistics.stdev(found)
        print(
            f"{workers} worker(s): test accuracy {mean:.4f} ± {spread:.4f}"
            f" ({', '.join(f'{a:.4f}' for a in found)})"
        )


def main() -> None:
    """Print the chosen measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        {"overhead": overhead, "accuracy": accuracy}[parser.parse_args().what](
            Path(folder)
        )


if __name__ == "__main__":
    main()
