"""The search: which trial comes next, and what the Optuna study hears of it.

Optuna hears COMPLETE only with finite values, PRUNED for what a stopping rule ended, and FAIL for
everything else. It hears of the replicates of one configuration once, by their mean. Every plan is
written before it is handed out, so that a trial has its row from there on, whoever dies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from analysis.contract import ENDED
from sweeps.run.driving import stop_requested
from sweeps.run.folder import trial_folder, trial_name
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage
from sweeps.search.asked import Asked
from sweeps.search.asking import Asking
from sweeps.search.baseline import Baseline
from sweeps.search.budget import Budget
from sweeps.search.costs import known_configuration
from sweeps.search.earlier import read_earlier, unended_numbers
from sweeps.search.known_costs import KnownCosts
from sweeps.search.named import NamedDraws, named_draws
from sweeps.search.plans import new_plan, written_plan
from sweeps.search.portfolio import split_earlier
from sweeps.search.proposals import Proposals
from sweeps.search.race import Runners
from sweeps.search.refine import refining_plans
from sweeps.search.running import Running
from sweeps.search.study import Draw, UndrawnError, checked_draw, open_study
from sweeps.search.warm_start import add_earlier_runs, enumerate_earlier
from sweeps.space.sweep import Sweep
from sweeps.trial.epoch_curve import EpochReport


class StudySearch:
    """Hands out plans of trials, and takes how they ended to the study.

    Records that are complete are kept: their configurations count against the budget and are not
    run again; configurations that lack a replicate are asked for first, under their old number.
    Then come the configurations that are asked for by name (`sweeps.search.named`), then what the
    sampler draws, and when all has ended the trials that refine the front. Before all of them
    comes the baseline, of which the study hears nothing.

    Attributes:
        budget: of time or images.
        notes: lines for the user about how the study begins.
        halted: whether no more trials are handed out, whatever is left.
        asks_baseline: whether the baseline is handed out, before all trials.
    """

    def __init__(self, sweep: Sweep, storage: RunStorage) -> None:
        self.storage, self.run = storage, storage.run
        self._baseline = Baseline(sweep, self.run)
        self.sweep = self._baseline.sweep()
        self.spec = self.sweep.spec
        self._known_costs = KnownCosts(self.sweep)
        self.halted = False
        self.notes: list[str] = []
        records = list(trial_records(self.run))
        self.study, self._abandoned = open_study(
            sweep, self.run, unended_numbers(records, self.spec.search.replicates)
        )
        self._asking = Asking(self.sweep, self.study)
        search, objectives = self.spec.search, self.spec.objectives
        self._pending: deque[tuple[Asked | None, TrialPlan]] = deque()
        self._running = Running()
        self._is_refined, self._is_over = search.refine is None, False
        race, seeds = search.race, search.replicates
        self.budget = Budget(self.spec, self._baseline.relative)
        cost_of = self.budget.cost_of
        self._race = None if race is None else Runners(race, objectives, seeds, cost_of)
        known = self._known_costs
        self._proposals = Proposals(self.spec, sweep.space, self.study, known)
        self._awaits_bounds = self._baseline.is_awaited
        if not self._awaits_bounds:
            self._learn_earlier_runs()
        self._continue_study(records)
        self._queue_baseline()

    # --- what an earlier driver left

    def _learn_earlier_runs(self) -> None:
        objectives, earlier = self.spec.objectives, split_earlier(self.spec)[0]
        self.notes += add_earlier_runs(
            self.study, earlier, self.sweep.space, objectives
        )
        for number, records in enumerate_earlier(earlier):
            self._learn(number, records)

    def _continue_study(self, records: Sequence[TrialRecord]) -> None:
        """Find what is done, what is to run again, and what nobody tried yet.

        Args:
            records: of all trials.
        """
        replicates = self.spec.search.replicates
        abandoned = {n: found.draw for n, found in self._abandoned.items()}
        earlier = read_earlier(records, abandoned, replicates)
        baseline = self._baseline.record()
        for record in [*records, *([] if baseline is None else [baseline])]:
            self._note(record)
        whole = {n for n in earlier.begun if not earlier.missing(n, replicates)}
        for number in sorted(whole - self._abandoned.keys()):
            self._learn(number, earlier.of(number))
        self.next_number = earlier.next_number
        for number in earlier.begun:
            self._asking.note(earlier.draws[number])
        self._reopened: deque[tuple[int, Draw | None]] = deque()
        for number, known in sorted(earlier.draws.items()):
            if number not in whole or number in self._abandoned:
                self._reopen(number, known, number in earlier.begun, number in whole)
        self._unrun = sum(earlier.missing(n, replicates) for n, _ in self._reopened)
        is_exhaustive = self._asking.is_exhaustive
        elsewhere = self._proposals.elsewhere if is_exhaustive else None
        named, said = named_draws(self.sweep, earlier.draws, self.study, is_exhaustive)
        self.notes += said
        self._named = NamedDraws(
            self.run, self.sweep.space, named, self.next_number, elsewhere
        )
        self.remaining = self._budgeted(len(earlier.draws))
        if self._race is not None and not self.budget.left_to_race():
            self.notes.append(
                "search.race: nothing of the budget is left for more seeds"
            )

    def _note(self, record: TrialRecord) -> None:
        """A trial ended, now or under an earlier driver."""
        self.budget.note(record)
        self._known_costs.note(record)
        if self._race is not None:
            self._race.note(record)

    def _reopen(
        self, number: int, known: Draw, has_begun: bool, is_whole: bool
    ) -> None:
        """Queue a configuration that lacks a replicate, or whose end the study does not know."""
        abandoned = self._abandoned.get(number)
        try:
            whole = checked_draw(self.sweep.space, known)[0]
        except ValueError as error:
            was_cut = isinstance(error, UndrawnError) and not has_begun
            if was_cut and abandoned is not None:
                # drawn again, with the same seed
                self._reopened.append((number, abandoned.enqueued or None))
            elif not is_whole:
                self.notes.append(f"configuration {number} is not run again: {error}")
            return
        is_repeat = not has_begun and self._asking.is_tried(whole)
        if is_repeat and abandoned is not None and not abandoned.enqueued:
            # its driver died before it drew another one
            self._reopened.append((number, None))
            return
        self._asking.note(whole)
        if is_whole:
            self._take(number, whole)  # its driver died before the study heard of it
        else:
            self._reopened.append((number, whole))

    def _budgeted(self, known: int) -> int:
        """New configurations to ask for."""
        left = max(0, self.spec.search.trials - known)
        untried = self._asking.untried()
        if untried is None:
            return left
        to_draw = sum(
            found is None or not self._asking.is_tried(found)
            for _, found in self._reopened
        )
        return max(0, min(left, len(untried) - to_draw))

    def _queue_baseline(self) -> None:
        """Let the baseline come first where trials are left to be compared with it."""
        self.asks_baseline = False
        plan = self._baseline.plan if self.num_trials else None
        if plan is None:
            return
        if self._baseline.record() is None:
            self.asks_baseline = True
            self._write_and_queue(None, plan)
        elif self._awaits_bounds:
            self._know_bounds()

    def _know_bounds(self) -> None:
        """The baseline has ended: go on with its bounds, or not at all where it gave none."""
        self._awaits_bounds = False
        if self._baseline.is_awaited:
            self.remaining, self._is_refined = 0, True
            self._reopened.clear()
            self.notes.append(self._baseline.why_unknown())
            return
        self.sweep = self._known_costs.sweep = self._baseline.sweep()
        self.spec = self._proposals.spec = self._asking.spec = self.sweep.spec
        self.budget.objectives = self.spec.objectives
        if self._race is not None:
            self._race.objectives = self.spec.objectives
        self.notes += self._baseline.lines()
        self._learn_earlier_runs()

    # --- which trial comes next

    @property
    def num_trials(self) -> int:
        """Trials that will still be handed out at most, replicates counted."""
        search, race = self.spec.search, self._race
        count = self.remaining * search.replicates + self._unrun
        seeds = search.replicates
        if race is not None and search.race is not None:
            count += race.left(self.remaining + len(self._asking.tried))
            seeds = max(seeds, search.race.most)
        return count + (0 if search.refine is None else search.refine.top * seeds)

    def ask(self) -> TrialPlan | None:
        """The next trial's plan, written; None where there is none left, or none now.

        `is_waiting` says which.
        """
        if self.halted or stop_requested(self.run):
            # the wish can be withdrawn as long as trials run
            self.halted = self.halted or not self._running
            return None
        self.budget.begin()
        is_free = not self._pending and not self._awaits_bounds
        is_over = is_free and not (
            self._ask_study() or self._ask_race() or self._ask_again()
        )
        if is_over and not self.is_waiting:
            self._queue_refined()
        if not self._pending:
            return None
        configuration, plan = self._pending.popleft()
        self._running.begin(plan.trial_id, configuration)
        return plan

    @property
    def is_waiting(self) -> bool:
        """Whether what comes next depends on trials that still run."""
        if self.halted or not self._running:
            return False
        is_open = self._awaits_bounds or not self._is_refined or self._race is not None
        return is_open or stop_requested(self.run)

    def _ask_study(self) -> bool:
        """Queue the replicates of the next configuration; False where none is left."""
        while (self._reopened or self.remaining > 0) and not self._has_enough():
            if self._reopened:
                number, known = self._reopened.popleft()
            else:
                number = self.next_number
                known = self._named.next(
                    number,
                    self._asking.tried,
                    self._running.draws(),
                    self._worth_trying,
                    self._proposals.measured_first,
                )
                if known is None and self._asking.is_exhaustive and self._named.first:
                    self._is_over = True  # what is left of the grid would end too late
                    continue
                self.next_number += 1
                self.remaining -= 1
            if self._take(number, known):
                return True
        return False

    def _take(self, number: int, known: Draw | None) -> bool:
        """Ask the study for a configuration, for this one if it is given.

        Returns:
            False where all of it is recorded already.
        """
        if known is not None:
            configuration = self._asking.again(number, known)
        else:
            found = self._propose(number)
            if self._is_over:
                return False
            configuration = found or self._asking.drawn(number)
        self._asking.note(configuration.draw)
        for replicate in range(self.spec.search.replicates):
            self._queue(configuration, replicate)
        if not configuration.waiting:
            self._end_in_study(configuration)
        return bool(configuration.waiting)

    def _has_enough(self) -> bool:
        """Whether nothing more is tried, since time or `search.stop_when` end the search; what an
        earlier driver left is not, either.
        """
        is_enough = self._is_over or self.budget.is_enough()
        if is_enough:
            self.remaining = self._unrun = 0
            self._reopened.clear()
        return is_enough

    def _propose(self, number: int) -> Asked | None:
        """What gives most for its seconds; None where that cannot be said, or would not end in
        time, so that the search is over.
        """
        share = (1 + self.remaining) / self.spec.search.trials
        share = min(share, self.budget.share_left())
        most = self.budget.left(self._expected_now())
        running = self._running.draws()
        found = self._proposals.choose(number, share, self._asking.tried, running, most)
        if found is None:
            # nothing can be compared: what a configuration usually takes decides
            self._is_over = self._proposals.usual_seconds() > most
            return None
        self._is_over = found.seconds > most
        if self._is_over:
            return None
        configuration = self._asking.this_one(number, found.draw, found.notes)
        configuration.expected = found.seconds
        return configuration

    def _worth_trying(self, draws: Sequence[Draw]) -> list[bool]:
        """Whether each is expected to end within the budget, and may keep the bounds."""
        most = self.budget.left(self._expected_now())
        # a grid that waits for what runs would be taken for one that ends too late
        running = [] if self._asking.is_exhaustive else self._running.draws()
        ends = self._proposals.end_in_time(draws, most)
        may = self._known_costs.may_meet(draws, running, are_named=True)
        return [each and keeps for each, keeps in zip(ends, may, strict=True)]

    def plan_line(self) -> str | None:
        """What a budget of time is expected to give; None without one."""
        return self.budget.plan_line(self._proposals.seconds_of_one())

    def outcome_line(self) -> str | None:
        """What the search took, beside what was expected; None where nothing was."""
        left_out = len(self._known_costs.left_out)
        return self.budget.outcome_line(len(self._asking.tried), left_out)

    def _expected_now(self) -> float:
        """What the trials that run now are expected to take together."""
        return self._running.expected(self._proposals.usual_seconds(), self._race)

    def _learn(self, number: int, records: Sequence[TrialRecord]) -> None:
        objectives, cost_of = self.spec.objectives, self.budget.cost_of
        seeds = self.spec.search.replicates
        known = known_configuration(number, records, objectives, seeds, cost_of)
        self._proposals.learn(known)
        if known is not None and known.values is not None and number >= 0:
            self.budget.found(known.values)

    def _queue(self, configuration: Asked, replicate: int) -> None:
        number = configuration.number
        name = trial_name(number, replicate, self.spec.search.replicates)
        earlier = TrialRecord.read(trial_folder(self.run, name))
        if earlier is not None and earlier.status in ENDED:
            configuration.note(earlier)
            return
        plan = new_plan(self.sweep, number, replicate, configuration.draw)
        configuration.waiting.add(name)
        self._running.plan(name, number, replicate)
        self._write_and_queue(configuration, plan)

    def _write_and_queue(self, configuration: Asked | None, plan: TrialPlan) -> None:
        """Write a plan and hand it out later."""
        plan = written_plan(self.run, plan, self._baseline.bounds())
        self.storage.push_trial(plan.trial_id)
        self._pending.append((configuration, plan))

    def _ask_race(self) -> bool:
        """Queue one more seed of a configuration whose place is not decided, if there is one."""
        if self._race is None or self._baseline.is_awaited:
            return False
        found = self._race.next(
            self._running.seeds(),
            self.budget.left_to_race(self._expected_now()),
        )
        if found is None:
            return False
        number, replicate, draw = found
        plan = new_plan(self.sweep, number, replicate, draw)
        self._running.plan(plan.trial_id, number, replicate)
        self._write_and_queue(None, plan)
        return True

    def _ask_again(self) -> bool:
        """Search on in the time that the race has left over, and race for what is found, too."""
        is_refined = self._is_refined and self.spec.search.refine is not None
        if self._race is None or self._running or is_refined:
            return False
        if not self.budget.give_back():
            return False
        self._is_over, self.remaining = False, self._budgeted(len(self._asking.tried))
        return self._ask_study()

    def _queue_refined(self) -> None:
        """Queue the trials that refine the front, once.

        Those that an earlier driver began keep their numbers.
        """
        refine, spec = self.spec.search.refine, self.spec
        if self._is_refined or refine is None:
            return
        self._is_refined = True
        self.budget.end()
        records = list(trial_records(self.run))
        ended = {r.trial_id for r in records if r.status in ENDED}
        for plan in refining_plans(records, spec, refine, self.next_number):
            self.next_number = max(self.next_number, plan.number + 1)
            if plan.trial_id not in ended:
                self._write_and_queue(None, plan)

    # --- what became of it

    def report(self, trial_id: str, report: EpochReport) -> None:
        """Note an epoch; the study hears of it when every replicate has come so far."""
        configuration = self._running.of(trial_id)
        if configuration is not None:
            configuration.note_epoch(trial_id, report)

    def tell(self, record: TrialRecord) -> None:
        """Take one replicate's end; the study hears of it with the last one.

        A trial that was interrupted has not ended: a continued search runs it again.
        """
        configuration = self._running.end(record.trial_id)
        self._note(record)
        if configuration is None:
            if self._awaits_bounds and self._baseline.record() is not None:
                self._know_bounds()
            return
        configuration.waiting.discard(record.trial_id)
        if record.status in ENDED:
            configuration.note(record, was_reported=True)
        else:
            configuration.abandoned = True
        if not configuration.waiting and not configuration.abandoned:
            self._end_in_study(configuration)

    def _end_in_study(self, configuration: Asked) -> None:
        """Learn from a configuration, and tell the study."""
        self._learn(configuration.number, configuration.records)
        if configuration.expected is not None:
            self.budget.foretold(configuration.expected, configuration.records)
        configuration.tell(self.study)
