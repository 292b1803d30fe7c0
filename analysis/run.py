"""A sweep's results in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import pareto
from analysis.baseline import Baseline
from analysis.certainty import (
    draws_for,
    error_variances,
    front_probability,
    plausible_values,
    worst_values,
)
from analysis.configurations import configurations_of, objective_values
from analysis.contract import BASELINE, STATUSES, TRIALS_FOLDER, Objective
from analysis.fronts import front_of, fronts_table, noise_of, picks_of
from analysis.metrics import Metrics
from analysis.notes import Note
from analysis.paired import Hits, Paired, hits_in, paired_errors
from analysis.pareto import Floats
from analysis.where import where_mask


@dataclass(repr=False)
class Run:
    """One sweep's results. Times in seconds.

    `trials` has a row for every trial whatever its outcome, with columns `config/<key>`,
    `metric/<name>` and `version/<library>` beside those of `analysis.tables.schema.TRIALS`;
    `epochs`, `stages`, `layers` and `classes` refer to it by trial_id. Fronts are of
    configurations: the replicates of one count together (see `analysis.configurations`).

    Attributes:
        path: the run folder.
        name: of the sweep.
        title: what its spec calls it in words; empty where it says nothing.
        objectives: what the search optimised.
        parameters: those that were searched, in the order of the spec.
        created: ISO time of the sweep's start.
        command: the shell command that began it.
        seed: the sweep's root seed.
        spec: the resolved spec.
        data: the data set in one line.
        remarks: what the sweep said of its source and its data when it began, whole sentences.
        metrics: descriptions and units of what was measured.
        baseline: what the configurations are compared with; None where it was not measured.
        notes: what people have noted, by trial id.
        problems: every file that could not be read, by name, and why.
        members: the runs that a merged one (`analysis.merge`) is made of, by the first part of
            its trial ids.
    """

    path: Path
    name: str
    objectives: list[Objective]
    parameters: list[str]
    created: str
    command: str
    trials: pd.DataFrame
    epochs: pd.DataFrame
    stages: pd.DataFrame
    layers: pd.DataFrame
    classes: pd.DataFrame
    title: str = ""
    seed: int | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    remarks: list[str] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    baseline: Baseline | None = None
    notes: dict[str, Note] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    members: dict[str, Run] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """What readers call the run: its title, or else its name."""
        return self.title or self.name

    def __repr__(self) -> str:
        """'<Run demo: 40 trials (31 complete, 9 failed), objectives accuracy max, gmacs min>'."""
        counts = self.status_counts()
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
        goals = ", ".join(f"{o.metric} {o.mode}" for o in self.objectives) or "none"
        trials = f"{len(self.trials)} trials" + (f" ({statuses})" if statuses else "")
        return f"<Run {self.name}: {trials}, objectives {goals}>"

    def status_counts(self) -> dict[str, int]:
        """Status → number of trials, those that occur, in the order of `STATUSES`."""
        counts = self.trials["status"].value_counts()
        return {status: int(counts[status]) for status in STATUSES if status in counts}

    def complete(self) -> pd.DataFrame:
        """The complete trials."""
        return self.trials[self.trials["status"] == "complete"]

    @cached_property
    def _configurations(self) -> pd.DataFrame:
        return configurations_of(self.complete(), self.objectives)

    def configurations(self) -> pd.DataFrame:
        """A row for each configuration with complete trials: means, `sd/<metric>`,
        `replicates`, `trial_ids`; indexed by the row of the trial that stands for it.
        """
        return self._configurations

    @property
    def has_replicates(self) -> bool:
        """Whether some configuration has several complete trials."""
        return bool((self.configurations()["replicates"] > 1).any())

    @property
    def fronts(self) -> pd.DataFrame:
        """The `fronts` table: the front, and the front that ignores measured noise, with
        their picks.
        """
        return fronts_table(self.configurations(), self.objectives).to_pandas()

    @cached_property
    def _chances(self) -> pd.Series:
        rows = self.configurations()
        draws = draws_for(len(rows), len(self.objectives))
        drawn = plausible_values(rows, self.objectives, self.classes, draws)
        chances = front_probability(drawn, self.objectives)
        return pd.Series(chances, index=rows.index, name="probability")

    @cached_property
    def _fronts(self) -> dict[bool, pd.DataFrame]:
        """The front, with or without noise, once it was asked for."""
        return {}

    @cached_property
    def is_noisy(self) -> bool:
        """Whether an objective's error is known, so that the front is uncertain."""
        rows = self.configurations()
        return bool(error_variances(rows, self.objectives, self.classes)[0].any())

    def paired_errors(
        self, rows: pd.DataFrame, metrics: Iterable[str]
    ) -> dict[str, Paired]:
        """Metric → errors of the differences to the baseline, of those metrics whose images can be
        compared one by one (`analysis.paired`).

        Args:
            rows: (n) configurations.
        """
        if self.baseline is None or self.members:
            return {}
        source = hits_in(self.path / BASELINE)

        @cache
        def of(name: str) -> dict[str, Hits]:
            return hits_in(self.path / TRIALS_FOLDER / name)

        return paired_errors(metrics, rows, self.objectives, source, of)

    def chances(self) -> pd.Series:
        """Probability that each configuration is on the front, given how sure its objectives are;
        indexed as `configurations`. See `analysis.certainty`.
        """
        return self._chances

    def select(self, where: str) -> Run:
        """The same run with those trials alone that pass a constraint (see `analysis.where`).

        Raises ValueError for a constraint that cannot be read.
        """
        return replace(self, trials=self.trials[where_mask(where, self.trials)])

    def source_of(self, trial_id: str) -> tuple[Path, str]:
        """Run folder and trial id under which a trial is found on disk."""
        for label, member in self.members.items():
            if trial_id.startswith(f"{label}/"):
                return member.path, trial_id[len(label) + 1 :]
        return self.path, trial_id

    def values(self, rows: pd.DataFrame) -> Floats:
        """(n, k) the objectives of trials or configurations, as recorded; NaN where missing."""
        return objective_values(rows, self.objectives)

    def front(
        self, where: str | None = None, *, noise: bool | None = None
    ) -> pd.DataFrame:
        """The configurations, within all bounds, that no other dominates; best first objective
        first. The objectives and the searched parameters are the first columns.

        Args:
            where: only configurations that pass this constraint (see `analysis.where`) count.
            noise: whether differences of a latency inside its measured quartiles are ignored
                (`pareto.noisy_front_mask`); None: where they were measured.

        Raises ValueError for a constraint that cannot be read, or noise that was not measured.
        """
        rows = self.configurations()
        if noise is None:
            noise = noise_of(rows, self.objectives) is not None
        if where is not None:
            return self._front_of(rows[where_mask(where, rows)], noise)
        if noise not in self._fronts:
            self._fronts[noise] = self._front_of(rows, noise)
        return self._fronts[noise].copy()

    def _front_of(self, rows: pd.DataFrame, noise: bool) -> pd.DataFrame:
        front = front_of(rows, self.objectives, noise)
        first = [f"metric/{o.metric}" for o in self.objectives]
        first += [f"config/{p}" for p in self.parameters if f"config/{p}" in front]
        return front[[*first, *front.columns.difference(first, sort=False)]]

    def reference(self) -> dict[str, float]:
        """The reference point that `hypervolume` takes by default: 10 % beyond the worst
        eligible configuration.

        Raises ValueError where none is eligible.
        """
        values = self.values(self.configurations())
        reference = pareto.reference_point(values, self.objectives)
        return {
            objective.metric: float(value)
            for objective, value in zip(self.objectives, reference, strict=True)
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
        values = self.values(self.configurations())
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
        return picks_of(self.front() if front is None else front, self.objectives)

    def worst_case_pick(self, front: pd.DataFrame | None = None) -> int:
        """Row of `trials` of the configuration whose worst plausible objectives are the best
        compromise: the knee of these values, one in twenty is worse.

        Raises ValueError for an empty front.
        """
        front = self.front() if front is None else front
        worst = worst_values(front, self.objectives, self.classes)
        return int(front.index[pareto.knee(worst, self.objectives)])

    def best(self, where: str | None = None) -> pd.DataFrame:
        """The picks, as rows of the front indexed by name; see `picks` and `front`."""
        front = self.front(where)
        picks = self.picks(front)
        rows = front.loc[list(picks.values())].copy()
        dtype = "object" if picks else None
        rows.index = pd.Index(list(picks), name="pick", dtype=dtype)
        return rows
