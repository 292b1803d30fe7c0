"""A thin Searcher between Ray Tune and an Optuna study kept in the run folder.

Optuna hears COMPLETE only with finite values, PRUNED for what was stopped early, FAIL for
everything else; replicates of one configuration are told once, as their mean.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sweeps.run.driving import stop_requested
from sweeps.run.record import TrialRecord, trial_folder, trial_records
from sweeps.search.refine import front_numbers, refined_stages
from sweeps.search.study import (
    DRAWS,
    Point,
    UndrawnError,
    canonical,
    draw,
    open_study,
    placed,
    seed_sampler,
    tried_points,
)
from sweeps.search.warm_start import add_earlier_runs
from sweeps.space.resolve import resolved_trial
from sweeps.space.sweep import Sweep
from sweeps.spec.load import portable
from sweeps.spec.model import Spec
from sweeps.trial.epoch_curve import curve, watch_of
from sweeps.values import excesses, finite_values
from trainers.seeding import derive_seed

ENDED = ("complete", "failed", "pruned")
"""States of trials that are not run again."""
_ENUMERABLE = 100_000


@dataclass
class _Configuration:
    """One asked-for point and what its replicates gave so far.

    Attributes:
        waiting: trial ids that have not ended.
        values: the objectives of each complete replicate.
        curves: epoch → watched values, one for each replicate that came so far.
        pruned: replicates that were stopped early.
        abandoned: one was interrupted: a continued search runs it and tells the study.
    """

    trial: optuna.Trial
    number: int
    assignment: Point
    waiting: set[str] = field(default_factory=set)
    values: list[list[float]] = field(default_factory=list)
    curves: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    pruned: int = 0
    abandoned: bool = False


def trial_id(number: int, replicate: int, replicates: int) -> str:
    return f"{number:05d}" if replicates == 1 else f"{number:05d}-r{replicate}"


class StudySearch(Searcher):
    """Suggests plans (see `sweeps.trial.execute.Plan`) and tells the study how they ended.

    Records that are complete are kept: their configurations count against the budget and
    are not run again; configurations that lack a replicate are asked for first, under their
    old number. Then come the points to try first, then what the sampler draws, and when all
    has ended the trials that refine the front.

    Attributes:
        notes: lines for the user about how the study begins.
    """

    def __init__(self, checked: Sweep, run: Path, common: dict[str, Any]) -> None:
        super().__init__()
        self.checked, self.run, self.common = checked, run, common
        self.spec: Spec = checked.spec
        self._identity, size = checked.space.identity, checked.space.size()
        self._is_listed = self._is_exhaustive or (
            size is not None and size <= _ENUMERABLE
        )
        self.halted = False
        self.notes: list[str] = []
        self.study, self._lost = open_study(checked, run)
        search, objectives = self.spec.search, self.spec.objectives
        self.notes += add_earlier_runs(
            self.study, search.earlier_runs, checked.space, objectives
        )
        # one objective, and it is what is watched: Optuna's curves and pruned values then
        # mean something
        rule = search.early_stopping
        goals = [(o.metric, o.mode) for o in objectives]
        self._tells_curves = rule is not None and goals == [
            (rule.metric, rule.direction)
        ]
        self._pending: deque[tuple[_Configuration | None, dict[str, Any]]] = deque()
        self._running: dict[str, tuple[_Configuration | None, str]] = {}
        self._refined = search.refine is None
        self._continue_study()

    def _continue_study(self) -> None:
        """Find what is done, what is to run again, and the points that nobody tried yet."""
        replicates = self.spec.search.replicates
        ended: defaultdict[int, int] = defaultdict(int)
        begun: set[int] = set()
        points: dict[int, Point] = {
            number: lost.point for number, lost in self._lost.items()
        }
        self.next_number = 1 + max(self._lost, default=-1)
        for record in trial_records(self.run):
            number = record.content["number"]
            self.next_number = max(self.next_number, number + 1)
            if record.content.get("refines") is None:
                points[number] = record.content["params"]
                begun.add(number)
                ended[number] += record.status in ENDED
        self._tried = {self._identity(points[number]) for number in begun}
        self._reopened: deque[tuple[int, Point | None]] = deque()
        for number in sorted(
            n for n in points if ended[n] < replicates or n in self._lost
        ):
            try:
                point = placed(self.checked.space, points[number])[0]
            except ValueError as error:
                if (
                    isinstance(error, UndrawnError)
                    and number in self._lost
                    and number not in begun
                ):
                    self._reopened.append(
                        (number, self._lost[number].given or None)
                    )  # drawn again, with the same seed
                elif ended[number] < replicates:
                    self.notes.append(
                        f"configuration {number} is not run again: {error}"
                    )
                continue
            if (
                number not in begun
                and not self._lost[number].given
                and self._identity(point) in self._tried
            ):
                self._reopened.append(
                    (number, None)
                )  # its driver died before it drew another point
                continue
            self._tried.add(self._identity(point))
            if ended[number] < replicates:
                self._reopened.append((number, point))
            else:
                self._take(number, point)  # its driver died before it told the study
        self._unrun = sum(replicates - ended[number] for number, _ in self._reopened)
        self._first = deque(self._points_to_try(points))
        self.remaining = self._budget(len(points))

    def _points_to_try(self, known: dict[int, Point]) -> list[Point]:
        """The spec's points, and for a grid all others, less those that have been tried."""
        points = list(self.checked.points)
        if self._is_exhaustive:
            grid = self.checked.space.grid() or []
            first: list[Point] = []
            for given in points:
                match = next(p for p in grid if given.items() <= p.items())
                first += [match] if match not in first else []
            points = first + [p for p in grid if p not in first]
        tried = {canonical(p) for p in known.values()} | set(tried_points(self.study))
        return [p for p in points if canonical(p) not in tried]

    @property
    def _is_exhaustive(self) -> bool:
        return self.spec.search.sampler == "grid" or not self.checked.space.dimensions

    def _budget(self, known: int) -> int:
        """New configurations to ask for."""
        left, untried = max(0, self.spec.search.trials - known), self._untried()
        to_draw = sum(
            point is None or self._identity(point) not in self._tried
            for _, point in self._reopened
        )
        return left if untried is None else max(0, min(left, len(untried) - to_draw))

    def _untried(self) -> list[Point] | None:
        """What was not asked for yet; None where it is too much to list."""
        if not self._is_listed:
            return None
        return [
            p
            for p in self.checked.space.grid() or []
            if self._identity(p) not in self._tried
        ]

    @property
    def num_trials(self) -> int:
        """Trials that this searcher will still suggest at most, replicates counted."""
        new = self.remaining * self.spec.search.replicates + self._unrun
        refine = self.spec.search.refine
        return new + (
            refine.top * self.spec.search.replicates if refine is not None else 0
        )

    def suggest(self, tune_id: str) -> dict[str, Any] | str | None:
        """A plan under the key `plan`, None (ask again: what refines the front waits for
        its end) or FINISHED.
        """
        if self.halted or stop_requested(self.run):
            self.halted = True
            return Searcher.FINISHED
        if not self._pending and not self._ask():
            if not self._refined and self._running:
                return None
            self._queue_refined()
        if not self._pending:
            return Searcher.FINISHED
        configuration, plan = self._pending.popleft()
        self._running[tune_id] = (configuration, plan["trial_id"])
        return {"plan": plan}

    def _ask(self) -> bool:
        """Draw the next configuration and queue its replicates; False where none is left."""
        while self._reopened or self.remaining > 0:
            number: int = self.next_number
            point: Point | None = None
            if self._reopened:
                number, point = self._reopened.popleft()
            else:
                point = self._first.popleft() if self._first else None
                self.next_number += 1
                self.remaining -= 1
            if self._take(number, point):
                return True
        return False

    def _take(self, number: int, point: Point | None) -> bool:
        """Ask the study for a configuration, for this one if it is given; False where all
        of it is recorded already.
        """
        configuration = (
            self._draw(number) if point is None else self._ask_for(number, point)
        )
        self._tried.add(self._identity(configuration.assignment))
        for replicate in range(self.spec.search.replicates):
            self._queue(configuration, replicate)
        if not configuration.waiting:
            self._tell(configuration)
        return bool(configuration.waiting)

    def _ask_for(self, number: int, point: Point) -> _Configuration:
        """This point; the sampler draws what it lacks."""
        self.study.enqueue_trial(point, user_attrs={"number": number})
        seed_sampler(self.study, self.spec, number)
        trial = self.study.ask()
        return _Configuration(trial, number, self.checked.space.suggest(trial))

    def _draw(self, number: int) -> _Configuration:
        """What the sampler draws; where it only repeats itself, any other point: of a
        continuum one at random.
        """

        def suggest(trial: optuna.Trial) -> Point:
            trial.set_user_attr("number", number)
            return self.checked.space.suggest(trial)

        def reseed(attempt: int) -> None:
            seed_sampler(self.study, self.spec, number, attempt)

        attempts = DRAWS if self._is_listed else 2 * DRAWS
        trial, point = draw(
            self.study, suggest, self._identity, self._tried, reseed, attempts
        )
        if trial is not None:
            return _Configuration(trial, number, point)
        left = self._untried() or [point]
        return self._ask_for(
            number, left[derive_seed(self.spec.seed, "untried", number) % len(left)]
        )

    def _queue(self, configuration: _Configuration, replicate: int) -> None:
        spec, number = self.spec, configuration.number
        name = trial_id(number, replicate, spec.search.replicates)
        earlier = TrialRecord.read(trial_folder(self.run, name))
        if earlier is not None and earlier.status in ENDED:
            self._note(configuration, earlier)
            return
        resolved = resolved_trial(self.checked.space, configuration.assignment)
        plan = self.common | {
            "trial_id": name,
            "number": number,
            "replicate": replicate,
            "seed": spec.seed + replicate,
            "source": portable(resolved.source),
            "data": portable(resolved.data),
            "stages": [
                {"name": s.name, "stage": s.kind, "config": portable(s.config)}
                for s in resolved.stages
            ],
            "config": resolved.config,
            "params": configuration.assignment,
            "watch": watch_of(resolved.stages, spec.search.early_stopping),
        }
        configuration.waiting.add(name)
        self._pending.append((configuration, plan))

    def _queue_refined(self) -> None:
        """Queue the trials that refine the front, once; those of an earlier driver under
        their old numbers.
        """
        refine, spec = self.spec.search.refine, self.spec
        if self._refined or refine is None:
            return
        self._refined = True
        records = [r.content for r in trial_records(self.run)]
        known = {
            (r["refines"], canonical(r["pipeline"])): r["number"]
            for r in records
            if r.get("refines") is not None
        }
        by_id = {r["trial_id"]: r for r in records}
        for base in front_numbers(records, spec.objectives, refine.top):
            replicas = [
                r for r in records if r["number"] == base and r["status"] == "complete"
            ]
            stages, config = refined_stages(replicas[0], refine)
            number = known.get((base, canonical(stages)), self.next_number)
            self.next_number = max(self.next_number, number + 1)
            for record in replicas:
                name = trial_id(number, record["replicate"], spec.search.replicates)
                if by_id.get(name, {}).get("status") not in ENDED:
                    same = {
                        key: record[key]
                        for key in ("replicate", "seed", "source", "data", "params")
                    }
                    plan = {
                        "trial_id": name,
                        "number": number,
                        "stages": stages,
                        "config": config,
                        "refines": base,
                    }
                    self._pending.append((None, self.common | same | plan))

    def on_trial_result(self, tune_id: str, result: dict[str, Any]) -> None:
        """Note an epoch; the study hears of it when every replicate has come so far."""
        configuration, _ = self._running[tune_id]
        if configuration is not None and "epoch" in result:
            self._note_epoch(configuration, result)

    def _note_epoch(
        self, configuration: _Configuration, report: dict[str, Any]
    ) -> None:
        values = configuration.curves[report["epoch"]]
        values.append(report["value"])
        if self._tells_curves and len(values) == self.spec.search.replicates:
            configuration.trial.report(sum(values) / len(values), report["epoch"])

    def on_trial_complete(
        self, tune_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take one replicate's end; tell the study when it was the last."""
        configuration, name = self._running.pop(tune_id)
        if configuration is None:
            return
        configuration.waiting.discard(name)
        # the record, not Tune's result: it is what a resumed search will see too
        record = TrialRecord.read(trial_folder(self.run, name))
        if (record is not None and record.status == "interrupted") or "fault" in (
            result or {}
        ):
            configuration.abandoned = True
        elif record is not None:
            self._note(configuration, record, heard=True)
        if not configuration.waiting and not configuration.abandoned:
            self._tell(configuration)

    def _note(
        self, configuration: _Configuration, record: TrialRecord, heard: bool = False
    ) -> None:
        """Take an ended replicate; `heard`: its epochs were reported as they came, but for
        the last of a pruned one.
        """
        if record.status == "complete":
            values = finite_values(record.content["metrics"], self.spec.objectives)
            if values is not None:
                configuration.values.append(values)
        configuration.pruned += record.status == "pruned"
        if self._tells_curves and record.status in ("complete", "pruned"):
            reports = curve(record.epochs(), record.content.get("watch"))
            for report in (
                (reports[-1:] if record.status == "pruned" else [])
                if heard
                else reports
            ):
                self._note_epoch(configuration, report)

    def _tell(self, configuration: _Configuration) -> None:
        """COMPLETE with the mean where more replicates completed than were pruned; else
        PRUNED, or FAIL.

        The mean over the few that were not pruned would flatter the configuration.
        """
        trial, values = configuration.trial, configuration.values
        if len(values) > configuration.pruned:
            self._tell_complete(
                trial,
                [sum(column) / len(column) for column in zip(*values, strict=True)],
            )
        else:
            self.study.tell(
                trial,
                state=TrialState.PRUNED if configuration.pruned else TrialState.FAIL,
            )

    def _tell_complete(self, trial: optuna.Trial, means: Sequence[float]) -> None:
        for name, excess in excesses(means, self.spec.objectives).items():
            trial.set_constraint(name, excess)
        self.study.tell(trial, means)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the records are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the records are the state."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its settings at the start; it never loads them here
        return {}
