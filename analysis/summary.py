"""A run in numbers and words, for the report and the command line."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run import Run
from analysis.tables.schema import STATUSES, metric_unit


def front_table(run: Run, front: pd.DataFrame | None = None) -> pd.DataFrame:
    """The front (or `front`) to print: trial_id, the objectives and the searched
    parameters, by their plain names.

    Where points have replicates: their number as `seeds`, and each objective's standard
    deviation as `<metric> sd`.
    """
    front = run.front() if front is None else front
    columns = {"trial_id": "trial_id"}
    seeds = bool(len(front)) and bool((run.points()["replicates"] > 1).any())
    for objective in run.objectives:
        columns[f"metric/{objective.metric}"] = objective.metric
        if seeds:
            columns[f"sd/{objective.metric}"] = f"{objective.metric} sd"
    columns |= {"replicates": "seeds"} if seeds else {}
    columns |= {f"config/{p}": p for p in run.params if f"config/{p}" in front}
    return front[list(columns)].rename(columns=columns).reset_index(drop=True)


def totals(run: Run) -> dict[str, Any]:
    """Counts of trials by status, seconds spent, and seconds that the stage cache saved.

    Keys: "trials", "front", "status" (status -> count, those that occur), "seconds",
    "seconds_saved". The saving counts the trials that state both what they took and what
    the whole pipeline would have taken.
    """
    trials = run.trials
    counts = trials["status"].value_counts()
    saved = (trials["seconds_full"] - trials["seconds"]).dropna().clip(lower=0)
    return {
        "trials": len(trials),
        "front": len(run.front()),
        "status": {
            status: int(counts[status]) for status in STATUSES if status in counts
        },
        "seconds": float(trials["seconds"].sum()),
        "seconds_saved": float(saved.sum()),
    }


def stage_table(run: Run) -> pd.DataFrame:
    """For each stage: method, phase, runs, cache hits, seconds spent and seconds saved by
    the cache.
    """
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
    """Errors of the trials, those that differ in numbers only as one; the commonest first.

    Columns: error and traceback of the first, trial_ids that met it, count, and alike, the
    number of different texts.
    """
    failed = run.trials[run.trials["error"].notna()]
    kinds = failed["error"].str.replace(r"\d+(\.\d+)?", "0", regex=True)
    groups = failed.groupby(kinds, sort=False).agg(
        text=("error", "first"),
        trial_ids=("trial_id", list),
        traceback=("error_traceback", "first"),
        count=("trial_id", "size"),
        alike=("error", "nunique"),
    )
    table = groups.reset_index(drop=True).rename(columns={"text": "error"})
    return table.sort_values("count", ascending=False, kind="stable").reset_index(
        drop=True
    )


def advice(run: Run) -> list[tuple[str, int, str]]:
    """Which model to ship: (title, row of trials, what it offers) of each picked trial, the
    recommended one first.

    The knee is recommended, or the best of a single objective; the others say what they
    give and cost beside it.
    """
    picks = run.picks()
    if not picks:
        return []
    words = {"min": "lowest", "max": "highest"}
    titles = {"knee": "best compromise"} | {
        f"best {o.metric}": f"{words[o.mode]} {o.metric}" for o in run.objectives
    }
    by_row: dict[int, list[str]] = {}
    for name in sorted(picks, key=lambda name: name != "knee"):
        by_row.setdefault(picks[name], []).append(titles[name])
    metrics = [o.metric for o in run.objectives]
    values = dict(
        zip(run.points().index, run.values(run.points()).tolist(), strict=True)
    )
    base = values[next(iter(by_row))]
    found = []
    for row, names in by_row.items():
        if values[row] is base:
            text = ", ".join(
                f"{metric} {quantity(value, metric)}"
                for metric, value in zip(metrics, base, strict=True)
            )
        else:
            changes = [
                change(metric, *pair)
                for metric, *pair in zip(metrics, base, values[row], strict=True)
            ]
            text = ", ".join(c for c in changes if c) or "the same figures"
        found.append((", ".join(names), row, text))
    return found


def change(metric: str, before: float, after: float) -> str:
    """A change of a metric in words: '+3.2 points accuracy', '2.4 × the gmacs', '−38 %
    latency_ms'; '' for none.
    """
    if before == after:
        return ""
    sign = "+" if after > before else "−"
    if metric_unit(metric) == "fraction":
        return f"{sign}{100 * abs(after - before):.2g} points {metric}"
    if before <= 0 or after <= 0:
        return f"{metric} {quantity(before, metric)} → {quantity(after, metric)}"
    ratio = after / before
    return (
        f"{ratio:.3g} × the {metric}"
        if ratio >= 2
        else f"{sign}{100 * abs(ratio - 1):.2g} % {metric}"
    )


def command(run: Run, trial_id: str, what: str) -> str:
    """A shell command about a trial: `what` is "reproduce", or a format of `sweeps export`."""
    folder, name = run.source_of(trial_id)
    path, here = folder.resolve(), Path.cwd()
    place = str(path.relative_to(here) if path.is_relative_to(here) else path)
    options = (
        []
        if what == "reproduce"
        else ["--format", what, "-o", f"./{path.name}-{name}-{what}"]
    )
    dashes = ["--"] if place.startswith("-") or name.startswith("-") else []
    return shlex.join(
        [
            "sweeps",
            "reproduce" if what == "reproduce" else "export",
            *options,
            *dashes,
            place,
            name,
        ]
    )


def duration(seconds: float) -> str:
    """Seconds in words: '0.4 s', '35 s', '2 min 10 s', '3 h 5 min', '2 d 4 h'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def plus_minus(value: float, spread: float, metric: str) -> str:
    """A metric's mean and standard deviation with its unit, to two digits of the latter:
    '92.41 ± 0.64 %'.
    """
    unit = metric_unit(metric)
    scale = 100.0 if unit == "fraction" else 1.0
    if not spread > 1e-9 * abs(value):
        return quantity(value, metric)
    digits = min(max(1 - math.floor(math.log10(scale * spread)), 0), 9)
    text = f"{scale * value:,.{digits}f} ± {scale * spread:,.{digits}f}".replace(
        ",", "\u202f"
    )
    shown = {"fraction": " %", "1": "", "10^9": ""}.get(
        unit, f" {unit}" if unit else ""
    )
    return text + shown


def quantity(value: float, metric: str) -> str:
    """A metric's value as text with its unit; fractions as percent."""
    unit = metric_unit(metric)
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if (float(value).is_integer() or abs(value) >= 1e4) and abs(value) < 1e15:
        return f"{value:,.0f}".replace(",", "\u202f") + (
            f" {unit}" if unit not in ("", "1") else ""
        )
    return f"{value:.4g}" + (f" {unit}" if unit not in ("", "1", "10^9") else "")
