"""How much of each objective's variation a searched parameter explains: functional ANOVA,
as Optuna computes it.

The study is built from the tables, not from the search's journal: its trials are configurations
(means over seeds), and runs whose journal is gone are read alike. A parameter that only some
configurations have, because it belongs to one alternative of a slot, is compared among those.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.pareto import Floats, spans_decades

if TYPE_CHECKING:
    import optuna

    from analysis.run import Run

MIN_CONFIGURATIONS = 10
"""Fewer configurations than this say nothing about a parameter."""
MAX_CONFIGURATIONS = 1000
"""Of more configurations the last ones are taken, since the search has narrowed by then."""
# Optuna's default takes a minute for 1,000 configurations
_FOREST: dict[str, Any] = {"n_trees": 32, "max_depth": 5, "seed": 0}


@dataclass(frozen=True)
class Importance:
    """Shares of one parameter, one an objective; they add up to 1 over the parameters that
    were compared together.

    Attributes:
        parameter: its name.
        shares: (k,) by objective, from 0 to 1; NaN where the objective did not vary.
        count: configurations that have the parameter.
        conditional: whether other configurations lack it.
    """

    parameter: str
    shares: tuple[float, ...]
    count: int
    conditional: bool

    @property
    def order(self) -> tuple[bool, float]:
        """Smallest for the parameter that matters most; conditional ones come last."""
        share = self.shares[0] if math.isfinite(self.shares[0]) else -1.0
        return self.conditional, -share


def importance(run: Run) -> list[Importance]:
    """Importance of every searched parameter that varies, the most important for the first
    objective first.

    Conditional parameters follow. Empty where there are fewer than `MIN_CONFIGURATIONS`.
    """
    rows = run.configurations().sort_values(["ended", "trial_id"], kind="stable")
    rows = rows.tail(MAX_CONFIGURATIONS)
    varied = [p for p in run.parameters if _varies(rows, p)]
    together: dict[bytes, list[str]] = {}
    for name in varied:
        present = rows[f"config/{name}"].notna().to_numpy()
        together.setdefault(present.tobytes(), []).append(name)
    values = run.values(rows)
    found = []
    for mask, names in together.items():
        present = np.frombuffer(mask, dtype=bool)
        if present.sum() < MIN_CONFIGURATIONS:
            continue
        part = rows[present]
        compared = [
            p for p in varied if part[f"config/{p}"].notna().all() and _varies(part, p)
        ]
        shares = _shares(part, compared, values[present])
        found += [
            Importance(name, shares[name], len(part), not present.all())
            for name in names
            if name in shares
        ]
    return sorted(found, key=lambda item: item.order)


def _varies(rows: pd.DataFrame, parameter: str) -> bool:
    column = f"config/{parameter}"
    return column in rows and rows[column].nunique() > 1


def _shares(
    rows: pd.DataFrame, parameters: list[str], values: Floats
) -> dict[str, tuple[float, ...]]:
    """Parameter → its share in each objective."""
    import optuna

    distributions = {p: _distribution(rows[f"config/{p}"]) for p in parameters}
    columns = {p: [_plain(v) for v in rows[f"config/{p}"]] for p in parameters}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(directions=["minimize"] * values.shape[1])
        study.add_trials(
            optuna.trial.create_trial(
                params={p: columns[p][row] for p in parameters},
                distributions=distributions,
                values=[float(v) for v in values[row]],
            )
            for row in range(len(rows))
        )
        by_objective = [
            _of_objective(study, column) if np.ptp(values[:, column]) else {}
            for column in range(values.shape[1])
        ]
    finally:
        optuna.logging.set_verbosity(level)
    return {
        p: tuple(float(shares.get(p, math.nan)) for shares in by_objective)
        for p in parameters
    }


def _of_objective(study: optuna.Study, column: int) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(
            study,
            evaluator=FanovaImportanceEvaluator(**_FOREST),
            target=lambda trial: trial.values[column],
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

    if not is_numeric(series):
        return CategoricalDistribution(sorted({_plain(v) for v in series}))
    low, high = _plain(series.min()), _plain(series.max())
    log = spans_decades(np.array([low, high], dtype=np.float64))
    if isinstance(low, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)
