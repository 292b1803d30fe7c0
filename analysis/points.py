"""Replicates as one point with spread, and the `fronts` table.

A point is a configuration: its metrics are means over its complete replicates with finite
objectives, `sd/<metric>` their standard deviations (n - 1), NaN of one. The trial that
stands for it is the replicate nearest the mean of the objectives, so that the model that is
shipped is the one that the numbers promise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import pareto
from analysis.contract import Objective
from analysis.pareto import Floats
from analysis.tables.frames import array
from analysis.tables.schema import FRONTS

if TYPE_CHECKING:
    from analysis.run import Run


def points_of(done: pd.DataFrame, objectives: list[Objective]) -> pd.DataFrame:
    """One row a configuration of the complete trials `done`, indexed as the trial that
    stands for it.

    Columns are those of `trials`, with means in `metric/<name>`, and `replicates`,
    `trial_ids`, `sd/<metric>`; `ended` is the end of the last replicate.
    """
    columns = [f"metric/{objective.metric}" for objective in objectives]
    metrics = [
        c for c in map(str, done) if c.startswith("metric/") and _numeric(done[c])
    ]
    done = done[
        np.isfinite(done[columns].to_numpy(dtype=np.float64, na_value=np.nan)).all(
            axis=1
        )
    ]
    keys = done["number"].astype("string").fillna("id " + done["trial_id"])
    codes, distinct = pd.factorize(keys)
    values = done[metrics].to_numpy(dtype=np.float64, na_value=np.nan)
    if len(distinct) == len(done):
        spread = pd.DataFrame(np.nan, index=done.index, columns=_sd(metrics))
        extra = {
            "replicates": np.ones(len(done), np.int64),
            "trial_ids": [[t] for t in done["trial_id"]],
        }
        return pd.concat([done, pd.DataFrame(extra, index=done.index), spread], axis=1)
    groups = pd.DataFrame(values, columns=metrics).groupby(codes)
    mean, sd = groups.mean(), groups.std(ddof=1)
    first = _nearest(
        values[:, [metrics.index(c) for c in columns]], mean[columns].to_numpy(), codes
    )
    rows = done.iloc[first].copy()
    # a metric that all replicates share stays as it is: the last bits of a mean would tell
    # seeds apart where none differ
    same = (groups.max() == groups.min()).to_numpy()
    means = np.where(same, groups.max().to_numpy(), mean.to_numpy())
    rows = rows.drop(columns=metrics).join(
        pd.DataFrame(means, index=rows.index, columns=metrics)
    )[list(done.columns)]
    rows["ended"] = done["ended"].groupby(codes).max().to_numpy()
    ids: list[list[str]] = [[] for _ in distinct]
    for code, trial in zip(codes, done["trial_id"], strict=True):
        ids[code].append(trial)
    extra = {"replicates": groups.size().to_numpy(), "trial_ids": ids}
    spread = pd.DataFrame(sd.to_numpy(), index=rows.index, columns=_sd(metrics))
    return pd.concat([rows, pd.DataFrame(extra, index=rows.index), spread], axis=1)


def _numeric(series: pd.Series) -> bool:
    return bool(
        pd.api.types.is_numeric_dtype(series.dtype)
        and not pd.api.types.is_bool_dtype(series.dtype)
    )


def _sd(metrics: list[str]) -> list[str]:
    return ["sd/" + metric.partition("/")[2] for metric in metrics]


def _nearest(values: Floats, means: Floats, codes: np.ndarray) -> list[int]:
    """For each point the row of its replicate nearest its mean, objectives in units of
    their spread; the first of equals.
    """
    scale = values.std(axis=0)
    distance = (
        (((values - means[codes]) / np.where(scale > 0, scale, 1.0)) ** 2)
        .sum(axis=1)
        .round(12)
    )
    order = np.lexsort((np.arange(len(codes)), distance, codes))
    return [int(order[i]) for i in np.flatnonzero(np.diff(codes[order], prepend=-1))]


def noise_of(
    points: pd.DataFrame, objectives: list[Objective]
) -> tuple[int, Floats, Floats] | None:
    """The objective with measured quartiles: its index, and (n,) first and third quartiles
    in its unit; else None.
    """
    for index, objective in enumerate(objectives):
        stem, _, unit = objective.metric.rpartition("_")
        columns = [f"metric/{stem}_{quartile}_{unit}" for quartile in ("p25", "p75")]
        if stem and all(
            column in points and _numeric(points[column]) for column in columns
        ):
            low, high = (
                points[column].to_numpy(dtype=np.float64, na_value=np.nan)
                for column in columns
            )
            return index, low, high
    return None


def fronts_table(run: Run) -> pa.Table:
    """The `fronts` table: the points on the front, and, where an objective has measured
    noise, on the noise front.
    """
    picked: dict[int, list[str]] = {}
    for name, row in run.picks().items():
        picked.setdefault(row, []).append(name)
    parts = {"mean": run.front()}
    if noise_of(run.points(), run.objectives) is not None:
        parts["noise"] = run.front(noise=True)
    rows = pd.concat(
        [
            part.assign(front=name, position=np.arange(len(part)))
            for name, part in parts.items()
        ]
    )
    texts = {
        "front": list(rows["front"]),
        "position": [int(v) for v in rows["position"]],
        "trial_id": list(rows["trial_id"]),
        "trial_ids": [json.dumps(ids) for ids in rows["trial_ids"]],
        "number": [None if pd.isna(v) else int(v) for v in rows["number"]],
        "replicates": [int(v) for v in rows["replicates"]],
        "picks": [json.dumps(picked.get(int(row), [])) for row in rows.index],
    }
    columns = {name: array(texts[name], FRONTS[name][0]) for name in FRONTS}
    for prefix in ("metric/", "sd/"):
        for objective in run.objectives:
            name = prefix + objective.metric
            columns[name] = pa.array(
                rows[name].to_numpy(dtype=np.float64, na_value=np.nan), pa.float64()
            )
    return pa.table(columns)


def front_of(
    points: pd.DataFrame, objectives: list[Objective], noise: bool
) -> pd.DataFrame:
    """The points on the front, best first objective first. Raises ValueError for `noise`
    where none was measured.
    """
    columns = [f"metric/{objective.metric}" for objective in objectives]
    values = points[columns].to_numpy(dtype=np.float64, na_value=np.nan)
    if noise:
        measured = noise_of(points, objectives)
        if measured is None:
            names = ", ".join(o.metric for o in objectives) or "none"
            raise ValueError(
                "no objective has measured quartiles, as latency_ms has; the"
                f" objectives are {names}"
            )
        mask = pareto.noisy_front_mask(values, objectives, *measured)
    else:
        mask = pareto.front_mask(values, objectives)
    up = [objective.mode == "min" for objective in objectives]
    return points[mask].sort_values(
        [*columns, "trial_id"], ascending=[*up, True], kind="stable"
    )
