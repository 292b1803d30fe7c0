"""Live progress in the terminal: a line for each ended trial, and on a terminal also a bar with
how the sweep stands so far.
"""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from analysis.contract import (
    BASELINE,
    STATUSES,
    Objective,
    Status,
    finite_values,
    is_feasible,
)
from analysis.numbers import number, plain, quantity
from analysis.text import short_names
from sweeps.console import PlainConsole
from sweeps.drive.running import RunningTrial, RunningTrials
from sweeps.run.faults import TrialError
from sweeps.run.record import TrialRecord

_MARKS: dict[Status, str] = {
    "complete": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "pruned": "[yellow]–[/]",
    "interrupted": "[yellow]…[/]",
}

SECONDS_BETWEEN_LINES = 300.0
"""On a pipe, between two lines about how the sweep stands."""
VALUE_WIDTH = 10
"""Characters that a metric's value takes beside its name, so that lines stand below each other."""
LONGEST_ERROR = 400
"""Characters of a trial's error that its line shows."""


class Standing:
    """The front so far and its hypervolume; keeps no more than the front.

    The reference point is that of the run's tables: 10 % of the range beyond the worst
    trial so far, so the volume is comparable within a glance at the screen, not between
    runs.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = objectives
        self.front = np.empty((0, len(objectives)))
        self.ends: np.ndarray | None = None
        """(2, k): the least and the largest value of each objective."""
        self._volume: float | None = None

    def add(self, metrics: dict[str, Any]) -> bool:
        """Take a complete trial's metrics; what is not finite or not feasible changes nothing.

        Returns:
            Whether the trial is on the front now.
        """
        from analysis import pareto

        values = finite_values(metrics, self.objectives)
        if values is None or not is_feasible(metrics, self.objectives):
            return False
        self._volume = None
        row = np.array([values])
        ends = row.repeat(2, axis=0) if self.ends is None else self.ends
        self.ends = np.stack([np.minimum(ends[0], row[0]), np.maximum(ends[1], row[0])])
        rows = np.concatenate([self.front, row])
        self.front = np.unique(rows[pareto.front_mask(rows, self._unbounded())], axis=0)
        return bool((self.front == row).all(axis=1).any())

    def _unbounded(self) -> list[Objective]:
        """The objectives without bounds: what is kept here is within them."""
        return [Objective(o.metric, o.mode) for o in self.objectives]

    def best(self) -> dict[str, float]:
        """Metric → its best value so far."""
        if self.ends is None:
            return {}
        return {
            o.metric: float(self.ends[int(o.mode == "max"), i])
            for i, o in enumerate(self.objectives)
        }

    def hypervolume(self) -> float:
        """In the product of the metrics' units; 0 before the first trial."""
        from analysis import pareto

        if self.ends is None:
            return 0.0
        # of many objectives it takes long, and a line is drawn often
        if self._volume is None:
            goals = self._unbounded()
            reference = pareto.reference_point(self.ends, goals)
            self._volume = pareto.hypervolume(self.front, goals, reference)
        return self._volume


def _is_whole(record: TrialRecord) -> bool:
    """Whether the trial is its whole configuration: a front is of means over replicates."""
    return "-r" not in record.trial_id


