"""A configuration that was asked for: what its replicates gave, and what the study hears of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState

from analysis.contract import Objective
from sweeps.run.record import TrialRecord
from sweeps.search.study import Draw
from sweeps.search.warm_start import constraints_of, mean_values
from sweeps.trial.epoch_curve import EpochReport, curve


@dataclass
class Asked:
    """One configuration of a study, from the asking to its end.

    Attributes:
        trial: the study's trial.
        number: of the configuration.
        draw: what was asked for.
        objectives: of the sweep.
        replicates: trials that it is asked for with.
        reports_curves: whether the study hears of epochs.
        waiting: ids of its trials that have not ended.
        values: the objectives of each complete replicate.
        curves: epoch → trial → reported value, of each replicate that came so far.
        pruned: replicates that a stopping rule ended.
        abandoned: one was interrupted: a continued search runs it and ends this trial of the study.
        records: of the replicates that ended.
        expected: seconds or images that it was expected to take, where something was.
    """

    trial: optuna.Trial
    number: int
    draw: Draw
    objectives: Sequence[Objective]
    replicates: int
    reports_curves: bool = False
    waiting: set[str] = field(default_factory=set)
    values: list[list[float]] = field(default_factory=list)
    curves: dict[int, dict[str, float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    pruned: int = 0
    abandoned: bool = False
    records: list[TrialRecord] = field(default_factory=list)
    expected: float | None = None

    def expected_of_trial(self, usual: float) -> float:
        """What one of its trials is expected to take.

        Args:
            usual: of a configuration of which nothing was expected.
        """
        whole = usual if self.expected is None else self.expected
        return whole / self.replicates

    def note_epoch(self, trial_id: str, report: EpochReport) -> None:
        """Take an epoch; the study hears of it when every replicate has come so far.

        A process that died and began again reports its epochs once more.
        """
        values = self.curves[report.epoch]
        is_repeat = trial_id in values
        values[trial_id] = report.value
        is_whole = len(values) == self.replicates
        if self.reports_curves and is_whole and not is_repeat:
            self.trial.report(sum(values.values()) / len(values), report.epoch)

    def note(self, record: TrialRecord, was_reported: bool = False) -> None:
        """Take an ended replicate.

        Args:
            was_reported: its epochs were reported as they came, but for the last of a pruned one.
        """
        self.records.append(record)
        values = record.values(self.objectives)
        if values is not None:
            self.values.append(values)
        self.pruned += record.status == "pruned"
        if not self.reports_curves or record.status not in ("complete", "pruned"):
            return
        reports = curve(record.epochs(), record.plan.stopping)
        if was_reported:
            reports = reports[-1:] if record.status == "pruned" else []
        for report in reports:
            self.note_epoch(record.trial_id, report)

    def tell(self, study: optuna.Study) -> None:
        """COMPLETE with the mean where more replicates completed than were pruned.

        Else PRUNED, or FAIL where none was: the mean over the few that were not pruned would
        flatter the configuration.
        """
        if len(self.values) <= self.pruned:
            state = TrialState.PRUNED if self.pruned else TrialState.FAIL
            study.tell(self.trial, state=state)
            return
        means = mean_values(self.values)
        for name, excess in constraints_of(means, self.objectives).items():
            self.trial.set_constraint(name, excess)
        study.tell(self.trial, means)
