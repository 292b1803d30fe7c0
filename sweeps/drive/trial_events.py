"""What the driver does when a trial starts, reports an epoch, ends, or dies with its process.

The record of a trial whose process died is ended here. Every record is read once, at the trial's
end; study, progress and trackers get it from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sweeps.drive.deaths import KILLED_FOR_MEMORY, Death, death_of
from sweeps.drive.progress import Progress
from sweeps.drive.trackers import TrackerFeed
from sweeps.run.faults import innermost, is_storage_fault
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.search.stopping import EarlyStopper
from sweeps.trial.epoch_curve import EpochReport, prune


class TrialEvents:
    """Keeps records, study, progress and trackers together while trials run.

    Attributes:
        fault: what a trial said of storage that is full or read-only; None while all is well.
        given_up: trials that Tune has ended although they may fail more often. It does so where a
            process dies of memory while it starts.
        fitted: how many trials at a time memory has been seen to hold, when one of more was killed
            for it; None while all is well. That ends the run, and is no failure of the trial.
    """

    def __init__(
        self,
        storage: RunStorage,
        search: StudySearch,
        stopper: EarlyStopper | None,
        progress: Progress,
        trackers: TrackerFeed,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_ending` says whether the sweep is being stopped: a process that dies then, by the
        same signal perhaps, is no failure of its trial.
        """
        self.storage, self.search, self.stopper = storage, search, stopper
        self.progress, self.trackers = progress, trackers
        self._is_stopped = is_ending
        self.fault: str | None = None
        self.given_up: list[str] = []
        self.fitted: int | None = None
        self._running: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._death: Death | None = None

    def is_ending(self) -> bool:
        """Whether a trial that ends now has not failed by itself."""
        return self.fault is not None or self.fitted is not None or self._is_stopped()

    def next_plan(self) -> TrialPlan | None:
        """The plan of the trial to start next, if there is one now."""
        return self.search.ask()

    def started(self, trial_id: str) -> None:
        """A trial's process begins, or begins again."""
        self._running.add(trial_id)
        self.progress.started(trial_id)
        self.trackers.started(trial_id)

    def reported(self, trial_id: str, report: EpochReport) -> bool:
        """Take an epoch; whether the trial is given up.

        Its record then says so, before its process hears of it.
        """
        if self.stopper is None or not self.stopper.gives_up(trial_id, report):
            self.search.report(trial_id, report)
            return False
        self.storage.pull_trial(trial_id)
        prune(self._record(trial_id), report)
        return True

    def finished(self, fault: str | None) -> None:
        """A trial's process has ended its record.

        Args:
            fault: why the storage took no more.
        """
        self.storage.push_run()
        if fault is not None:
            self.fault, self.search.halted = fault, True

    def process_failed(self, error: Exception) -> None:
        """What the trial died of that `will_run_again` or `ended` is about to be called for."""
        if is_storage_fault(error):
            self.fault, self.search.halted = str(innermost(error)), True
        self._death = death_of(error)
        if self._death.kind == KILLED_FOR_MEMORY and len(self._running) > 1:
            self.fitted = self.fitted or len(self._running) - 1

    def will_run_again(self, trial_id: str) -> None:
        """A trial's process has died, and another one takes its place."""
        self._deaths[trial_id] += 1
        death, self._death = self._death, None
        if not self.is_ending():
            self.progress.failed_over(trial_id, (death or Death()).happened)

    def ended(self, trial_id: str, *, died: bool) -> None:
        """A trial has ended.

        Args:
            died: whether its process died, for the last time: the driver then ends its record.
        """
        self._running.discard(trial_id)
        self.storage.pull_trial(trial_id)
        record = self._record(trial_id)
        death, self._death = self._death, None
        if died and record.status == "running" and not self.is_ending():
            if self._deaths[trial_id] < self.search.spec.search.max_failures:
                record.finish("interrupted", error=(death or Death()).error(1))
                self.given_up.append(trial_id)
            else:
                self._end_record(record, death)
        said = len(self.search.notes)
        self.search.tell(record)
        self.progress.ended(record)
        for line in self.search.notes[said:]:
            self.progress.note(line)
        self.progress.know(self.search.spec.objectives)
        self.trackers.ended(record)

    def _end_record(self, record: TrialRecord, death: Death | None) -> None:
        deaths = self._deaths[record.trial_id] + 1
        record.attempts = max(record.attempts, deaths)
        record.finish("failed", error=(death or Death()).error(record.attempts))
        self.storage.push_trial(record.trial_id)

    def step(self) -> None:
        """Some time has passed."""
        self.trackers.look()
        self.progress.look()

    def _record(self, trial_id: str) -> TrialRecord:
        record = TrialRecord.read(trial_folder(self.storage.run, trial_id))
        assert record is not None, f"{trial_id} has a plan from before it was started"
        return record
