"""What the report's plots and its trials table show, as plain JSON data for Plotly;
untrusted text stays text.

Rows are positions in `Run.trials`; a configuration is known by the row of the trial that stands
for it. Numbers to draw with keep six significant digits, so that a thousand trials stay small;
numbers to read are text already, or are formatted by the page as `analysis.numbers` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.comparison import Comparison
from analysis.configurations import is_numeric
from analysis.fronts import KNEE, noise_of
from analysis.importance import importance
from analysis.numbers import label, plus_minus, quantity
from analysis.report.columns import (
    colour_column,
    columns,
    compact,
    compact_all,
    compared_parameters,
    levels,
    numbers_of,
)
from analysis.report.details import detailed_trials, details
from analysis.report.layers import layer_data
from analysis.report.predictions import shown_predictions
from analysis.run import Run
from analysis.summary import pick_title
from analysis.tables.schema import BLOCK_DIMENSIONS

MAX_CURVES = 1000
"""Trials whose learning curves the report carries."""
MAX_CURVE_VALUES = 60_000
"""Epochs of learning curves that the report carries, those of the front first."""
_NOT_CURVES = {"trial_id", "stage", "fit", "epoch", "step", "cached"}


def curves(run: Run) -> dict[str, Any]:
    """Per-epoch metrics of each trial's last training stage: metric names, and for each
    trial its row, stage, values.

    A stage's fits follow one another; of an epoch that was trained twice, the last is kept.
    """
    names = _curve_names(run)
    sizes = run.epochs.groupby("trial_id", sort=False).size()
    kept = run.epochs[run.epochs["trial_id"].isin(_chosen_curves(run, sizes))]
    values = [
        compact_all(numbers_of(kept[name]), run.metrics.unit(name)) for name in names
    ]
    stages = [None if pd.isna(stage) else str(stage) for stage in kept["stage"]]
    fits = kept["fit"].astype("string").fillna("")
    keys = list(zip(fits, kept["epoch"].fillna(-1), strict=True))
    rows = {trial: row for row, trial in enumerate(run.trials["trial_id"])}
    by_trial: dict[str, list[int]] = {}
    for index, trial in enumerate(kept["trial_id"]):
        by_trial.setdefault(trial, []).append(index)
    found = []
    for trial, mine in by_trial.items():
        stage = stages[mine[-1]]
        last = sorted({keys[i]: i for i in mine if stages[i] == stage}.values())
        found.append(
            {
                "row": rows[trial],
                "stage": stage,
                "values": [[column[i] for i in last] for column in values],
            }
        )
    shown = [
        {"name": n, "unit": (unit := run.metrics.unit(n)), "title": label(n, unit)}
        for n in names
    ]
    return {"metrics": shown, "trials": found, "of": len(sizes)}


def _curve_names(run: Run) -> list[str]:
    """Numeric columns of epochs: the objectives, then the run's other metrics as declared."""
    epochs = run.epochs
    names = [
        name
        for name in map(str, epochs)
        if name not in _NOT_CURVES
        and is_numeric(epochs[name])
        and epochs[name].notna().any()
    ]
    objectives = {objective.metric for objective in run.objectives}
    return sorted(run.metrics.in_order(names), key=lambda name: name not in objectives)


def _chosen_curves(run: Run, sizes: pd.Series) -> set[str]:
    """Trials whose curves are shown: those of the front, then others as they come."""
    of_front = [trial for ids in run.front()["trial_ids"] for trial in ids]
    order = [t for t in dict.fromkeys([*of_front, *sizes.index]) if t in sizes.index]
    total = sizes[order].cumsum()
    fitting = (total <= MAX_CURVE_VALUES) & (np.arange(len(total)) < MAX_CURVES)
    return set(total.index[fitting]) & set(run.trials["trial_id"])


