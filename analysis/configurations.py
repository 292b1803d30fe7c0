"""Configurations: the replicates of one, as one row with its spread.

A configuration's metrics are means over its complete replicates with finite objectives;
`sd/<metric>` are their standard deviations (n - 1), NaN of one. The trial that stands for it is
the replicate nearest the mean of the objectives, so that the model that is shipped is the one that
the numbers promise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.contract import Objective
from analysis.pareto import Floats


def objective_values(rows: pd.DataFrame, objectives: Sequence[Objective]) -> Floats:
    """(n, k) the objectives of rows of trials or configurations; NaN where missing."""
    columns = [f"metric/{objective.metric}" for objective in objectives]
    return rows[columns].to_numpy(dtype=np.float64, na_value=np.nan)


def is_numeric(series: pd.Series) -> bool:
    """Whether a column of a run's table holds numbers, and not booleans."""
    return bool(
        pd.api.types.is_numeric_dtype(series.dtype)
        and not pd.api.types.is_bool_dtype(series.dtype)
    )


def configurations_of(
    complete: pd.DataFrame, objectives: Sequence[Objective]
) -> pd.DataFrame:
    """One row a configuration of the trials `complete`, indexed as the trial that stands for it.

    Columns are those of `trials`, with means in `metric/<name>`, and `replicates`,
    `trial_ids`, `sd/<metric>`; `ended` is the end of the last replicate.
    """
    finite = np.isfinite(objective_values(complete, objectives)).all(axis=1)
    done = complete[pd.Series(finite, index=complete.index)]
    metrics = [
        c for c in map(str, done) if c.startswith("metric/") and is_numeric(done[c])
    ]
    keys = done["number"].astype("string").fillna("id " + done["trial_id"])
    codes, distinct = pd.factorize(keys)
    if len(distinct) == len(done):
        return _each_alone(done, metrics)
    return _grouped(done, metrics, objectives, codes)


def _each_alone(done: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Every trial as a configuration of one replicate."""
    extra = {
        "replicates": np.ones(len(done), np.int64),
        "trial_ids": [[trial] for trial in done["trial_id"]],
    }
    spread = pd.DataFrame(np.nan, index=done.index, columns=_sd(metrics))
    return pd.concat([done, pd.DataFrame(extra, index=done.index), spread], axis=1)


def _grouped(
    done: pd.DataFrame,
    metrics: list[str],
    objectives: Sequence[Objective],
    codes: np.ndarray,
) -> pd.DataFrame:
    """Trials with the same code as one configuration."""
    values = done[metrics].to_numpy(dtype=np.float64, na_value=np.nan)
    groups = pd.DataFrame(values, columns=metrics).groupby(codes)
    mean, spread = groups.mean(), groups.std(ddof=1)
    rows = done.iloc[
        _nearest(
            objective_values(done, objectives),
            objective_values(mean, objectives),
            codes,
        )
    ].copy()
    # a metric that all replicates share stays as it is: the last bits of a mean would tell
    # seeds apart where none differ
    same = (groups.max() == groups.min()).to_numpy()
    means = np.where(same, groups.max().to_numpy(), mean.to_numpy())
    columns = list(done.columns)
    of_means = pd.DataFrame(means, index=rows.index, columns=metrics)
    rows = rows.drop(columns=metrics).join(of_means)[columns]
    rows["ended"] = done["ended"].groupby(codes).max().to_numpy()
    ids: list[list[str]] = [[] for _ in range(len(mean))]
    for code, trial in zip(codes, done["trial_id"], strict=True):
        ids[code].append(trial)
    extra = {"replicates": groups.size().to_numpy(), "trial_ids": ids}
    of_spread = pd.DataFrame(spread.to_numpy(), index=rows.index, columns=_sd(metrics))
    return pd.concat([rows, pd.DataFrame(extra, index=rows.index), of_spread], axis=1)


def _sd(metrics: list[str]) -> list[str]:
    return ["sd/" + metric.partition("/")[2] for metric in metrics]


def _nearest(values: Floats, means: Floats, codes: np.ndarray) -> list[int]:
    """For each configuration the row of its replicate nearest its mean, objectives in units of
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
