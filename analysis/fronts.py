"""Fronts of configurations, the picks from them, and the `fronts` table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import pareto
from analysis.configurations import is_numeric, objective_values
from analysis.contract import Objective
from analysis.pareto import Floats
from analysis.tables.frames import array
from analysis.tables.schema import FRONTS

KNEE = "knee"
"""Name of the pick that gives most for what it costs."""


def interval_columns(objective: Objective) -> tuple[str, str] | None:
    """Names of the metrics that are an objective's first and third quartile, whether or not they
    were measured; None where its name has no unit.
    """
    stem, _, unit = objective.metric.rpartition("_")
    return (f"{stem}_p25_{unit}", f"{stem}_p75_{unit}") if stem else None


def noise_columns(objective: Objective) -> tuple[str, ...]:
    """Metrics that tell how far a time may be off, whether or not they were measured: a latency's
    quartiles, the 95 % interval of a ratio, and of a throughput the latency and its quartiles.
    """
    name = objective.metric
    if name.endswith("throughput"):
        prefix = name.removesuffix("throughput")
        return tuple(f"{prefix}latency{part}_ms" for part in ("_p25", "_p75", ""))
    if name.endswith("_ratio"):
        return f"{name}_low", f"{name}_high"
    return interval_columns(objective) or ()


def best_name(objective: Objective) -> str:
    """Name of the pick that is best in one objective."""
    return f"best {objective.metric}"


def noise_of(
    rows: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[int, Floats, Floats] | None:
    """The objective with measured quartiles: its index, and (n,) first and third quartiles
    in its unit; else None.

    The quartiles of `<name>_<unit>` are the metrics `<name>_p25_<unit>` and `<name>_p75_<unit>`.
    """
    for index, objective in enumerate(objectives):
        found = measured_values(rows, interval_columns(objective) or ())
        if found:
            low, high = found
            return index, low, high
    return None


def measured_values(rows: pd.DataFrame, metrics: Sequence[str]) -> list[Floats]:
    """(n,) values of each metric; empty where not all of them are there as numbers."""
    columns = [f"metric/{name}" for name in metrics]
    if not all(c in rows and is_numeric(rows[c]) for c in columns):
        return []
    return [rows[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in columns]


def front_of(
    rows: pd.DataFrame, objectives: Sequence[Objective], noise: bool = False
) -> pd.DataFrame:
    """The configurations on the front, best first objective first.

    Args:
        noise: whether differences inside an objective's measured quartiles are ignored.

    Raises ValueError for `noise` where none was measured.
    """
    values = objective_values(rows, objectives)
    if noise:
        measured = noise_of(rows, objectives)
        if measured is None:
            names = ", ".join(o.metric for o in objectives) or "none"
            raise ValueError(
                "no objective has measured quartiles, as latency_ms has; the objectives"
                f" are {names}"
            )
        mask = pareto.noisy_front_mask(values, objectives, *measured)
    else:
        mask = pareto.front_mask(values, objectives)
    columns = [f"metric/{objective.metric}" for objective in objectives]
    ascending = [objective.mode == "min" for objective in objectives]
    return rows[mask].sort_values(
        [*columns, "trial_id"], ascending=[*ascending, True], kind="stable"
    )


RIVAL = 1.25
"""A configuration that would be on the front if its latency were smaller by at most this factor
is a rival of those on the front.
"""


def front_and_rivals(
    rows: pd.DataFrame, objectives: Sequence[Objective], metric: str
) -> pd.DataFrame:
    """The configurations on the front, and after them their rivals in `metric`, a positive
    objective to minimise or to maximise, nearest first.

    One that is beyond the bound of `metric` by no more than a rival counts as within it; where
    nothing keeps all bounds, they are left out, so that what comes nearest is among those found.
    """
    values = objective_values(rows, objectives)
    objectives = [o if o.metric != metric else _loosened(o) for o in objectives]
    mask = pareto.front_mask(values, objectives)
    if not mask.any():
        objectives = [replace(o, bound=None) for o in objectives]
        mask = pareto.front_mask(values, objectives)
    column = [objective.metric for objective in objectives].index(metric)
    distance = pareto.factor_to_front(values, objectives, column)
    distance[mask] = np.inf
    near = np.flatnonzero(distance <= RIVAL)
    chosen = [*np.flatnonzero(mask), *near[np.argsort(distance[near], kind="stable")]]
    return rows.iloc[[int(index) for index in chosen]]


def _loosened(objective: Objective) -> Objective:
    """With a bound that a rival of what just keeps the bound keeps."""
    limit = objective.limit
    if limit is None or math.isnan(limit):
        return objective
    is_least = objective.mode == "min"
    return replace(objective, bound=limit * RIVAL if is_least else limit / RIVAL)


def picks_of(front: pd.DataFrame, objectives: Sequence[Objective]) -> dict[str, int]:
    """Name of each pick → its index in `front`."""
    if front.empty:
        return {}
    values = objective_values(front, objectives)
    costs = pareto.to_costs(values, objectives)
    rows = {
        best_name(objective): int(costs[:, column].argmin())
        for column, objective in enumerate(objectives)
    }
    if len(objectives) > 1:
        rows[KNEE] = pareto.knee(values, objectives)
    return {name: int(front.index[row]) for name, row in rows.items()}


def fronts_table(rows: pd.DataFrame, objectives: Sequence[Objective]) -> pa.Table:
    """The `fronts` table of a run's configurations: those on the front, and, where an objective
    has measured noise, those on the noise front.
    """
    parts = {"mean": front_of(rows, objectives)}
    if noise_of(rows, objectives) is not None:
        parts["noise"] = front_of(rows, objectives, noise=True)
    picked: dict[int, list[str]] = {}
    for name, row in picks_of([*parts.values()][-1], objectives).items():
        picked.setdefault(row, []).append(name)
    listed = pd.concat(
        [
            # hundreds of columns are joined first: pandas warns of one more
            part.copy().assign(front=name, position=np.arange(len(part)))
            for name, part in parts.items()
        ]
    )
    values = {
        "front": list(listed["front"]),
        "position": [int(v) for v in listed["position"]],
        "trial_id": list(listed["trial_id"]),
        "trial_ids": [json.dumps(ids) for ids in listed["trial_ids"]],
        "number": [None if pd.isna(v) else int(v) for v in listed["number"]],
        "replicates": [int(v) for v in listed["replicates"]],
        "picks": [json.dumps(picked.get(int(row), [])) for row in listed.index],
    }
    columns = {name: array(values[name], FRONTS[name][0]) for name in FRONTS}
    for prefix in ("metric/", "sd/"):
        for objective in objectives:
            name = prefix + objective.metric
            data = listed[name].to_numpy(dtype=np.float64, na_value=np.nan)
            columns[name] = pa.array(data, pa.float64())
    return pa.table(columns)
