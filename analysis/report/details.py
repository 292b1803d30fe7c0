"""What the page says of one trial beside the columns of all: its stages, its classes, commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.configurations import is_numeric
from analysis.numbers import duration
from analysis.report.columns import compact
from analysis.report.delivery import commands_data
from analysis.run import Run

MAX_DETAILED = 300
"""Trials of which the page knows stages and classes, those of the front first."""
MAX_CLASSES = 200
"""Classes of a trial that the page knows."""


def detailed_trials(run: Run) -> list[str]:
    """The trials of which the page knows more, those of the front first."""
    of_front = [trial for ids in run.front()["trial_ids"] for trial in ids]
    return list(dict.fromkeys([*of_front, *run.trials["trial_id"]]))[:MAX_DETAILED]


def details(run: Run, row_of: Mapping[str, int]) -> dict[str, Any]:
    """By row the stages and classes of trials, and what `commands_data` gives.

    A stage is its name, phase, whether it came from the cache, its times as text, and the metric
    `measured` as its last epoch gave it, None where it trains nothing.
    """
    wanted = set(detailed_trials(run))
    measured = _measured(run)
    reached = _reached(run, measured, wanted)
    stages: dict[str, list[Any]] = {}
    columns = ["trial_id", "name", "phase", "cached", "seconds", "seconds_full"]
    mine = run.stages.loc[run.stages["trial_id"].isin(wanted), columns]
    for trial, name, phase, cached, spent, full in mine.to_numpy(dtype=object):
        entry = [
            None if pd.isna(name) else str(name),
            None if pd.isna(phase) else str(phase),
            not pd.isna(cached) and bool(cached),
            _time(spent),
            _time(full),
            reached.get((str(trial), str(name))),
        ]
        stages.setdefault(str(row_of[trial]), []).append(entry)
    return {
        "measured": measured,
        "unit": run.metrics.unit(measured) if measured else "",
        "stages": stages,
        "classes": _classes(run, wanted, row_of),
        **commands_data(run, [*wanted], row_of),
    }


def _measured(run: Run) -> str | None:
    """The metric of an epoch by which stages are compared: the first objective that epochs have,
    else the accuracy.
    """
    names = [objective.metric for objective in run.objectives] + ["accuracy"]
    epochs = run.epochs
    found = [
        name
        for name in names
        if name in epochs and is_numeric(epochs[name]) and epochs[name].notna().any()
    ]
    return found[0] if found else None


def _reached(
    run: Run, measured: str | None, wanted: set[str]
) -> dict[tuple[str, str], float | int | None]:
    """What the last epoch of each stage gave."""
    if measured is None:
        return {}
    epochs = run.epochs[run.epochs["trial_id"].isin(wanted)]
    columns = ["trial_id", "stage", measured]
    found = {}
    for trial, stage, value in epochs[columns].to_numpy(dtype=object):
        if not pd.isna(value):
            found[str(trial), str(stage)] = value
    return {key: compact(value) for key, value in found.items()}


def _time(seconds: Any) -> str:
    return "–" if pd.isna(seconds) else duration(float(seconds))


def _classes(
    run: Run, wanted: set[str], row_of: Mapping[str, int]
) -> dict[str, list[Any]]:
    """Of each trial its classes: name, images and accuracy in the validation part, and the
    accuracy on the test set; those that are recognised worst first.
    """
    found: dict[str, list[Any]] = {}
    columns = ["trial_id", "class", "images", "accuracy", "test_accuracy"]
    mine = run.classes.loc[run.classes["trial_id"].isin(wanted), columns]
    for trial, name, *figures in mine.to_numpy(dtype=object):
        entry = [str(name), *map(compact, figures)]
        found.setdefault(str(row_of[trial]), []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda e: min(v for v in (e[2], e[3], 2) if v is not None))
        del entries[MAX_CLASSES:]
    return found
