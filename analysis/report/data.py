"""What the report's plots and its trials table show, as plain JSON data for Plotly;
untrusted text stays text.

Rows are positions in `Run.trials`; a point is known by the row of the trial that stands for
it. Numbers keep six significant digits, so that a thousand trials stay small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.comparison import Comparison
from analysis.importance import importance
from analysis.points import noise_of
from analysis.report.layers import layer_data
from analysis.run import Run
from analysis.tables.schema import metric_unit, well_known

MAX_LEVELS = 8
"""A categorical parameter with more values than this is not offered as a default colour,
nor compared by value.
"""
FEW_VALUES = 6
"""A numeric parameter with at most so many values is compared by value too."""
MAX_METRICS = 24
"""Metrics beside the objectives that the report carries."""
MAX_CURVES = 1000
"""Trials whose learning curves the report carries."""
MAX_CURVE_VALUES = 60_000
"""Epochs of learning curves that the report carries, those of the front first."""
NOT_SET = "–"
"""Shown for a parameter that a trial does not have, as the one of an alternative it did not
choose.
"""


def compact(value: Any) -> Any:
    """A JSON number with six significant digits, integers whole; None for missing and
    non-finite ones.
    """
    if value is None or value is pd.NA:
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    short = float(f"{number:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short


def compact_all(series: pd.Series) -> list[float | int | None]:
    """`compact` of every value of a numeric column, many at a time."""
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    known = np.isfinite(values)
    digits = np.zeros(len(values))
    sized = known & (values != 0)
    digits[sized] = 5 - np.floor(np.log10(np.abs(values[sized])))
    up, down = 10.0 ** np.clip(digits, 0, 300), 10.0 ** np.clip(-digits, 0, 300)
    with np.errstate(over="ignore", invalid="ignore"):
        short = np.where(
            digits >= 0, np.round(values * up) / up, np.round(values / down) * down
        )
    exact = values == np.floor(values)
    return [
        (int(v) if e and abs(v) < 2**53 else s) if k else None
        for v, s, e, k in zip(
            values.tolist(), short.tolist(), exact, known, strict=True
        )
    ]


def is_numeric(series: pd.Series) -> bool:
    """Whether a column of a run's table holds numbers, and not booleans."""
    return bool(
        pd.api.types.is_numeric_dtype(series.dtype)
        and not pd.api.types.is_bool_dtype(series.dtype)
    )


def levels(series: pd.Series) -> tuple[list[str], list[int]]:
    """The distinct values of a column as text, sorted, `NOT_SET` last, and each row's index
    into them.
    """
    distinct = sorted(series.dropna().unique())
    names = [
        str(bool(v)).lower() if pd.api.types.is_bool_dtype(series.dtype) else _short(v)
        for v in distinct
    ]
    code = {value: index for index, value in enumerate(distinct)}
    codes = [len(distinct) if pd.isna(value) else code[value] for value in series]
    return ([*names, NOT_SET] if len(distinct) in codes else names), codes


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def spans_decades(values: np.ndarray) -> bool:
    """Whether finite positive values span so much that a log scale shows them better."""
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() / values.min() >= 30)


def column_data(run: Run, name: str, role: str) -> dict[str, Any]:
    """One column for the page: key, label, role, unit, kind ("num" or "cat"), whether it
    spans decades, its values.
    """
    series = run.trials[name]
    label = name.partition("/")[2] or name
    unit = (
        metric_unit(label)
        if role in ("objective", "metric")
        else "s"
        if label.startswith("seconds")
        else ""
    )
    data: dict[str, Any] = {"key": name, "label": label, "role": role, "unit": unit}
    if is_numeric(series):
        log = spans_decades(series.to_numpy(dtype="float64", na_value=np.nan))
        return data | {"kind": "num", "log": log, "values": compact_all(series)}
    names, codes = levels(series)
    return data | {"kind": "cat", "levels": names, "values": codes}


def columns(run: Run) -> list[dict[str, Any]]:
    """The columns that the page knows: objectives, searched parameters, other metrics, and
    the trials' times.
    """
    objectives = [f"metric/{objective.metric}" for objective in run.objectives]
    params = [
        f"config/{param}" for param in run.params if f"config/{param}" in run.trials
    ]
    others = [
        c
        for c in map(str, run.trials)
        if c.startswith("metric/")
        and c not in objectives
        and run.trials[c].notna().any()
    ]
    # what every trial measures first, then what its stages report
    others.sort(
        key=lambda name: (
            name != "metric/test_accuracy",
            not well_known(name.partition("/")[2]),
        )
    )
    chosen: list[tuple[list[str], str]] = [
        (objectives, "objective"),
        (params, "param"),
        (others[:MAX_METRICS], "metric"),
    ]
    return [
        column_data(run, name, role) for names, role in chosen for name in names
    ] + [column_data(run, "seconds", "time")]