def progress(run: Run) -> dict[str, Any]:
    """Hypervolume after each configuration in the order they ended, as a share of the box that
    the best values span.

    Empty where no trial is eligible.
    """
    done = run.configurations().sort_values(["ended", "trial_id"], kind="stable")
    values = run.values(done)
    keep = pareto.eligible(values, run.objectives)
    if not run.objectives or not keep.any():
        return {"rows": [], "share": [], "reference": ""}
    reference = run.reference()
    point = np.array(list(reference.values()))
    signs = np.array([objective.sign for objective in run.objectives])
    box = float(np.prod(point * signs - (values[keep] * signs).min(axis=0)))
    volumes = pareto.hypervolume_over_time(values, run.objectives, point) / box
    on_front = int(pareto.front_mask(values, run.objectives).sum())
    is_exact = pareto.is_exact(on_front, len(run.objectives))
    return {
        "rows": [int(i) for i in done.index],
        "share": [compact(v) for v in volumes],
        "reference": ", ".join(
            f"{metric} {quantity(value, run.metrics.unit(metric))}"
            for metric, value in reference.items()
        )
        + ("" if is_exact else "; approximate"),
    }


def effects(run: Run) -> list[dict[str, Any]]:
    """For each comparable parameter and value: the eligible configurations, how many have finite
    objectives, and mean and standard deviation of every objective as text.
    """
    done = run.configurations()
    values = run.values(done)
    eligible = pareto.eligible(values, run.objectives)
    units = [run.metrics.unit(objective.metric) for objective in run.objectives]
    found = []
    for name in compared_parameters(run):
        names, codes = levels(done[f"config/{name}"])
        if len(names) < 2:
            continue
        shown = []
        for index, level in enumerate(names):
            mine = np.asarray(codes) == index
            part = values[mine & np.isfinite(values).all(axis=1)]
            shown.append(
                {
                    "value": level,
                    "rows": [int(row) for row in done.index[mine & eligible]],
                    "count": len(part),
                    "shown": _means(part, units),
                }
            )
        found.append({"parameter": name, "key": f"config/{name}", "levels": shown})
    return found


def _means(values: np.ndarray, units: list[str]) -> list[str]:
    """Mean ± standard deviation of each column of (n, k) values."""
    if not len(values):
        return [quantity(None, unit) for unit in units]
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else [None] * len(units)
    return [
        plus_minus(float(mean), None if sd is None else float(sd), unit)
        for mean, sd, unit in zip(values.mean(axis=0), spread, units, strict=True)
    ]


def importances(run: Run) -> list[dict[str, Any]]:
    """Parameter importance for the page; see `analysis.importance`."""
    return [
        {
            "parameter": item.parameter,
            "shares": [compact(v) for v in item.shares],
            "count": item.count,
            "conditional": item.conditional,
        }
        for item in importance(run)
    ]


def comparison(found: Comparison | None) -> dict[str, Any] | None:
    """Groups for the page; see `analysis.comparison`."""
    if found is None:
        return None
    groups = [
        {
            "name": group.name,
            "curves": {
                axis: [[compact(v) for v in x], [compact(v) for v in y]]
                for axis, (x, y) in group.curves.items()
            },
        }
        for group in found.groups
    ]
    return {
        "by": found.by,
        "groups": groups,
        "budget": found.budget,
        "time": compact(found.time),
    }


def surfaces(run: Run) -> list[dict[str, Any]]:
    """Attainment surfaces over seeds, level and points, of two objectives and two seeds or
    more; else none.
    """
    done = run.complete()
    if len(run.objectives) != 2 or done["replicate"].nunique() < 2 or run.members:
        return []
    done = done[done["replicate"].notna()]
    seeds = [int(v) for v in done["replicate"]]
    found = pareto.attainment(run.values(done), seeds, run.objectives)
    return [
        {"level": level, "points": [[compact(v) for v in p] for p in points]}
        for level, points in found.items()
    ]


