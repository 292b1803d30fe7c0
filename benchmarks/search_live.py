"""Live searches with and without the cache's costs: seconds to a share of one hypervolume, and how
near the budget of hours each search came.

OMP_NUM_THREADS=1 python benchmarks/search_live.py [--seeds 3] [--hours 0.1]
[--spec benchmarks/search_channels.yaml] [--work FOLDER] [-o search-live.json]

For each seed two sweeps are run from nothing, each with a stage cache of its own, one after the
other: search.cost cached and none, in turns which comes first. Two trials run at a time. What has
been found is measured by the hypervolume over one reference point, as a share of that of all trials
of all sweeps together; seconds are counted from the start of a sweep's first trial. The time of a
search ends with its last trial. Sweeps that have ended in the work folder are not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import analysis
from analysis import pareto
from analysis.run import Run

COSTS = ("cached", "none")
SHARES = (0.8, 0.9, 0.95)
_DONE = "search-live-done"


def swept(
    spec: str, work: Path, cost: str, seed: int, hours: float, more: list[str]
) -> Path:
    """The run folder of a sweep, run unless it has ended before."""
    storage = work / f"{cost}-{seed}"
    if not (storage / _DONE).exists():
        options = {
            "name": "live",
            "storage": str(storage),
            "seed": seed,
            "search.cost": cost,
            "search.hours": hours,
            "search.trials": 10_000,
            "resources.concurrent": 2,
        }
        given = [f"{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "sweeps", "run", spec, *given, *more]
        subprocess.run(command, check=True)
        (storage / _DONE).touch()
    return storage / "live"


def timeline(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(n,) seconds at which complete trials ended, and (n, k) their objectives."""
    done = run.complete().sort_values("ended", kind="stable")
    clock = (done["ended"] - run.trials["started"].min()).dt.total_seconds()
    return clock.to_numpy(dtype=np.float64), run.values(done)


def all_runs(options: argparse.Namespace) -> dict[tuple[str, int], Run]:
    """The sweep of each cost and seed."""
    runs = {}
    for seed in range(options.seeds):
        for cost in COSTS if seed % 2 == 0 else COSTS[::-1]:
            folder = swept(
                options.spec, options.work, cost, seed, options.hours, options.overrides
            )
            runs[cost, seed] = analysis.load(folder)
    return runs


def compared(
    runs: dict[tuple[str, int], Run], hours: float
) -> Iterator[dict[str, Any]]:
    """A row for each sweep: its share of the whole hypervolume, seconds to shares of it, and its
    time over the budget's.
    """
    lines = {key: timeline(run) for key, run in runs.items()}
    goals = next(iter(runs.values())).objectives
    values = np.concatenate([found for _, found in lines.values()])
    reference = pareto.reference_point(values, goals)
    whole = pareto.hypervolume(values, goals, reference)
    for (cost, seed), (clock, found) in lines.items():
        shares = pareto.hypervolume_over_time(found, goals, reference) / whole
        trials = runs[cost, seed].trials
        spent = (trials["ended"].max() - trials["started"].min()).total_seconds()
        row = {"cost": cost, "seed": seed, "trials": len(clock), "share": shares[-1]}
        row["of_budget"] = spent / (3600 * hours)
        for share in SHARES:
            reached = np.flatnonzero(shares >= share)
            row[f"to_{share:g}"] = float(clock[reached[0]]) if len(reached) else None
        yield row


def summary(rows: list[dict]) -> None:
    """Means over seeds, a sweep that never came there counted as never."""
    for share in SHARES:
        for cost in COSTS:
            own = [row[f"to_{share:g}"] for row in rows if row["cost"] == cost]
            there = [seconds for seconds in own if seconds is not None]
            mean = f"{np.mean(there):.0f} s" if there else "never"
            print(f"{share:.0%}: {cost} {mean} ({len(there)} of {len(own)} seeds)")
    used = np.array([row["of_budget"] for row in rows])
    near = int((np.abs(used - 1) <= 0.05).sum())
    print(f"of the budget: {used.round(3).tolist()}; within 5 %: {near} of {len(used)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", default="benchmarks/search_channels.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--work", type=Path, default=Path("search-live"))
    parser.add_argument("-o", "--out", type=Path, default=Path("search-live.json"))
    parser.add_argument("overrides", nargs="*", help="of the spec")
    options = parser.parse_args()
    rows = []
    for row in compared(all_runs(options), options.hours):
        rows.append(row)
        print(json.dumps(row))
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    summary(rows)


if __name__ == "__main__":
    main()