def explained(groups: list[int], values: np.ndarray) -> float:
    """Share of the variance of the ranks of `values` that the groups explain, adjusted for
    their number; <= 1.
    """
    known = np.isfinite(values)
    frame = pd.DataFrame(
        {"group": np.asarray(groups)[known], "rank": pd.Series(values[known]).rank()}
    )
    n, g = len(frame), frame["group"].nunique()
    total = float(((frame["rank"] - frame["rank"].mean()) ** 2).sum()) if n else 0.0
    if g < 2 or n <= g or total == 0:
        return 0.0
    within = float(
        ((frame["rank"] - frame.groupby("group")["rank"].transform("mean")) ** 2).sum()
    )
    return 1.0 - (within / (n - g)) / (total / (n - 1))


def compared_params(run: Run) -> list[str]:
    """Searched parameters whose values can be compared one by one: categorical, or numeric
    with few values.
    """
    found = []
    for param in run.params:
        series = run.trials.get(f"config/{param}")
        if series is None:
            continue
        limit = FEW_VALUES if is_numeric(series) else MAX_LEVELS
        if (
            2 <= series.nunique() + int(series.isna().any()) <= limit + 1
            and series.nunique() <= limit
        ):
            found.append(param)
    return found


def colour_param(run: Run) -> str:
    """Column that colours the plots: the comparable parameter that tells most about the
    objectives, else "status".
    """
    done = run.complete()
    names = [
        p for p in compared_params(run) if not is_numeric(run.trials[f"config/{p}"])
    ] or compared_params(run)
    if not names or not run.objectives:
        return f"config/{names[0]}" if names else "status"
    # what only some trials have (the parameter of one alternative) would only repeat which
    # alternative it was
    names = [p for p in names if done[f"config/{p}"].notna().all()] or names
    values = run.values(done)

    def score(param: str) -> float:
        codes = levels(done[f"config/{param}"])[1]
        return sum(explained(codes, values[:, i]) for i in range(len(run.objectives)))

    return f"config/{max(names, key=score)}"


def curves(run: Run) -> dict[str, Any]:
    """Per-epoch metrics of each trial's last training stage: metric names, and for each
    trial its row, stage, values.

    A stage's fits follow one another; of an epoch that was trained twice, the last is kept.
    """
    skip = {"trial_id", "stage", "fit", "epoch", "step", "cached"}
    epochs = run.epochs
    names = [
        c
        for c in map(str, epochs)
        if c not in skip and is_numeric(epochs[c]) and epochs[c].notna().any()
    ]
    first = [n for n in ("accuracy", "loss", "train_loss", "lr") if n in names]
    names = first + [n for n in names if n not in first]
    rows = {trial: row for row, trial in enumerate(run.trials["trial_id"])}
    first_ones = [trial for ids in run.front()["trial_ids"] for trial in ids]
    sizes = epochs.groupby("trial_id", sort=False).size()
    order = [t for t in dict.fromkeys([*first_ones, *sizes.index]) if t in sizes.index]
    total = sizes[order].cumsum()
    chosen = set(
        total.index[(total <= MAX_CURVE_VALUES) & (np.arange(len(total)) < MAX_CURVES)]
    ) & set(rows)
    kept = epochs[epochs["trial_id"].isin(chosen)]
    values = [compact_all(kept[name]) for name in names]
    stages = [None if pd.isna(stage) else str(stage) for stage in kept["stage"]]
    keys = list(
        zip(
            kept["fit"].astype("string").fillna(""),
            kept["epoch"].fillna(-1),
            strict=True,
        )
    )
    places: dict[str, list[int]] = {}
    for place, trial in enumerate(kept["trial_id"]):
        places.setdefault(trial, []).append(place)
    found = []
    for trial, mine in places.items():
        last = {keys[i]: i for i in mine if stages[i] == stages[mine[-1]]}
        found.append(
            {
                "row": rows[trial],
                "stage": stages[mine[-1]],
                "values": [
                    [column[i] for i in sorted(last.values())] for column in values
                ],
            }
        )
    shown = [{"name": n, "unit": metric_unit(n)} for n in names]
    return {"metrics": shown, "trials": found, "of": len(sizes)}


