"""A thin Searcher between Ray Tune and an Optuna study kept in the run folder.

Optuna hears COMPLETE only with finite values, FAIL for everything that has none; replicates of one
configuration are told once, as their mean.
"""

import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sweeps.check import Checked
from sweeps.records import TrialRecord, trial_folder, trial_records
from sweeps.samplers import make_sampler
from sweeps.space import resolved_trial
from sweeps.spec import Spec
from trainers.seeding import derive_seed


def open_study(checked: Checked, run: Path) -> optuna.Study:
    """The run's study, made or continued; `optuna-dashboard RUN/study.journal` opens the same file."""
    spec = checked.spec
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=spec.name,
        storage=JournalStorage(JournalFileBackend(str(run / "study.journal"))),
        directions=["minimize" if o.mode == "min" else "maximize" for o in spec.objectives],
        load_if_exists=True,
    )
    # a continued study must not draw its first points a second time
    seed = derive_seed(spec.seed, "sampler", len(study.get_trials(deepcopy=False))) % 2**32
    study.sampler = make_sampler(spec.search.sampler, seed, spec.search.sampler_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([o.metric for o in spec.objectives])
    return study


ENDED = ("complete", "failed", "pruned")
"""States of trials that are not run again."""


@dataclass
class _Configuration:
    """One asked-for point and the values of its replicates so far."""

    trial: optuna.Trial
    number: int
    assignment: dict[str, Any]
    waiting: set[str] = field(default_factory=set)
    values: list[list[float]] = field(default_factory=list)
    abandoned: bool = False


def trial_id(number: int, replicate: int, replicates: int) -> str:
    return f"{number:05d}" if replicates == 1 else f"{number:05d}-r{replicate}"


class StudySearch(Searcher):
    """Suggests plans (see `sweeps.trial.Plan`) and tells the study how they ended.

    Records that are complete are kept: their configurations count against the budget and are not run
    again; configurations that lack a replicate are asked for first, under their old number.
    """

    def __init__(self, checked: Checked, run: Path, common: dict[str, Any]) -> None:
        super().__init__()
        self.checked, self.run, self.common = checked, run, common
        self.spec: Spec = checked.spec
        self.study = open_study(checked, run)
        self._pending: deque[tuple[_Configuration, dict[str, Any]]] = deque()
        self._running: dict[str, tuple[_Configuration, str]] = {}
        self._continue_study()

    def _continue_study(self) -> None:
        """Fail what nobody runs, count what is done, enqueue what is not and the points to try first."""
        unfinished = self._abandoned_points()
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        records = {r.content["number"]: r for r in trial_records(self.run)}
        for number, record in records.items():
            if not all(self._ended(number, k) for k in range(self.spec.search.replicates)):
                unfinished[number] = record.content["params"]
        self.next_number = 1 + max([*records, *unfinished], default=-1)
        self.remaining = self.checked.num_configurations - self.next_number
        taken = {t.user_attrs.get("number") for t in waiting}
        for number, point in sorted(unfinished.items()):
            if number not in taken:
                self.study.enqueue_trial(point, user_attrs={"number": number})
        self.reopened = deque(sorted(unfinished))
        if not records and not unfinished and not self.study.get_trials(deepcopy=False):
            points = self.checked.points
            if self.spec.search.sampler == "grid" or not self.checked.space.dimensions:
                points = points + [p for p in self.checked.space.grid() or [] if p not in points]
            for point in points:
                self.study.enqueue_trial(point)

    def _abandoned_points(self) -> dict[int, dict[str, Any]]:
        """Number → point of what a driver that died had asked for; without this a grid would lose points."""
        points: dict[int, dict[str, Any]] = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            point = trial.system_attrs.get("fixed_params", {}) | trial.params
            if "number" in trial.user_attrs:
                points[trial.user_attrs["number"]] = point
            elif point:  # it died between asking and numbering
                self.study.enqueue_trial(point)
        return points

    def _ended(self, number: int, replicate: int) -> TrialRecord | None:
        """The record of a trial that is not to run again, or None."""
        identity = trial_id(number, replicate, self.spec.search.replicates)
        record = TrialRecord.read(trial_folder(self.run, identity))
        return record if record is not None and record.status in ENDED else None

    @property
    def num_trials(self) -> int:
        """Trials that this searcher will still suggest, replicates counted."""
        replicates = self.spec.search.replicates
        done = sum(self._ended(n, k) is not None for n in self.reopened for k in range(replicates))
        return (max(0, self.remaining) + len(self.reopened)) * replicates - done

    def suggest(self, tune_id: str) -> dict[str, Any] | str | None:
        """A plan under the key `plan`, or FINISHED."""
        if not self._pending and not self._ask():
            return Searcher.FINISHED
        configuration, plan = self._pending.popleft()
        self._running[tune_id] = (configuration, plan["trial_id"])
        return {"plan": plan}

    def _ask(self) -> bool:
        """Draw the next configuration and queue its replicates."""
        if not self.reopened and self.remaining <= 0:
            return False
        trial = self.study.ask()
        number = trial.user_attrs.get("number")
        if number is not None and number in self.reopened:
            self.reopened.remove(number)
        else:
            number, self.next_number = self.next_number, self.next_number + 1
            self.remaining -= 1
            trial.set_user_attr("number", number)
        assignment = self.checked.space.suggest(trial)
        configuration = _Configuration(trial, number, assignment)
        for replicate in range(self.spec.search.replicates):
            self._queue(configuration, replicate)
        if not configuration.waiting:  # every replicate was recorded already
            self._tell(configuration)
            return self._ask()
        return True

    def _queue(self, configuration: _Configuration, replicate: int) -> None:
        spec, number = self.spec, configuration.number
        identity = trial_id(number, replicate, spec.search.replicates)
        if (earlier := self._ended(number, replicate)) is not None:
            if earlier.status == "complete":
                self._note(configuration, earlier.content["metrics"])
            return
        resolved = resolved_trial(self.checked.space, configuration.assignment)
        plan = self.common | {
            "trial_id": identity, "number": number, "replicate": replicate, "seed": spec.seed + replicate,
            "source": resolved.source.model_dump(mode="json"), "data": resolved.data.model_dump(mode="json"),
            "stages": [
                {"name": s.name, "stage": s.kind, "config": s.config.model_dump(mode="json")} for s in resolved.stages
            ],
            "config": resolved.config, "params": configuration.assignment,
        }  # fmt: skip
        configuration.waiting.add(identity)
        self._pending.append((configuration, plan))

    def on_trial_complete(self, tune_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take one replicate's end; tell the study when it was the last."""
        configuration, identity = self._running.pop(tune_id)
        configuration.waiting.discard(identity)
        # the record, not Tune's result: it is what a resumed search will see too
        record = TrialRecord.read(trial_folder(self.run, identity))
        if record is not None and record.status == "interrupted":
            configuration.abandoned = True  # a continued search runs it and tells it
        if record is not None and record.status == "complete":
            self._note(configuration, record.content["metrics"])
        if not configuration.waiting and not configuration.abandoned:
            self._tell(configuration)

    def _note(self, configuration: _Configuration, metrics: dict[str, Any]) -> None:
        values = [metrics.get(o.metric) for o in self.spec.objectives]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            configuration.values.append([float(v) for v in values if v is not None])

    def _tell(self, configuration: _Configuration) -> None:
        if not configuration.values:
            self.study.tell(configuration.trial, state=TrialState.FAIL)
            return
        means = [sum(column) / len(column) for column in zip(*configuration.values, strict=True)]
        for objective, mean in zip(self.spec.objectives, means, strict=True):
            if objective.bound is not None:
                excess = mean - objective.bound if objective.mode == "min" else objective.bound - mean
                configuration.trial.set_constraint(f"bound.{objective.metric}", excess)
        self.study.tell(configuration.trial, means)

    def on_trial_result(self, tune_id: str, result: dict[str, Any]) -> None:
        """Nothing: only ends count here."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the records are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the records are the state."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its settings at the start; it never loads them here
        return {}
