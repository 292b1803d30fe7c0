"""A sweep's results in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.contract import Objective
from analysis.pareto import Floats
from analysis.points import front_of, fronts_table, points_of
from analysis.where import where_mask


@dataclass
class Run:
    """One sweep's results. Times in seconds; `problems` names every file that could not be
    read, and why.

    `trials` has a row for every trial whatever its outcome, with columns `config/<key>`,
    `metric/<name>` and `version/<library>` beside those of `analysis.tables.schema.TRIALS`;
    `epochs`, `stages` and `layers` refer to it by trial_id. Fronts are of points: the
    replicates of a configuration are one (see `analysis.points`).
    """

    path: Path
    name: str
    objectives: list[Objective]
    params: list[str]
    created: str
    command: str
    trials: pd.DataFrame
    epochs: pd.DataFrame
    stages: pd.DataFrame
    layers: pd.DataFrame
    seed: int | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    members: dict[str, Run] = field(default_factory=dict)
    """The runs that a merged one (`analysis.merge`) is made of, by the first part of its
    trial ids.
    """

    def complete(self) -> pd.DataFrame:
        """The complete trials."""
        return self.trials[self.trials["status"] == "complete"]

    @property
    def metrics(self) -> list[str]:
        """Columns of the objectives."""
        return [f"metric/{objective.metric}" for objective in self.objectives]

    @cached_property
    def _points(self) -> pd.DataFrame:
        return points_of(self.complete(), self.objectives)

    def points(self) -> pd.DataFrame:
        """A row for each configuration with complete trials: means, `sd/<metric>`,
        `replicates`, `trial_ids`.
        """
        return self._points

    @property
    def fronts(self) -> pd.DataFrame:
        """The `fronts` table: points of the front, and of the front that ignores measured
        noise, with their picks.
        """
        return fronts_table(self).to_pandas()

    def source_of(self, trial_id: str) -> tuple[Path, str]:
        """Run folder and trial id under which a trial is found on disk."""
        label = next(
            (label for label in self.members if trial_id.startswith(f"{label}/")), None
        )
        return (
            (self.path, trial_id)
            if label is None
            else (self.members[label].path, trial_id[len(label) + 1 :])
        )

    def values(self, trials: pd.DataFrame) -> Floats:
        """(n, k) the objectives of `trials`, as recorded; NaN where missing."""
        return trials[self.metrics].to_numpy(dtype=np.float64, na_value=np.nan)

    def front(self, where: str | None = None, *, noise: bool = False) -> pd.DataFrame:
        """The points, within all bounds, that no other such point dominates; best first
        objective first.

        Args:
            where: only points that pass this constraint (see `analysis.where`) count.
            noise: differences of a latency inside its measured quartiles are ignored
                (`pareto.noisy_front_mask`).

        Raises ValueError for a constraint that cannot be read, or noise that was not measured.
        """
        points = self.points()
        if where is not None:
            points = points[where_mask(where, points)]
        return front_of(points, self.objectives, noise)

    def reference(self) -> dict[str, float]:
        """The reference point that `hypervolume` takes by default: 10 % beyond the worst
        eligible point.

        Raises ValueError where no point is eligible.
        """
        point = pareto.reference_point(self.values(self.points()), self.objectives)
        return {
            objective.metric: float(value)
            for objective, value in zip(self.objectives, point, strict=True)
        }

    def hypervolume(
        self, reference: Sequence[float] | Mapping[str, float] | None = None
    ) -> float:
        """Volume that the front dominates up to `reference` (in objective order, or by
        metric; see `reference`).

        In the product of the metrics' units; compare runs with the same reference only. 0
        for an empty front. Raises ValueError for a reference that is not one finite number
        for each objective.
        """
        if not self.objectives:
            return 0.0
        values = self.values(self.points())
        if reference is None:
            if not pareto.eligible(values, self.objectives).any():
                return 0.0
            reference = self.reference()
        return pareto.hypervolume(
            values, self.objectives, pareto.check_reference(reference, self.objectives)
        )

    def picks(self, front: pd.DataFrame | None = None) -> dict[str, int]:
        """Name → row of `trials` picked from the front (or `front`): "best <metric>" for
        each objective, "knee".
        """
        front = self.front() if front is None else front
        if front.empty:
            return {}
        costs = pareto.to_costs(self.values(front), self.objectives)
        places = {
            f"best {o.metric}": int(costs[:, i].argmin())
            for i, o in enumerate(self.objectives)
        }
        if len(self.objectives) > 1:
            places["knee"] = pareto.knee(self.values(front), self.objectives)
        return {name: int(front.index[place]) for name, place in places.items()}

    def best(self, where: str | None = None) -> pd.DataFrame:
        """The picks, as rows of the front indexed by name; see `picks` and `front`."""
        front = self.front(where)
        picks = self.picks(front)
        rows = front.loc[list(picks.values())].copy()
        rows.index = pd.Index(
            list(picks), name="pick", dtype="object" if picks else None
        )
        return rows
