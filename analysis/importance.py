"""How much of each objective's variation a searched parameter explains: functional ANOVA,
as Optuna computes it.

The study is built from the tables, not from the search's journal: points are configurations
(means over seeds), and runs whose journal is gone are read alike. A parameter that only
some points have (one of a slot's alternative) is compared among those.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.pareto import Floats

if TYPE_CHECKING:
    import optuna

    from analysis.run import Run

MIN_POINTS = 10
"""Fewer points than this say nothing about a parameter."""
MAX_POINTS = 1000
"""Of more points the last ones are taken, since the search has narrowed by then."""
_FOREST: dict[str, Any] = {
    "n_trees": 32,
    "max_depth": 5,
    "seed": 0,
}  # Optuna's default takes a minute for 1,000 points


@dataclass(frozen=True)
class Importance:
    """Shares of one parameter, one an objective; they add up to 1 over the parameters that
    were compared together.

    Attributes:
        param: the parameter.
        shares: (k,) by objective, from 0 to 1; NaN where the objective did not vary.
        count: points that have the parameter.
        conditional: whether other points lack it.
    """

    param: str
    shares: tuple[float, ...]
    count: int
    conditional: bool


def importance(run: Run) -> list[Importance]:
    """Importance of every searched parameter that varies, the most important for the first
    objective first.

    Conditional parameters follow. Empty where there are fewer than `MIN_POINTS` points.
    """
    points = (
        run.points().sort_values(["ended", "trial_id"], kind="stable").tail(MAX_POINTS)
    )
    params = [
        p
        for p in run.params
        if f"config/{p}" in points and points[f"config/{p}"].nunique() > 1
    ]
    values = run.values(points)
    groups: dict[bytes, list[str]] = {}
    for param in params:
        present = points[f"config/{param}"].notna().to_numpy()
        groups.setdefault(present.tobytes(), []).append(param)
    found = []
    for mask, own in groups.items():
        rows = np.frombuffer(mask, dtype=bool)
        if rows.sum() < MIN_POINTS:
            continue
        part = points[rows]
        together = [
            p
            for p in params
            if part[f"config/{p}"].notna().all() and part[f"config/{p}"].nunique() > 1
        ]
        shares = _shares(part, together, values[rows])
        for param in own:
            if param in shares:
                found.append(
                    Importance(param, shares[param], len(part), not rows.all())
                )
    return sorted(
        found,
        key=lambda i: (
            i.conditional,
            -(i.shares[0] if math.isfinite(i.shares[0]) else -1.0),
        ),
    )


def _shares(
    points: pd.DataFrame, params: list[str], values: Floats
) -> dict[str, tuple[float, ...]]:
    """Parameter → its share in each objective."""
    import optuna

    names = {p: _distribution(points[f"config/{p}"]) for p in params}
    columns = {p: [_plain(v) for v in points[f"config/{p}"]] for p in params}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(directions=["minimize"] * values.shape[1])
        study.add_trials(
            optuna.trial.create_trial(
                params={p: columns[p][row] for p in params},
                distributions=names,
                values=[float(v) for v in values[row]],
            )
            for row in range(len(points))
        )
        by_objective = [
            _of_objective(study, i) if np.ptp(values[:, i]) else {}
            for i in range(values.shape[1])
        ]
    finally:
        optuna.logging.set_verbosity(level)
    return {
        p: tuple(float(shares.get(p, math.nan)) for shares in by_objective)
        for p in params
    }


def _of_objective(study: optuna.Study, index: int) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(
            study,
            evaluator=FanovaImportanceEvaluator(**_FOREST),
            target=lambda trial: trial.values[index],
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _distribution(series: pd.Series) -> Any:
    """The range of the values seen."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(
        series.dtype
    ):
        return CategoricalDistribution(sorted({_plain(v) for v in series}))
    low, high = _plain(series.min()), _plain(series.max())
    log = bool(low > 0 and high / low >= 30)
    return (
        IntDistribution(low, high, log=log)
        if isinstance(low, int)
        else FloatDistribution(low, high, log=log)
    )
