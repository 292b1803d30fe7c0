"""A run in numbers and words, for the report and the command line."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.schema import STATUSES, metric_unit


def front_table(run: Run) -> pd.DataFrame:
    """The front as a table to print: trial_id, the objectives and the searched parameters, by their plain names."""
    front = run.front()
    objectives = {f"metric/{o.metric}": o.metric for o in run.objectives}
    params = {f"config/{p}": p for p in run.params if f"config/{p}" in front}
    return front[["trial_id", *objectives, *params]].rename(columns=objectives | params).reset_index(drop=True)


def totals(run: Run) -> dict[str, Any]:
    """Counts of trials by status, seconds spent, and seconds that the stage cache saved.

    Keys: "trials", "front", "status" (status -> count, those that occur), "seconds", "seconds_saved". The saving
    counts the trials that state both what they took and what the whole pipeline would have taken.
    """
    trials = run.trials
    counts = trials["status"].value_counts()
    saved = (trials["seconds_full"] - trials["seconds"]).dropna().clip(lower=0)
    return {
        "trials": len(trials),
        "front": len(run.front()),
        "status": {status: int(counts[status]) for status in STATUSES if status in counts},
        "seconds": float(trials["seconds"].sum()),
        "seconds_saved": float(saved.sum()),
    }


def stage_table(run: Run) -> pd.DataFrame:
    """For each stage: method, phase, runs, cache hits, seconds spent and seconds saved by the cache."""
    stages = run.stages.assign(
        saved=(run.stages["seconds_full"] - run.stages["seconds"])
        .clip(lower=0)
        .where(run.stages["cached"].fillna(False)),
        hit=run.stages["cached"].fillna(False).astype("int64"),
    )
    groups = stages.groupby(["name", "stage", "phase"], dropna=False, sort=False)
    table = groups.agg(
        position=("index", "mean"),
        runs=("hit", "size"),
        hits=("hit", "sum"),
        seconds=("seconds", "sum"),
        saved=("saved", "sum"),
    ).reset_index()
    return table.sort_values("position", kind="stable").drop(columns="position")


def failures(run: Run) -> pd.DataFrame:
    """Errors of the trials: error, the trial_ids that met it, traceback of the first, count; the commonest first."""
    failed = run.trials[run.trials["error"].notna()]
    groups = failed.groupby("error", sort=False).agg(
        trial_ids=("trial_id", list), traceback=("error_traceback", "first"), count=("trial_id", "size")
    )
    return groups.reset_index().sort_values("count", ascending=False, kind="stable").reset_index(drop=True)


def duration(seconds: float) -> str:
    """Seconds in words: '0.4 s', '35 s', '2 min 10 s', '3 h 5 min', '2 d 4 h'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def quantity(value: float, metric: str) -> str:
    """A metric's value as text with its unit; fractions as percent."""
    unit = metric_unit(metric)
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f") + (f" {unit}" if unit not in ("", "1") else "")
    return f"{value:.4g}" + (f" {unit}" if unit not in ("", "1", "10^9") else "")
