"""When a search ends before all its configurations were tried: time, and a front that stands still.

The time that a search has taken is that in which its trials ran, as their records say, whichever
driver ran them; so a search that was killed goes on with what is left of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import numpy as np

from analysis import pareto
from analysis.contract import Objective
from analysis.numbers import duration, percent, plural
from sweeps.run.record import TrialRecord
from sweeps.spec.model import Spec, StopWhen


class Budget:
    """What a search has taken and found, and whether that is enough.

    Args:
        earlier: records of trials that earlier drivers ran.
        is_met: whether some configuration keeps all bounds with certainty; asked again after each
            that may be the one.

    Attributes:
        objectives: of the sweep; set again when their bounds are known.
    """

    def __init__(
        self,
        spec: Spec,
        earlier: Iterable[TrialRecord],
        is_met: Callable[[], bool] = lambda: False,
    ) -> None:
        self._search, self.objectives = spec.search, spec.objectives
        self._hours = spec.search.hours
        race = spec.search.race
        self._of_search = 1.0 if race is None else 1.0 - race.share
        self._earlier = seconds_of_trials(earlier) if self._hours is not None else 0.0
        self._begun: float | None = None
        self._values: list[Sequence[float]] = []
        self._errors: list[float] = []
        self._is_met, self._may_be_met = is_met, False
        at_once = spec.resources.concurrent or 1
        self._together = min(at_once, spec.search.replicates)

    def begin(self) -> None:
        """The first trial of this driver is about to start."""
        if self._begun is None:
            self._begun = time.monotonic()

    def found(self, values: Sequence[float]) -> None:
        """A configuration ended with these objectives."""
        self._values.append(values)
        keeps = pareto.eligible(np.array([values]), self.objectives)
        self._may_be_met |= bool(keeps.all())

    def foretold(self, expected: float, taken: float) -> None:
        """A configuration was expected to take so many seconds, and took so many."""
        if taken > 0:
            self._errors.append(math.log(taken / expected))

    def spent(self) -> float:
        """Seconds so far."""
        now = 0.0 if self._begun is None else time.monotonic() - self._begun
        return self._earlier + now

    def seconds_left(self) -> float:
        """Seconds that the replicates of a configuration may take together; infinite without a
        budget.
        """
        if self._hours is None:
            return math.inf
        of_search = 3600 * self._hours * self._of_search
        return max(0.0, of_search - self.spent()) * self._together

    def seconds_to_race(self) -> float:
        """Seconds that one more seed may take when the search has ended."""
        if self._hours is None:
            return math.inf
        return max(0.0, 3600 * self._hours - self.spent())

    def share_left(self) -> float:
        """What is left of the time, from 0 to 1; 1 without a budget."""
        if self._hours is None:
            return 1.0
        return max(0.0, 1 - self.spent() / (3600 * self._hours * self._of_search))

    def is_enough(self) -> bool:
        """Whether the time is over, or `search.stop_when` holds."""
        rule = self._search.stop_when
        if not self.share_left():
            return True
        if not isinstance(rule, StopWhen):
            return rule == "goal" and self._has_met_goal()
        return stands_still(self._values, rule, self.objectives)

    def _has_met_goal(self) -> bool:
        """Whether the goal is met; looked up once for each configuration that may meet it."""
        if self._may_be_met and self._is_met():
            return True
        self._may_be_met = False
        return False

    def plan_line(self, seconds: float | None) -> str | None:
        """What the time is expected to give; None without a budget.

        Args:
            seconds: that a configuration takes with an empty cache, where that is known.
        """
        if self._hours is None:
            return None
        said = f"budget of {duration(3600 * self._hours)}"
        if seconds is None:
            return f"{said}; how many configurations it gives is not known yet"
        of_search = 3600 * self._hours * self._of_search
        count = max(1, round(of_search * self._together / seconds))
        return (
            f"{said}: {plural(count, 'configuration')} of {duration(seconds)}, or more where"
            " the stage cache helps"
        )

    def outcome_line(self, configurations: int) -> str | None:
        """What the search took, beside what was expected; None where nothing was."""
        if self._hours is None and not self._errors:
            return None
        said = f"the search took {duration(self.spent())}"
        if self._hours is not None:
            said += f", {percent(self.spent() / (3600 * self._hours), 0)} of its budget"
        said += f", for {plural(configurations, 'configuration')}"
        if self._errors:
            median = float(np.expm1(np.median(np.abs(self._errors))))
            said += (
                f"; their seconds were foretold within {percent(median, 0)} (median of"
                f" {len(self._errors)})"
            )
        return said


def seconds_of_trials(records: Iterable[TrialRecord]) -> float:
    """Length of the union of the times in which trials ran, in seconds."""
    spans = sorted(
        (datetime.fromisoformat(r.started), datetime.fromisoformat(r.ended))
        for r in records
        if r.started is not None and r.ended is not None
    )
    total, until = 0.0, None
    for start, end in spans:
        first = start if until is None else max(start, until)
        total += max(0.0, (end - first).total_seconds())
        until = end if until is None else max(until, end)
    return total


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
