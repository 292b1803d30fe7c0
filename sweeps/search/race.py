"""Seeds by need: which configurations are trained once more when the search has ended.

One seed each finds where the front lies. Whether a configuration is on it takes several, but only
near the front: a configuration is decided when it is on the front with the probability `certainty`
(see `analysis.certainty`), or off it with that probability. Of those that are not decided, the one
that is hardest to tell for its seeds gets the next. What seeds differ by is known from some that
were given before: the first few go to one configuration each, front by front.

All of it follows from what has ended; so a race that was cut goes on as it would have gone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import moocore
import numpy as np
import pandas as pd

from analysis import certainty, pareto
from analysis.contract import ENDED, Objective
from sweeps.run.record import TrialRecord
from sweeps.search.costs import CostOf, seconds_of
from sweeps.search.study import Draw
from sweeps.spec.search_options import Race

_DRAWS = 200
_LEAST_FREEDOM = 4
"""Seeds beyond each configuration's first, before their spread can be spoken of."""
_MOST_COMPARED = 100
"""Configurations that may be on the front: the first by fronts of their means."""


class Runners:
    """What the seeds of all configurations gave, and who gets the next.

    Args:
        first: seeds that each configuration has from the search.
        cost_of: what a trial's stages cost.
    """

    def __init__(
        self,
        race: Race,
        objectives: Sequence[Objective],
        first: int,
        cost_of: CostOf = seconds_of,
    ) -> None:
        self.objectives, self._cost_of = objectives, cost_of
        self._race, self._first = race, first
        self._values: defaultdict[int, list[list[float]]] = defaultdict(list)
        self._used: defaultdict[int, set[int]] = defaultdict(set)
        self._cut: set[tuple[int, int]] = set()  # further seeds that are to run again
        self._draws: dict[int, Draw] = {}
        self._seconds: defaultdict[int, float] = defaultdict(float)

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended."""
        plan = record.plan
        if plan.refines is not None or plan.number < 0:
            return
        if record.status not in ENDED:
            if plan.replicate >= self._first:
                self._cut.add((plan.number, plan.replicate))
                self._draws[plan.number] = dict(plan.draw)
            return
        self._cut.discard((plan.number, plan.replicate))
        self._used[plan.number].add(plan.replicate)
        self._draws[plan.number] = dict(plan.draw)
        spent = sum(self._cost_of(record).values())
        self._seconds[plan.number] = max(spent, self._seconds[plan.number])
        values = record.values(self.objectives)
        if values is not None:
            self._values[plan.number].append(values)

    def expected(self, number: int) -> float:
        """What a seed of this configuration costs, as its others did."""
        return self._seconds[number]

    def left(self, configurations: int) -> int:
        """Trials that may still be handed out, where the search has so many configurations."""
        extra = sum(
            replicate >= self._first
            for used in self._used.values()
            for replicate in used
        )
        most = configurations if self._race.trials is None else self._race.trials
        return max(
            0, min(most, configurations * (self._race.most - self._first)) - extra
        )

    def next(
        self, running: Collection[tuple[int, int]], most_seconds: float = math.inf
    ) -> tuple[int, int, Draw] | None:
        """Number, replicate and draw of the next trial; None where all is decided.

        Args:
            running: numbers and replicates of the trials that have not ended.
            most_seconds: that it may take, as its configuration's other seeds did.
        """
        used = {number: set(seeds) for number, seeds in self._used.items()}
        for number, replicate in running:
            used.setdefault(number, set()).add(replicate)
        extra = sum(replicate >= self._first for _, replicate in running)
        if self.left(len(used)) <= extra:
            return None
        # what was cut, or is tried once more at the user's wish, goes on whatever is decided now
        for number, replicate in sorted(self._cut - set(running)):
            if self._seconds[number] <= most_seconds:
                return number, replicate, self._draws[number]
        counts = {number: len(seeds) for number, seeds in used.items()}
        certainty_wanted = self._race.certainty
        for number in undecided(
            self._values, counts, self.objectives, certainty_wanted
        ):
            free = set(range(self._first, self._race.most)) - used[number]
            if free and self._seconds[number] <= most_seconds:
                return number, min(free), self._draws[number]
        return None


def undecided(
    values: Mapping[int, Sequence[Sequence[float]]],
    used: Mapping[int, int],
    objectives: Sequence[Objective],
    share: float,
) -> list[int]:
    """Numbers of the configurations whose place is not decided, the hardest to tell first.

    Args:
        values: number → the objectives of each seed; none where all failed.
        used: number → seeds that were begun.
        share: probability from which on a configuration is decided.
    """
    numbers = [number for number in sorted(values) if values[number]]
    if not numbers:
        return []
    means = np.array([np.mean(values[number], axis=0) for number in numbers])
    ranks = moocore.pareto_rank(pareto.to_costs(means, objectives))
    order = np.argsort(ranks, kind="stable")
    if sum(len(values[number]) - 1 for number in numbers) < _LEAST_FREEDOM:
        fewest = min(used[number] for number in numbers)
        return [numbers[i] for i in order if used[numbers[i]] == fewest]
    near = np.sort(order[:_MOST_COMPARED])
    numbers, means = [numbers[i] for i in near], means[near]
    rows = _as_rows([values[number] for number in numbers], means, objectives)
    drawn = certainty.plausible_values(rows, objectives, pd.DataFrame(), _DRAWS)
    on_front = certainty.front_probability(drawn, objectives)
    doubt = np.minimum(on_front, 1 - on_front)
    seeds = np.array([used[number] for number in numbers])
    order = np.lexsort((seeds, -doubt / seeds))
    return [numbers[i] for i in order if doubt[i] > 1 - share]


def _as_rows(
    values: Sequence[Sequence[Sequence[float]]],
    means: np.ndarray,
    objectives: Sequence[Objective],
) -> pd.DataFrame:
    """Configurations as a run's table has them."""
    rows = pd.DataFrame({"replicates": [len(seeds) for seeds in values]})
    spread = np.array(
        [
            np.std(seeds, axis=0, ddof=1)
            if len(seeds) > 1
            else np.full(len(objectives), np.nan)
            for seeds in values
        ]
    )
    for column, objective in enumerate(objectives):
        rows[f"metric/{objective.metric}"] = means[:, column]
        rows[f"sd/{objective.metric}"] = spread[:, column]
    return rows
