"""How much of each objective's variation a searched parameter explains: functional ANOVA,
as Optuna computes it, of what can be explained at all.

Functional ANOVA divides up what a forest has learned, and a forest learns noise as well: the shares
are therefore scaled by how much the parameters explain out of sample, and nothing is said of what
chance explains as often as one time in forty (`analysis.explained`).

The study is built from the tables, not from the search's journal: its trials are configurations
(means over seeds), and runs whose journal is gone are read alike. A parameter that only some
configurations have, because it belongs to one alternative of a slot, is compared among those.
"""

from __future__ import annotations

import math
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.explained import Column, chance, chance_of_column, explained
from analysis.pareto import Floats, spans_decades

if TYPE_CHECKING:
    import optuna

    from analysis.run import Run

MIN_CONFIGURATIONS = 10
"""Fewer configurations than this say nothing about a parameter."""
MAX_CONFIGURATIONS = 1000
"""Of more configurations the last ones are taken, since the search has narrowed by then."""
CHANCE = 0.025
"""What chance explains as often as this is not shown."""
LEAST = 0.01
"""Share of an objective's variation that is worth showing."""
_MAX_TESTED = 200
_MOST_COMPARISONS = 60
"""Parameters times objectives up to which so many configurations take some ten seconds."""
# Optuna's default takes a minute for 1,000 configurations
_FOREST: dict[str, Any] = {"n_trees": 32, "max_depth": 5, "seed": 0}


@dataclass(frozen=True)
class Importance:
    """Shares of one parameter, one an objective; over the parameters that were compared together
    they add up to what is explained out of sample, less what chance explains.

    Attributes:
        parameter: its name.
        shares: (k,) by objective, from 0 to 1; 0 where chance may do as much, NaN where the
            objective did not vary.
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
    """Importance of every searched parameter that is seen to matter for some objective, the most
    important for the first one first.

    Conditional parameters follow. Empty where there are fewer than `MIN_CONFIGURATIONS`, or where
    chance explains as much.
    """
    rows = run.configurations().sort_values(["ended", "trial_id"], kind="stable")
    rows = rows.tail(MAX_CONFIGURATIONS)
    varied = [p for p in run.parameters if _varies(rows, p)]
    rows = rows.tail(_configurations_for(len(varied) * len(run.objectives)))
    together: dict[bytes, list[str]] = {}
    for name in varied:
        present = rows[f"config/{name}"].notna().to_numpy()
        together.setdefault(present.tobytes(), []).append(name)
    values = run.values(rows)
    groups = [
        (np.frombuffer(mask, dtype=bool), names) for mask, names in together.items()
    ]
    groups = [group for group in groups if group[0].sum() >= MIN_CONFIGURATIONS]
    found = []
    for present, names in groups:
        part = rows[present]
        compared = [
            p for p in varied if part[f"config/{p}"].notna().all() and _varies(part, p)
        ]
        shares = _shares(part, compared, values[present], CHANCE / len(groups))
        found += [
            Importance(name, shares[name], len(part), not present.all())
            for name in names
            if name in shares and np.nansum(shares[name]) > 0
        ]
    return sorted(found, key=lambda item: item.order)


def _configurations_for(comparisons: int) -> int:
    """How many configurations are looked at: fewer for more parameters and objectives."""
    most = MAX_CONFIGURATIONS * _MOST_COMPARISONS // max(comparisons, 1)
    return int(np.clip(most, _MAX_TESTED, MAX_CONFIGURATIONS))


def _varies(rows: pd.DataFrame, parameter: str) -> bool:
    column = f"config/{parameter}"
    return column in rows and rows[column].nunique() > 1


def _shares(
    rows: pd.DataFrame, parameters: list[str], values: Floats, level: float
) -> dict[str, tuple[float, ...]]:
    """Parameter → its share in each objective; 0 of what chance explains at this level."""
    x = [_column(rows[f"config/{p}"].tail(_MAX_TESTED)) for p in parameters]
    y = values[-_MAX_TESTED:]
    # the same for the same run, and permutations of its own for every run
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(y).tobytes()))
    sizes = np.where(chance(x, y, rng) <= level, explained(x, y), 0.0)
    matters = [
        bool(size) and bool(np.ptp(values[:, i])) for i, size in enumerate(sizes)
    ]
    shares = _anova(rows, parameters, values, matters) if any(matters) else {}
    found: dict[str, tuple[float, ...]] = {}
    for index, name in enumerate(parameters):
        own = []
        for column, size in enumerate(sizes):
            share = size * shares[name][column] if matters[column] else 0.0
            if share and (
                share < LEAST
                or chance_of_column(x, y[:, column], index, rng) > 2 * CHANCE
            ):
                share = 0.0
            own.append(float(share) if np.ptp(values[:, column]) else math.nan)
        found[name] = tuple(own)
    return found


def _column(series: pd.Series) -> Column:
    if is_numeric(series):
        return series.to_numpy(dtype=np.float64)
    return pd.factorize(series.astype("string"))[0].astype(np.int64)


def _anova(
    rows: pd.DataFrame, parameters: list[str], values: Floats, wanted: list[bool]
) -> dict[str, tuple[float, ...]]:
    """Parameter → its share, by functional ANOVA, of each wanted objective; else NaN."""
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
            _of_objective(study, column) if wanted[column] else {}
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