def cut(text: str, width: int) -> str:
    """Text that is at most so wide; its end is left out."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _one_line(error: TrialError) -> str:
    """Type and message; a very long message ends between two words, the record has all of it."""
    words = f"{error.type}: {error.message}"
    return textwrap.shorten(words, LONGEST_ERROR, placeholder=" … (`sweeps status`)")


class Progress:
    """Draws what the driver says: a line for each ended trial, and on a terminal also how each
    running one and the whole sweep stand. On a pipe the latter comes every few minutes.

    Args:
        objectives: of the sweep.
        units: metric → its unit (`sweeps.drive.metrics.units`).
        console: where it is drawn.

    Attributes:
        share_left: how much of the search's budget is left, from 0 to 1; set by the driver.
        begun: trials that have started since the last attempt of the driver began.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        units: Mapping[str, str],
        console: Console | None = None,
    ) -> None:
        self.objectives = objectives
        self.units = units
        self.console = console or PlainConsole()
        self.counts: Counter[Status] = Counter()
        self.standing = Standing(objectives)
        self.running: RunningTrials | None = None
        self.share_left: Callable[[], float] = lambda: 1.0
        self.begun = 0
        self._bar: Bar | None = None
        self._text = Text()
        self._next_line = 0.0
        self._ended = 0
        self._stages: dict[tuple[str, str], int] = {}

    def know(self, objectives: Sequence[Objective]) -> None:
        """The objectives, whose bounds may be known only now that the baseline has ended."""
        self.objectives = self.standing.objectives = objectives

    def resume(self, records: Iterable[TrialRecord]) -> None:
        """Count trials that ended before this driver began."""
        for record in records:
            self._count(record)

    @contextlib.contextmanager
    def drawn(self, total: int, run: Path | None = None) -> Iterator[None]:
        """The bar, while the sweep runs.

        Args:
            total: trials that will run.
            run: where they record what they do, if that can be seen from here.
        """
        self.running = None if run is None else RunningTrials(run)
        self._ended = 0
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        if not self._is_drawn:
            yield
            return
        self._bar = self._new_bar()
        self._task = self._bar.add_task("trials", total=total)
        shown = Group(self._bar, self._text)
        try:
            with Live(shown, console=self.console, transient=True):
                yield
        finally:
            self._bar = None

    def _new_bar(self) -> Bar:
        return Bar(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )

    def _done(self) -> float:
        """How far the bar is, in trials."""
        return self._ended + (0.0 if self.running is None else self.running.share)

    @property
    def _is_drawn(self) -> bool:
        """Whether there is a screen to draw on again and again."""
        return self.console.is_terminal

    def note(self, line: str) -> None:
        """Print a line of the driver's."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def started(self, trial_id: str) -> None:
        """One more trial runs."""
        self.begun += 1
        self.counts["running"] += 1
        if self.running is not None:
            self.running.started(trial_id)
        self._redraw()

    def look(self) -> None:
        """Some time has passed: look at the trials that run."""
        if self.running is None or not self.running.look():
            return
        self._redraw()
        if self._bar is not None:
            return
        self._tell_stages()
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self._tell_standing()

    def _tell_standing(self) -> None:
        """In a log, every few minutes: how all stands."""
        self.note("; ".join([*self.summary().splitlines(), *self._trials_now()]))

    def _tell_stages(self) -> None:
        """In a log: a line for each stage that a running trial has ended."""
        trials = {} if self.running is None else self.running.trials
        for trial in trials.values():
            key = trial.trial_id, trial.token
            for stage in trial.ended[self._stages.get(key, 0) :]:
                self._stage_ended(trial, stage)
            self._stages[key] = len(trial.ended)

    def _stage_ended(self, trial: RunningTrial, stage: str) -> None:
        self.note(f"{trial.trial_id}  {stage} has ended, then {trial.stage}")

    def _trials_now(self) -> list[str]:
        """A line for each trial that runs."""
        trials = {} if self.running is None else self.running.trials
        return [
            f"{name}  {trial.said(self.objectives)}" for name, trial in trials.items()
        ]

    def restarted(self) -> None:
        """No trial runs now: a new attempt of the driver begins."""
        self.begun = 0
        self.counts["running"] = 0

    def failed_over(self, trial_id: str, why: str) -> None:
        """A trial's process died, and why; it will run again."""
        self.counts["running"] -= 1
        if self.running is not None:
            self.running.ended(trial_id)
        self.note(f"{trial_id}  {why}; it goes on from its last checkpoint")
        self._redraw()

    def ended(self, record: TrialRecord) -> None:
        """Print a trial's line."""
        self.counts["running"] -= 1
        if self.running is not None:
            self.running.ended(record.trial_id)
        is_trial = record.trial_id != BASELINE
        is_best = is_trial and self._count(record)
        self._tell_end(record, is_best)
        self._ended += is_trial
        self._redraw()

    def _tell_end(self, record: TrialRecord, is_best: bool) -> None:
        self._print(self._line(record, is_best))

    def _print(self, line: str) -> None:
        """A line, cut at the end of a terminal's; whole on a pipe."""
        if self.console.is_terminal:
            self.console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")
        else:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _count(self, record: TrialRecord) -> bool:
        """Count a trial; whether it is on the front so far."""
        self.counts[record.status] += 1
        return record.status == "complete" and self.standing.add(record.outcome.metrics)

    def summary(self) -> str:
        """How the sweep stands, in a line."""
        states = " · ".join(
            f"{self.counts[s]} {s}" for s in STATUSES if self.counts[s] > 0
        )
        best = " · ".join(
            f"best {self._measured(name, value)}"
            for name, value in self.standing.best().items()
        )
        volume = (
            f" · hypervolume {self._about}{number(self.standing.hypervolume())}"
            if best and len(self.objectives) > 1
            else ""
        )
        return states + (f"\n{best}{volume}" if best else "")

    @property
    def _about(self) -> str:
        from analysis import pareto

        points = len(self.standing.front)
        return "" if pareto.is_exact(points, len(self.objectives)) else "about "

    def _redraw(self) -> None:
        if self._bar is None:
            return
        self._bar.update(self._task, completed=self._done())
        width = self.console.width
        lines = [*self._trials_now(), *self.summary().splitlines()]
        self._text.plain = "\n".join(cut(line, width) for line in lines)

    def _line(self, record: TrialRecord, is_best: bool) -> str:
        """What never changes its place comes first; the parameters may be cut."""
        plan, outcome = record.plan, record.outcome
        star = "[yellow]★[/]" if is_best and _is_whole(record) else " "
        parts = [f"{_MARKS.get(record.status, '?')} {record.trial_id} {star}"]
        if plan.refines is not None:
            parts.append(f"refines {plan.refines}")
        parts += self._result(record)
        if outcome.seconds is not None:
            parts.append(f"[dim]{outcome.seconds:6.1f} s[/]")
        names = short_names(list(plan.configuration))
        shown = [f"{names[p]}={plain(v)}" for p, v in plan.configuration.items()]
        parts.append(f"[dim]{escape(' '.join(shown))}[/]")
        hits = sum(stage.cached for stage in outcome.stage_runs)
        if hits:
            cached = f"{hits} of {len(outcome.stage_runs)} stages cached"
            parts.append(f"[dim]{cached}[/]")
        return "  ".join(parts)

    def _measured(self, name: str, value: float | None) -> str:
        """A metric's name and value."""
        unit = self.units.get(name, "")
        # a share as a bound of the spec states it, so that the two can be compared
        shown = number(value) if unit == "fraction" else quantity(value, unit)
        return f"{name} {shown}"

    def _result(self, record: TrialRecord) -> list[str]:
        """What a trial gave, or why it gave nothing."""
        outcome = record.outcome
        if record.status == "complete":
            shown = [
                self._measured(o.metric, outcome.metrics.get(o.metric))
                for o in self.objectives
            ]
            widths = [len(o.metric) + VALUE_WIDTH for o in self.objectives]
            return [
                f"[bold]{text:<{width}}[/]"
                for text, width in zip(shown, widths, strict=True)
            ]
        if outcome.pruned is not None:
            seen = outcome.pruned
            value = self._measured(seen.metric, outcome.metrics.get(seen.metric))
            return [
                f"[yellow]stopped at epoch {seen.epoch} of {seen.stage}, {value}[/]"
            ]
        if outcome.error is not None:
            return [f"[red]{escape(_one_line(outcome.error))}[/]"]
        return []
