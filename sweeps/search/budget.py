"""When a search ends before all its configurations were tried: its budget of time or images is used
up, its front stands still, or its goal is met.

What a search has taken is what its trials took, as their records say, whichever driver ran them; so
a search that was killed goes on with what is left of its budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis import pareto
from analysis.contract import Objective
from analysis.numbers import number, percent, plural
from sweeps.run.record import TrialRecord
from sweeps.search.goal import Goal
from sweeps.search.meters import meter_of
from sweeps.spec.model import Spec
from sweeps.spec.search_options import StopWhen


class Budget:
    """What a search has taken and found, and whether that is enough.

    Costs are seconds, or images where these are what is counted.

    Args:
        relative: metrics whose bounds are relative to the source.

    Attributes:
        objectives: of the sweep; set again when their bounds are known.
        cost_of: what a trial's stages cost where nothing is cached.
    """

    def __init__(self, spec: Spec, relative: Sequence[str] = ()) -> None:
        self._search, self.objectives = spec.search, spec.objectives
        self._meter = meter_of(spec)
        self.cost_of = self._meter.cost_of
        race = spec.search.race
        self._of_search = 1.0 if race is None else 1.0 - race.share
        self._values: list[Sequence[float]] = []
        self._errors: list[float] = []
        self._goal = Goal(relative) if spec.search.stop_when == "goal" else None
        self._may_be_met = False

    def begin(self) -> None:
        """The first trial of this driver is about to start."""
        self._meter.begin()

    def end(self) -> None:
        """The search is over; what follows it is not counted."""
        self._meter.end()

    def run_at_once(self, trials: int) -> None:
        """Take how many trials the cluster has room for."""
        self._meter.run_at_once(trials, self._search.replicates)

    def note(self, record: TrialRecord) -> None:
        """A trial ended, now or under an earlier driver. Those that refine are not counted."""
        if record.plan.refines is not None:
            return
        self._meter.note(record)
        if self._goal is not None:
            self._goal.note(record)
            self._may_be_met |= self._goal.may_be_met_by(record, self.objectives)

    def found(self, values: Sequence[float]) -> None:
        """A configuration ended with these objectives."""
        self._values.append(values)
        keeps = pareto.eligible(np.array([values]), self.objectives)
        self._may_be_met |= bool(keeps.all())

    def foretold(self, expected: float, records: Sequence[TrialRecord]) -> None:
        """A configuration with these trials was expected to cost so much."""
        taken = sum(map(self._meter.taken_by, records))
        if taken > 0:
            self._errors.append(math.log(taken / expected))

    def left(self, running: float = 0.0) -> float:
        """What the replicates of one more configuration may cost together; infinite without a
        budget.

        Args:
            running: what those that run now are expected to cost.
        """
        return self._left(self._of_search, running) / self._meter.rate

    def left_to_race(self, running: float = 0.0) -> float:
        """What one more seed may cost when the search has ended."""
        return self._left(1.0, running) / self._meter.rate_alone

    def give_back(self) -> bool:
        """Share what is left anew between search and race; False where nothing is.

        A race that has decided everything leaves time over.
        """
        race, left = self._search.race, self._left(1.0, 0.0)
        if race is None or not 0.0 < left < math.inf:
            return False
        self._of_search = 1.0 - race.share * left / self._meter.limit
        return True

    def _left(self, share: float, running: float) -> float:
        return max(0.0, self._meter.limit * share - self._meter.spent(running))

    def share_left(self) -> float:
        """What is left of the budget, from 0 to 1; 1 without one."""
        meter = self._meter
        return max(0.0, 1 - meter.spent(0.0) / (meter.limit * self._of_search))

    def is_enough(self) -> bool:
        """Whether the time is over, or `search.stop_when` holds."""
        return not self.share_left() or self._stops()

    def _stops(self) -> bool:
        """Whether `search.stop_when` holds."""
        rule = self._search.stop_when
        if not isinstance(rule, StopWhen):
            return rule == "goal" and self._has_met_goal()
        return stands_still(self._values, rule, self.objectives)

    def _has_met_goal(self) -> bool:
        """Whether the goal is met; looked up once for each configuration that may meet it."""
        assert self._goal is not None
        if self._may_be_met and self._goal.is_met(self.objectives):
            return True
        self._may_be_met = False
        return False

    def plan_line(self, cost: float | None) -> str | None:
        """What the budget is expected to give; None without one, or where it is used up.

        Args:
            cost: of a configuration with an empty cache, where that is known.
        """
        meter = self._meter
        if math.isinf(meter.limit) or meter.spent(0.0) >= meter.limit:
            return None
        said = f"budget of {meter.said(meter.limit)}"
        if not cost:
            return f"{said}; how many configurations it gives is not known yet"
        each = cost * meter.rate
        count = max(1, round(meter.limit * self._of_search / each))
        return (
            f"{said}: {plural(count, 'configuration')} of {meter.said(each)}, or more where"
            " the stage cache helps"
        )

    def nothing_left(self, ended: int, wanted: int) -> str:
        """Why no trial was left to run, and what goes on.

        Args:
            ended: configurations that have ended.
            wanted: those that the search was to try.
        """
        meter, search = self._meter, self._search
        limit, spent = meter.limit, meter.spent(0.0)
        if spent >= limit:
            return (
                f"the budget of {meter.said(limit)} is used up ({meter.said(spent)}); more"
                f" search.{self._limited_by()} go on"
            )
        if self._stops():
            return f"{self._why_it_stops()}; search.stop_when=null goes on"
        if ended >= wanted:
            is_exhausted = wanted < search.trials
            more = "a larger search.space" if is_exhausted else "search.trials=N"
            each = "the one configuration has"
            if ended > 1:
                each = f"all {plural(ended, 'configuration')} have"
            return f"{each} ended; {more} goes on"
        if math.isfinite(limit):
            return (
                f"of the budget of {meter.said(limit)} {meter.said(limit - spent)} is left,"
                f" less than one more configuration takes; more search.{self._limited_by()}"
                " go on"
            )
        return "nothing is left to run"

    def _limited_by(self) -> str:
        """The option of the search that its budget comes from."""
        options = ("images", "gpu_hours", "hours")
        return next(o for o in options if getattr(self._search, o) is not None)

    def _why_it_stops(self) -> str:
        rule = self._search.stop_when
        if not isinstance(rule, StopWhen):
            return "the goal is met"
        return (
            f"the front stands still: over the last {rule.configurations} configurations it"
            f" has gained less than {percent(rule.hypervolume_gain)} of its hypervolume"
        )

    def outcome_line(self, configurations: int, left_out: int) -> str | None:
        """What the search took, beside what was expected; None where nothing was.

        Args:
            left_out: configurations that were not tried, for what they would have cost.
        """
        meter = self._meter
        has_limit = math.isfinite(meter.limit)
        if not has_limit and not self._errors:
            return None
        spent = meter.spent(0.0)
        said = f"the search took {meter.said(spent)}"
        if has_limit:
            said += f", {percent(spent / meter.limit, 0)} of its budget"
        said += f", for {plural(configurations, 'configuration')}"
        if left_out:
            said += (
                f" (left out: {number(left_out)} that would cost too much, as is known)"
            )
        if self._errors:
            median = float(np.expm1(np.median(np.abs(self._errors))))
            said += (
                f"; what each takes was foretold within {percent(median, 0)} (median of"
                f" {len(self._errors)})"
            )
        return said


def stands_still(
    values: Sequence[Sequence[float]],
    rule: StopWhen | None,
    objectives: Sequence[Objective],
) -> bool:
    """Whether a rule holds for configurations with these objectives, in the order in which they
    ended.
    """
    if rule is None or len(values) <= rule.configurations:
        return False
    found = np.asarray(values, dtype=np.float64)
    if not pareto.eligible(found, objectives).any():
        return False
    reference = pareto.reference_point(found, objectives)
    before, now = (
        pareto.hypervolume(part, objectives, reference)
        for part in (found[: -rule.configurations], found)
    )
    return bool(now - before < rule.hypervolume_gain * now)