def progress(run: Run) -> dict[str, Any]:
    """Hypervolume after each point in the order they ended, as a share of the box that the
    best values span.

    Empty where no trial is eligible.
    """
    done = run.points().sort_values(["ended", "trial_id"], kind="stable")
    values = run.values(done)
    keep = pareto.eligible(values, run.objectives)
    if not run.objectives or not keep.any():
        return {"rows": [], "share": [], "reference": {}}
    reference = run.reference()
    point = np.array(list(reference.values()))
    signs = np.array([objective.sign for objective in run.objectives])
    box = float(np.prod(point * signs - (values[keep] * signs).min(axis=0)))
    volumes = pareto.hypervolume_over_time(values, run.objectives, point) / box
    shown = {metric: compact(value) for metric, value in reference.items()}
    return {
        "rows": [int(i) for i in done.index],
        "share": [compact(v) for v in volumes],
        "reference": shown,
    }


def effects(run: Run) -> list[dict[str, Any]]:
    """For each comparable parameter and value: points, and mean and standard deviation of
    every objective.
    """
    done = run.points()
    values = run.values(done)
    found = []
    for param in compared_params(run):
        names, codes = levels(done[f"config/{param}"])
        if len(names) < 2:
            continue
        rows = []
        for index, name in enumerate(names):
            part = values[np.asarray(codes) == index]
            part = part[np.isfinite(part).all(axis=1)]
            mean = (
                [compact(v) for v in part.mean(axis=0)]
                if len(part)
                else [None] * values.shape[1]
            )
            std = (
                [compact(v) for v in part.std(axis=0, ddof=1)]
                if len(part) > 1
                else [None] * values.shape[1]
            )
            rows.append({"value": name, "count": len(part), "mean": mean, "std": std})
        found.append({"param": param, "key": f"config/{param}", "levels": rows})
    return found


def importances(run: Run) -> list[dict[str, Any]]:
    """Parameter importance for the page; see `analysis.importance`."""
    return [
        {
            "param": i.param,
            "shares": [compact(v) for v in i.shares],
            "count": i.count,
            "conditional": i.conditional,
        }
        for i in importance(run)
    ]


def comparison(found: Comparison | None) -> dict[str, Any] | None:
    """Groups for the page; see `analysis.compare`."""
    if found is None:
        return None
    groups = [
        {
            "name": g.name,
            "curves": {
                axis: [[compact(v) for v in x], [compact(v) for v in y]]
                for axis, (x, y) in g.curves.items()
            },
        }
        for g in found.groups
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
    found = pareto.attainment(
        run.values(done), [int(v) for v in done["replicate"]], run.objectives
    )
    return [
        {"level": level, "points": [[compact(v) for v in p] for p in points]}
        for level, points in found.items()
    ]


def noise(run: Run) -> dict[str, Any] | None:
    """The objective with measured quartiles and the front that ignores differences inside
    them, or None.
    """
    found = noise_of(run.points(), run.objectives)
    if found is None:
        return None
    metric = run.objectives[found[0]].metric
    low, high = (
        {str(i): compact(v) for i, v in zip(run.points().index, ends, strict=True)}
        for ends in found[1:]
    )
    return {
        "metric": metric,
        "low": low,
        "high": high,
        "front": [int(row) for row in run.front(noise=True).index],
    }


def page_data(run: Run, compared: Comparison | None = None) -> dict[str, Any]:
    """Everything that the page's script draws, as JSON data."""
    trials, front, points = run.trials, run.front(), run.points()
    keep = (
        pareto.eligible(run.values(points), run.objectives)
        if run.objectives
        else np.zeros(len(points), dtype=bool)
    )
    row_of = {trial: row for row, trial in enumerate(trials["trial_id"])}
    members = [[row_of[trial] for trial in ids] for ids in points["trial_ids"]]
    texts = [None if pd.isna(v) else str(v) for v in trials["error"]]
    traces = [None if pd.isna(v) else str(v) for v in trials["error_traceback"]]
    unique = list(dict.fromkeys(t for t in traces if t))
    place = {trace: index for index, trace in enumerate(unique)}
    return {
        "name": run.name,
        "objectives": [
            {"metric": o.metric, "mode": o.mode, "bound": compact(o.bound)}
            for o in run.objectives
        ],
        "ids": [str(v) for v in trials["trial_id"]],
        "status": [str(v) for v in trials["status"]],
        "error": {str(row): text for row, text in enumerate(texts) if text},
        "trace": {str(row): place[trace] for row, trace in enumerate(traces) if trace},
        "tracebacks": unique,
        "replicates": {
            str(int(row)): rows
            for row, rows in zip(points.index, members, strict=True)
            if len(rows) > 1
        },
        "front": [int(row) for row in front.index],
        "eligible": [int(row) for row in points.index[keep]],
        "picks": run.picks(front),
        "columns": columns(run),
        "colour": f"config/{compared.by}" if compared else colour_param(run),
        "curves": curves(run),
        "progress": progress(run),
        "effects": effects(run),
        "importance": importances(run),
        "layers": layer_data(run),
        "noise": noise(run),
        "surfaces": surfaces(run),
        "compare": comparison(compared),
    }
