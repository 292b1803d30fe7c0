"""The columns that the report's page draws and lists, as plain JSON data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.metrics import on_test_set
from analysis.numbers import DIGITS, MISSING, label, plain, plus_minus
from analysis.pareto import spans_decades
from analysis.run import Run

MAX_LEVELS = 8
"""A categorical parameter with more values than this is not offered as a default colour,
nor compared by value.
"""
FEW_VALUES = 6
"""A numeric parameter with at most so many values is compared by value too."""
MAX_METRICS = 24
"""Metrics beside the objectives that the report carries."""
NOT_SET = MISSING
"""Shown for a parameter that a trial does not have, as the one of an alternative it did not
choose.
"""
_KEPT_DIGITS = 6
_WHOLE_BELOW = 2**53


def compact(value: Any) -> float | int | None:
    """A number for the page, to draw with: six significant digits, whole digits kept; None for
    missing and non-finite ones. See `compact_all`.
    """
    number = math.nan if value is None or value is pd.NA else float(value)
    return compact_all(np.array([number]))[0]


def compact_all(values: np.ndarray, unit: str = "") -> list[float | int | None]:
    """`compact` of every value of a column, many at a time.

    A value that would be rounded otherwise after this (see `analysis.numbers`) keeps all its
    digits, so that the page shows what the rest of the package shows.
    """
    known = np.isfinite(values)
    exponents = np.zeros(len(values))
    sized = known & (values != 0)
    exponents[sized] = np.floor(np.log10(np.abs(values[sized])))
    decimals = np.clip(_KEPT_DIGITS - 1 - exponents, 0, 300)
    with np.errstate(over="ignore", invalid="ignore"):
        short = np.round(values * 10.0**decimals) / 10.0**decimals
        tie = _is_tie(short, np.clip(DIGITS - 1 - exponents, 0, 300))
        tie |= _is_tie(values, np.zeros(len(values)))
        if unit == "fraction":
            tie |= _is_tie(short, np.full(len(values), 4.0))
    short = np.where(tie | ~np.isfinite(short), values, short)
    return [
        _whole_or_not(number) if is_known else None
        for number, is_known in zip(short.tolist(), known.tolist(), strict=True)
    ]


def _is_tie(values: np.ndarray, decimals: np.ndarray) -> np.ndarray:
    """(n,) whether a value lies half-way between two numbers with so many decimals."""
    doubled = 2 * values * 10.0**decimals
    nearest = np.rint(doubled)
    near = np.abs(doubled - nearest) <= 1e-9 * np.maximum(np.abs(doubled), 1)
    return np.asarray(near & (nearest % 2 == 1))


def _whole_or_not(number: float) -> float | int:
    is_whole = number.is_integer() and abs(number) < _WHOLE_BELOW
    return int(number) if is_whole else number


def numbers_of(series: pd.Series) -> np.ndarray:
    """A numeric column as floats; NaN where missing."""
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def levels(series: pd.Series) -> tuple[list[str], list[int]]:
    """The distinct values of a column as text, sorted, `NOT_SET` last, and each row's index
    into them.
    """
    distinct = sorted(series.dropna().unique())
    names = [plain(value) for value in distinct]
    if len(set(names)) < len(names):  # they differ in later digits only
        names = [repr(v.item() if hasattr(v, "item") else v) for v in distinct]
    code = {value: index for index, value in enumerate(distinct)}
    codes = [len(distinct) if pd.isna(value) else code[value] for value in series]
    return ([*names, NOT_SET] if len(distinct) in codes else names), codes


def columns(run: Run) -> list[dict[str, Any]]:
    """The columns that the page knows: objectives, the same on the test set, searched
    parameters, other metrics, and the trials' times.
    """
    objectives = [o.metric for o in run.objectives]
    measured = [
        name.partition("/")[2]
        for name in map(str, run.trials)
        if name.startswith("metric/") and run.trials[name].notna().any()
    ]
    tested = [on_test_set(o) for o in objectives if on_test_set(o) in measured]
    tested = [name for name in tested if name not in objectives]
    others = [name for name in measured if name not in (*objectives, *tested)]
    parameters = [p for p in run.parameters if f"config/{p}" in run.trials]
    chosen = [
        (objectives, "metric/", "objective"),
        (parameters, "config/", "parameter"),
        (tested, "metric/", "test"),
        (run.metrics.in_order(others)[:MAX_METRICS], "metric/", "metric"),
        (["seconds"], "", "time"),
    ]
    return [
        column_data(run, prefix, name, role)
        for names, prefix, role in chosen
        for name in names
    ]


def column_data(run: Run, prefix: str, name: str, role: str) -> dict[str, Any]:
    """One column for the page.

    Keys: key, label, title (with its unit), description, role, unit, kind ("num" or "cat"), and
    values, a row a trial; of numbers whether they span decades (log), and of configurations with
    replicates, by row, their mean, spread and both as text (shown); of categories their levels.
    """
    series = run.trials[prefix + name]
    unit = {"parameter": "", "time": "s"}.get(role, run.metrics.unit(name))
    data: dict[str, Any] = {
        "key": prefix + name,
        "label": name,
        "title": label(name, unit),
        "description": run.metrics.of(name).description if role != "parameter" else "",
        "role": role,
        "unit": unit,
    }
    if not is_numeric(series):
        names, codes = levels(series)
        return data | {"kind": "cat", "levels": names, "values": codes}
    values = numbers_of(series)
    data |= {"kind": "num", "log": spans_decades(values)}
    data["values"] = compact_all(values, unit)
    if role in ("objective", "test", "metric") and run.has_replicates:
        data |= _over_seeds(run, name, unit)
    return data


def _over_seeds(run: Run, name: str, unit: str) -> dict[str, Any]:
    """Mean and spread of the configurations with replicates, by row, and both as text."""
    rows = run.configurations()
    rows = rows[rows["replicates"] > 1]
    if f"metric/{name}" not in rows or f"sd/{name}" not in rows:
        return {}
    keys = [str(int(row)) for row in rows.index]
    means, spreads = numbers_of(rows[f"metric/{name}"]), numbers_of(rows[f"sd/{name}"])
    texts = [
        plus_minus(mean, spread, unit)
        for mean, spread in zip(means.tolist(), spreads.tolist(), strict=True)
    ]
    return {
        "means": dict(zip(keys, compact_all(means, unit), strict=True)),
        "spreads": dict(zip(keys, compact_all(spreads), strict=True)),
        "shown": dict(zip(keys, texts, strict=True)),
    }


def compared_parameters(run: Run) -> list[str]:
    """Searched parameters whose values can be compared one by one: categorical, or numeric
    with few values.
    """
    found = []
    for name in run.parameters:
        series = run.trials.get(f"config/{name}")
        if series is None:
            continue
        limit = FEW_VALUES if is_numeric(series) else MAX_LEVELS
        count = series.nunique()
        if count <= limit and count + int(series.isna().any()) >= 2:
            found.append(name)
    return found


def colour_column(run: Run) -> str:
    """Column that colours the plots: the comparable parameter that tells most about the
    objectives, else "status".
    """
    done = run.complete()
    compared = compared_parameters(run)
    names = [p for p in compared if not is_numeric(run.trials[f"config/{p}"])]
    names = names or compared
    if not names or not run.objectives:
        return f"config/{names[0]}" if names else "status"
    # what only some trials have (the parameter of one alternative) would only repeat which
    # alternative it was
    names = [p for p in names if done[f"config/{p}"].notna().all()] or names
    values = run.values(done)

    def score(name: str) -> float:
        codes = levels(done[f"config/{name}"])[1]
        return sum(explained(codes, values[:, i]) for i in range(len(run.objectives)))

    return f"config/{max(names, key=score)}"


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
    group_means = frame.groupby("group")["rank"].transform("mean")
    within = float(((frame["rank"] - group_means) ** 2).sum())
    return 1.0 - (within / (n - g)) / (total / (n - 1))
