"""A goal: bounds for all that counts, and which configuration keeps them best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.certainty import CERTAIN, bounds_probability
from analysis.configurations import objective_values
from analysis.contract import Objective
from analysis.pareto import Floats, eligible
from analysis.run import Run

_WEIGHT_OF_LOSS = 10.0
"""Of a goal that was missed: a percent of the metric weighs as much as ten of a cost."""

LEAST_SAID = 0.0005
"""A flattery below this, as a share, is not told."""


@dataclass(frozen=True)
class Pick:
    """The configuration to deploy.

    Attributes:
        row: of the run's trials.
        trial_id: the trial that stands for it.
        probability: that it keeps all bounds.
        flattery: by how much choosing the best of several makes it look better, in the metric that
            is compared with the source's.
        is_within: whether its means keep them, and what is to be as little as possible is less than
            the source's.
    """

    row: int
    trial_id: str
    probability: float
    is_within: bool
    flattery: float = 0.0

    @property
    def is_certain(self) -> bool:
        return self.is_within and self.probability >= CERTAIN


def pick(run: Run) -> Pick | None:
    """The best configuration for the goal; None where none is complete.

    Of those that keep all bounds: the one that loses least where every cost has a bound, else the
    one that costs least, if that is less than the source does. Where none does, the one that
    misses by least.
    """
    source = {} if run.baseline is None else run.baseline.metrics
    rows, objectives = run.configurations(), bounded_by_source(run.objectives, source)
    if rows.empty:
        return None
    values = objective_values(rows, objectives)
    paired = run.paired_errors(rows, relative_metrics(run.spec))
    chances = bounds_probability(rows, run.objectives, run.classes, paired)
    within = eligible(values, objectives)
    if within.any():
        sure = within & (chances >= CERTAIN)
        is_open = open_objective(run) is not None
        allowed = sure if sure.any() and not is_open else within
        wanted = next((i for i, o in enumerate(run.objectives) if o.bound is None), 0)
        costs = objectives[wanted].sign * values[:, wanted]
        best = int(np.where(allowed, costs, np.inf).argmin())
    else:
        best = int(_missed_by(values, objectives).argmin())
    index = int(rows.index[best])
    name = str(rows["trial_id"].iloc[best])
    flattered = max([0.0, *(float(each.flattery[best]) for each in paired.values())])
    return Pick(index, name, float(chances[best]), bool(within[best]), flattered)


def is_bounded(run: Run) -> bool:
    """Whether every objective has a bound, so that what keeps all of them is as good as wanted."""
    return bool(run.objectives) and open_objective(run) is None


def open_objective(run: Run) -> Objective | None:
    """What is to be as little as possible (--fastest, --smallest); None where all has bounds."""
    return next((o for o in run.objectives if o.bound is None), None)


def bounded_by_source(
    objectives: Sequence[Objective], source: Mapping[str, Any]
) -> list[Objective]:
    """The objectives, of which one without a bound is bounded by what the source has: a file that
    is slower than the source's is no result of --fastest.

    Args:
        source: its metrics; of one that is not known there is no bound.
    """
    return [
        replace(o, bound=math.nextafter(source[o.metric], -o.sign * math.inf))
        if o.bound is None and o.metric in source
        else o
        for o in objectives
    ]


def _missed_by(values: Floats, objectives: Sequence[Objective]) -> Floats:
    """(n,) by how much each configuration misses the bounds, the worst of them."""
    worst = np.zeros(len(values))
    for column, objective in enumerate(objectives):
        limit = objective.limit
        if limit is None:
            continue
        excess = np.maximum(objective.sign * (values[:, column] - limit), 0.0)
        share = excess / max(abs(limit), 1e-9)
        is_cost = column > 0  # the metric that may lose little comes first
        worst = np.maximum(worst, share if is_cost else share * _WEIGHT_OF_LOSS)
    return worst


def relative_metrics(spec: Mapping[str, Any]) -> list[str]:
    """Metrics whose bounds in a spec are relative to the source."""
    objectives = spec.get("objectives", [])
    return [o["metric"] for o in objectives if isinstance(o.get("bound"), Mapping)]
