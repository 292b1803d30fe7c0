"""Rules of Tune's, and one for several objectives, on the watched epochs of our trials."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from sweeps.run.record import TrialRecord
from sweeps.spec.model import EarlyStopping
from sweeps.trial.epoch_curve import Row, compared, curve
from sweeps.trial.execute import Plan
from trainers.seeding import derive_seed

_HORIZON = 10**6  # epochs that no trial reaches: rungs lie at grace × factor^k below it


@dataclass(frozen=True)
class _Ref:
    """All that a rule needs of a trial; Tune's own would be kept alive with its plan."""

    trial_id: str


class FrontHalving(FIFOScheduler):
    """Asynchronous successive halving on fronts, after MO-ASHA (Schmucker et al. 2021,
    arXiv:2106.12639).

    A trial that comes to a rung (grace_epochs × reduction_factor^k epochs) is ranked among
    all that came there by fronts of value and cost: 0 for those that no other beats, 1 for
    those that only these beat, ... It goes on if it is of front 0, or if it and all of the
    fronts before its own are no more than 1/reduction_factor of them. So the cheap end of
    the front, whose models learn slowly, is not given up for an accuracy that it never
    promised.
    """

    def __init__(self, spec: EarlyStopping) -> None:
        super().__init__()
        self.spec = spec
        self._came: dict[float, dict[str, tuple[float, float]]] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: a trial counts when it comes to a rung."""

    def on_trial_result(
        self, tune_controller: Any, trial: Any, result: dict[str, Any]
    ) -> str:
        """STOP or CONTINUE after {"epoch": from 1, "value", "cost"}."""
        factor, rung = self.spec.reduction_factor, float(self.spec.grace_epochs)
        if result["epoch"] < rung:
            return TrialScheduler.CONTINUE
        while rung * factor <= result["epoch"]:
            rung *= factor
        came = self._came.setdefault(rung, {})
        if trial.trial_id in came:
            return TrialScheduler.CONTINUE
        sign = -1.0 if self.spec.direction == "max" else 1.0
        came[trial.trial_id] = (sign * result["value"], result["cost"])
        fronts = moocore.pareto_rank(np.array(list(came.values())))
        ahead = int(np.count_nonzero(fronts < fronts[-1]))
        return (
            TrialScheduler.CONTINUE
            if ahead + 1 <= max(1.0, len(came) / factor)
            else TrialScheduler.STOP
        )


def rule_of(spec: EarlyStopping) -> FIFOScheduler:
    """The rule of that name, which is told of every epoch."""
    if spec.scheduler == "moasha":
        return FrontHalving(spec)
    shared = {
        "time_attr": "epoch",
        "metric": "value",
        "mode": spec.direction,
        "grace_period": spec.grace_epochs,
    }
    if spec.scheduler == "median":
        # never yields to others: a paused trial would lose its process
        return MedianStoppingRule(
            **shared, min_samples_required=spec.min_trials, min_time_slice=float("inf")
        )
    return AsyncHyperBandScheduler(
        **shared,
        max_t=_HORIZON,
        reduction_factor=spec.reduction_factor,
        stop_last_trials=False,
        brackets=spec.brackets if spec.scheduler == "hyperband" else 1,
    )


class EpochScheduler(FIFOScheduler):
    """Asks a rule about each new epoch of a trial, once, and tells `on_stop` whom it gives
    up, and after what.

    An epoch that a restarted trial repeats is not asked about again, and the last one of a
    trial always stands. Epochs of trials that ended under an earlier driver are shown to
    the rule first: a continued sweep compares with them too.
    """

    def __init__(
        self,
        spec: EarlyStopping,
        seed: int,
        earlier: Iterable[TrialRecord],
        on_stop: Callable[[Plan, Row], None],
    ) -> None:
        super().__init__()
        self.spec, self.seed, self.on_stop = spec, seed, on_stop
        self.rule = rule_of(spec)
        self._seen: dict[str, int] = {}
        for record in earlier:
            self._replay(record)

    def _replay(self, record: TrialRecord) -> None:
        watch = record.content.get("watch")
        if (
            watch is None
            or record.status not in ("complete", "pruned")
            or self.spec.stage not in (None, watch["stage"])
        ):
            return
        ref = self._add(record.content["trial_id"])
        for report in curve(record.epochs(), watch | compared(self.spec)):
            self.rule.on_trial_result(None, ref, report)

    def _add(self, trial_id: str) -> _Ref:
        ref = _Ref(trial_id)
        # Tune draws a trial's bracket from numpy's global state: from the trial's name, so
        # that all drivers agree
        state = np.random.get_state()
        np.random.seed(derive_seed(self.seed, "bracket", trial_id) % 2**32)
        self.rule.on_trial_add(None, ref)
        np.random.set_state(state)
        return ref

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is about to start."""
        self._add(trial.config["plan"]["trial_id"])

    def on_trial_result(
        self, tune_controller: Any, trial: Any, result: dict[str, Any]
    ) -> str:
        """STOP or CONTINUE."""
        plan, epoch = trial.config["plan"], result.get("epoch")
        identity = plan["trial_id"]
        if epoch is None or epoch <= self._seen.get(identity, 0):
            return TrialScheduler.CONTINUE
        self._seen[identity] = epoch
        report: Row = {
            name: result[name] for name in ("epoch", "value", "cost") if name in result
        }
        decision: str = self.rule.on_trial_result(None, _Ref(identity), report)
        if decision != TrialScheduler.STOP or result["is_last"]:
            return TrialScheduler.CONTINUE
        self.on_stop(plan, report)
        return TrialScheduler.STOP

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: dict[str, Any]
    ) -> None:
        """The rule keeps what it saw."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings at the start; it never loads them here
