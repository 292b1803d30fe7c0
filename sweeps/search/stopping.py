"""Stopping rules: which trials are given up early, by their epochs.

A rule sees each epoch of each trial once and answers one question. Rules know nothing of Ray; those
of Ray Tune draw from numpy's global random state and keep Tune's own trials alive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from math import inf, log

import moocore
import numpy as np

from sweeps.run.record import TrialRecord
from sweeps.spec.search_options import EarlyStopping
from sweeps.trial.epoch_curve import EpochReport, compared_cost, curve
from trainers.seeding import derive_seed

_HORIZON = 10**6
"""Epochs that no trial reaches: rungs lie at grace_epochs × reduction_factor^k below it."""


class StoppingRule(ABC):
    """Decides after each epoch whether a trial is given up."""

    @abstractmethod
    def gives_up(self, trial_id: str, report: EpochReport) -> bool:
        """Take an epoch, and say whether the trial should end there.

        Args:
            report: the trial's next epoch; epochs may be missing, none comes twice.
        """


class Halving(StoppingRule):
    """Asynchronous successive halving, ASHA (Li et al. 2020, arXiv:1810.05934).

    A trial that comes to a rung is compared with all that came there before: it goes on if its
    value is at least their (1 - 1/reduction_factor) quantile. With several brackets (HyperBand's)
    each trial belongs to one, drawn from its id; bracket s leaves out the first s rungs, and a
    bracket with one rung more is e times as likely.
    """

    def __init__(self, spec: EarlyStopping, seed: int, brackets: int) -> None:
        self.factor, self.seed = spec.reduction_factor, seed
        self.sign = 1.0 if spec.direction == "max" else -1.0
        count = log(_HORIZON / spec.grace_epochs) / log(self.factor)
        self.rungs = [
            [
                spec.grace_epochs * self.factor ** (k + s)
                for k in range(int(count - s + 1))
            ]
            for s in range(brackets)
        ]
        self._came: defaultdict[tuple[int, float], dict[str, float]] = defaultdict(dict)

    def bracket_of(self, trial_id: str) -> int:
        """The trial's bracket; the same for all drivers of a sweep."""
        sizes = np.array([len(rungs) for rungs in self.rungs])
        weights = np.e ** (sizes - sizes.max())
        seed = derive_seed(self.seed, "bracket", trial_id) % 2**32
        random = np.random.RandomState(seed)
        return int(random.choice(len(sizes), p=weights / weights.sum()))

    def gives_up(self, trial_id: str, report: EpochReport) -> bool:
        bracket = self.bracket_of(trial_id)
        reached = [rung for rung in self.rungs[bracket] if rung <= report.epoch]
        if not reached:
            return False
        came = self._came[bracket, reached[-1]]
        if trial_id in came:
            return False
        value = self.sign * report.value
        quantile = -inf
        if came:
            quantile = np.nanpercentile(
                list(came.values()), (1 - 1 / self.factor) * 100
            )
        came[trial_id] = value
        return bool(value < quantile)


class FrontHalving(StoppingRule):
    """Asynchronous successive halving on fronts, after MO-ASHA (Schmucker et al. 2021,
    arXiv:2106.12639).

    A trial that comes to a rung (grace_epochs × reduction_factor^k epochs) is ranked among all that
    came there by fronts of value and cost: 0 for those that no other dominates, 1 for those that
    only these dominate, ... It goes on if it is of front 0, or if it and all of the fronts before
    its own are no more than 1/reduction_factor of them. So the cheap end of the front, whose models
    learn slowly, is not given up for an accuracy that it never promised.
    """

    def __init__(self, spec: EarlyStopping) -> None:
        self.spec = spec
        self.sign = -1.0 if spec.direction == "max" else 1.0
        self._came: defaultdict[float, dict[str, tuple[float, float]]]
        self._came = defaultdict(dict)

    def gives_up(self, trial_id: str, report: EpochReport) -> bool:
        assert report.cost is not None, "this rule compares by a cost"
        factor, rung = self.spec.reduction_factor, float(self.spec.grace_epochs)
        if report.epoch < rung:
            return False
        while rung * factor <= report.epoch:
            rung *= factor
        came = self._came[rung]
        if trial_id in came:
            return False
        came[trial_id] = (self.sign * report.value, report.cost)
        fronts = moocore.pareto_rank(np.array(list(came.values())))
        ahead = int(np.count_nonzero(fronts < fronts[-1]))
        return bool(ahead + 1 > max(1.0, len(came) / factor))


class Median(StoppingRule):
    """The median stopping rule of Vizier (Golovin et al. 2017).

    From grace_epochs on, a trial ends where its best value so far is worse than the median, over
    all other trials that came as far, of their mean values from grace_epochs to this epoch.
    """

    def __init__(self, spec: EarlyStopping) -> None:
        self.spec = spec
        self.best = max if spec.direction == "max" else min
        self._reports: defaultdict[str, list[EpochReport]] = defaultdict(list)

    def gives_up(self, trial_id: str, report: EpochReport) -> bool:
        mine = self._reports[trial_id]
        mine.append(report)
        if report.epoch < self.spec.grace_epochs:
            return False
        others = [
            self._mean_until(report.epoch, reports)
            for other, reports in self._reports.items()
            if other != trial_id and reports[-1].epoch >= report.epoch
        ]
        finite = [mean for mean in others if np.isfinite(mean)]
        if len(finite) < self.spec.min_trials:
            return False
        best = self.best(r.value for r in mine)
        return bool(self.best(np.median(finite), best) != best)

    def _mean_until(self, epoch: int, reports: list[EpochReport]) -> float:
        values = [
            r.value for r in reports if self.spec.grace_epochs <= r.epoch <= epoch
        ]
        return float(np.mean(values)) if values else np.nan


def rule_of(spec: EarlyStopping, seed: int = 0) -> StoppingRule:
    """The rule that a spec names.

    Args:
        seed: of the sweep; brackets follow from it.
    """
    if spec.scheduler == "moasha":
        return FrontHalving(spec)
    if spec.scheduler == "median":
        return Median(spec)
    brackets = spec.brackets if spec.scheduler == "hyperband" else 1
    return Halving(spec, seed, brackets)


class EarlyStopper:
    """Asks a rule about each new epoch of a trial, once.

    An epoch that a restarted trial repeats is not asked about again, and the last one of a trial
    always stands. Epochs of trials that ended under an earlier driver are shown to the rule first,
    so that a continued sweep compares with them too.
    """

    def __init__(
        self, spec: EarlyStopping, seed: int, earlier: Iterable[TrialRecord] = ()
    ) -> None:
        self.spec, self.rule = spec, rule_of(spec, seed)
        self._seen: dict[str, int] = {}
        for record in earlier:
            self._replay(record)

    def _replay(self, record: TrialRecord) -> None:
        stopping = record.plan.stopping
        if stopping is None or record.status not in ("complete", "pruned"):
            return
        if self.spec.stage not in (None, stopping.stage):
            return
        update = {"metric": self.spec.metric, "cost": compared_cost(self.spec)}
        for report in curve(record.epochs(), stopping.model_copy(update=update)):
            self.rule.gives_up(record.trial_id, report)

    def gives_up(self, trial_id: str, report: EpochReport) -> bool:
        """Whether the trial should end after this epoch."""
        if report.epoch <= self._seen.get(trial_id, 0):
            return False
        self._seen[trial_id] = report.epoch
        return self.rule.gives_up(trial_id, report) and not report.is_last
