"""Tune's schedulers on the watched epochs of our trials."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from sweeps.execute import Plan
from sweeps.records import TrialRecord
from sweeps.spec import EarlyStopping
from sweeps.watched import Row, curve
from trainers.seeding import derive_seed

_HORIZON = 10**6  # epochs that no trial reaches: rungs lie at grace × factor^k below it


@dataclass(frozen=True)
class _Ref:
    """All that a rule needs of a trial; Tune's own would be kept alive with its plan."""

    trial_id: str


def _rule(spec: EarlyStopping) -> FIFOScheduler:
    shared = {"time_attr": "epoch", "metric": "value", "mode": spec.direction, "grace_period": spec.grace_epochs}
    if spec.scheduler == "median":
        # never yields to others: a paused trial would lose its process
        return MedianStoppingRule(**shared, min_samples_required=spec.min_trials, min_time_slice=float("inf"))
    return AsyncHyperBandScheduler(
        **shared, max_t=_HORIZON, reduction_factor=spec.reduction_factor, stop_last_trials=False,
        brackets=spec.brackets if spec.scheduler == "hyperband" else 1,
    )  # fmt: skip


class EpochScheduler(FIFOScheduler):
    """Asks a rule of Tune's about each new epoch of a trial, once, and tells `on_stop` whom it gives up, and after what.

    An epoch that a restarted trial repeats is not asked about again, and the last one of a trial always stands.
    Epochs of trials that ended under an earlier driver are shown to the rule first: a continued sweep compares
    with them too.
    """

    def __init__(
        self, spec: EarlyStopping, seed: int, earlier: Iterable[TrialRecord], on_stop: Callable[[Plan, Row], None]
    ) -> None:
        super().__init__()
        self.spec, self.seed, self.on_stop = spec, seed, on_stop
        self.rule = _rule(spec)
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
        for report in curve(record.epochs(), watch | {"metric": self.spec.metric}):
            self.rule.on_trial_result(None, ref, report)

    def _add(self, trial_id: str) -> _Ref:
        ref = _Ref(trial_id)
        # Tune draws a trial's bracket from numpy's global state: from the trial's name, so that all drivers agree
        state = np.random.get_state()
        np.random.seed(derive_seed(self.seed, "bracket", trial_id) % 2**32)
        self.rule.on_trial_add(None, ref)
        np.random.set_state(state)
        return ref

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is about to start."""
        self._add(trial.config["plan"]["trial_id"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        plan, epoch = trial.config["plan"], result.get("epoch")
        identity = plan["trial_id"]
        if epoch is None or epoch <= self._seen.get(identity, 0):
            return TrialScheduler.CONTINUE
        self._seen[identity] = epoch
        report = {"epoch": epoch, "value": result["value"]}
        decision: str = self.rule.on_trial_result(None, _Ref(identity), report)
        if decision != TrialScheduler.STOP or result["is_last"]:
            return TrialScheduler.CONTINUE
        self.on_stop(plan, report)
        return TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The rule keeps what it saw."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings at the start; it never loads them here