def noise(run: Run) -> dict[str, Any] | None:
    """The objective with measured quartiles and the front that ignores differences inside
    them, or None.
    """
    rows = run.configurations()
    found = noise_of(rows, run.objectives)
    if found is None:
        return None
    column, low, high = found
    keys = [str(int(row)) for row in rows.index]
    return {
        "metric": run.objectives[column].metric,
        "low": dict(zip(keys, compact_all(low), strict=True)),
        "high": dict(zip(keys, compact_all(high), strict=True)),
        "front": [int(row) for row in run.front(noise=True).index],
    }


def baseline(run: Run) -> dict[str, Any] | None:
    """The baseline's name, and its values by column; None where it was not measured."""
    found = run.baseline
    if found is None:
        return None
    values = {f"metric/{name}": value for name, value in found.metrics.items()}
    if found.seconds is not None:
        values["seconds"] = found.seconds
    return {"name": found.name, "values": values}


def notes(run: Run, row_of: Mapping[str, int]) -> dict[str, Any]:
    """Notes and tags by row."""
    return {
        str(row_of[trial]): {"text": note.text, "tags": list(note.tags)}
        for trial, note in run.notes.items()
        if trial in row_of and (note.text or note.tags)
    }


def objectives(run: Run) -> list[dict[str, Any]]:
    """The objectives, with their bounds as number and as text."""
    found = []
    for objective in run.objectives:
        unit = run.metrics.unit(objective.metric)
        limit = objective.limit
        if limit is not None and math.isnan(limit):  # it waits for the baseline
            limit = None
        shown = None if limit is None else quantity(limit, unit)
        found.append(
            {
                "metric": objective.metric,
                "mode": objective.mode,
                "bound": limit,
                "shown": shown,
            }
        )
    return found


def _errors(run: Run) -> dict[str, Any]:
    """Errors and tracebacks by row; a traceback that several trials share stands once."""
    texts = [None if pd.isna(v) else str(v) for v in run.trials["error"]]
    traces = [None if pd.isna(v) else str(v) for v in run.trials["error_traceback"]]
    unique = list(dict.fromkeys(t for t in traces if t))
    index = {trace: number for number, trace in enumerate(unique)}
    return {
        "error": {str(row): text for row, text in enumerate(texts) if text},
        "trace": {str(row): index[trace] for row, trace in enumerate(traces) if trace},
        "tracebacks": unique,
    }


def page_data(
    run: Run, compared: Comparison | None = None, with_predictions: bool = True
) -> dict[str, Any]:
    """Everything that the page's script draws, as JSON data."""
    trials, front, rows = run.trials, run.front(noise=False), run.configurations()
    eligible = np.zeros(len(rows), dtype=bool)
    if run.objectives:
        eligible = pareto.eligible(run.values(rows), run.objectives)
    row_of = {trial: row for row, trial in enumerate(trials["trial_id"])}
    members = [[row_of[trial] for trial in ids] for ids in rows["trial_ids"]]
    picks = sorted(run.picks().items(), key=lambda pick: pick[0] != KNEE)
    return {
        "name": re.sub(r"[^\w.-]+", "-", run.heading).strip("-"),  # of files
        "objectives": objectives(run),
        "ids": [str(v) for v in trials["trial_id"]],
        "status": [str(v) for v in trials["status"]],
        **_errors(run),
        "replicates": {
            str(int(row)): own
            for row, own in zip(rows.index, members, strict=True)
            if len(own) > 1
        },
        "front": [int(row) for row in front.index],
        "eligible": [int(row) for row in rows.index[eligible]],
        "picks": [[pick_title(run, name), row] for name, row in picks],
        "columns": columns(run),
        "colour": f"config/{compared.by}" if compared else colour_column(run),
        "curves": curves(run),
        "progress": progress(run),
        "effects": effects(run),
        "importance": importances(run),
        "layers": layer_data(run),
        "dimensions": BLOCK_DIMENSIONS,
        "noise": noise(run),
        "baseline": baseline(run),
        "notes": notes(run, row_of),
        "details": details(run, row_of),
        "predictions": shown_predictions(
            run, detailed_trials(run) if with_predictions else (), row_of
        ),
        "surfaces": surfaces(run),
        "compare": comparison(compared),
    }
