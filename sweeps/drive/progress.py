"""Live progress in the terminal: a line for each ended trial, and on a terminal also a bar with
how the sweep stands so far.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from sweeps.console import PlainConsole
from sweeps.run.record import TrialError, TrialRecord

_MARKS: dict[Status, str] = {
    "complete": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "pruned": "[yellow]–[/]",
    "interrupted": "[yellow]…[/]",
}

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

    def add(self, metrics: dict[str, Any]) -> None:
        """Take a complete trial's metrics; what is not finite or not feasible changes nothing."""
        from analysis import pareto

        values = finite_values(metrics, self.objectives)
        if values is None or not is_feasible(metrics, self.objectives):
            return
        row = np.array([values])
        ends = row.repeat(2, axis=0) if self.ends is None else self.ends
        self.ends = np.stack([np.minimum(ends[0], row[0]), np.maximum(ends[1], row[0])])
        rows = np.concatenate([self.front, row])
        self.front = np.unique(rows[pareto.front_mask(rows, self._unbounded())], axis=0)

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
        reference = pareto.reference_point(self.ends, self._unbounded())
        return pareto.hypervolume(self.front, self._unbounded(), reference)


def _one_line(error: TrialError) -> str:
    """Type and message; a very long message ends between two words, the record has all of it."""
    words = f"{error.type}: {error.message}"
    return textwrap.shorten(words, LONGEST_ERROR, placeholder=" … (`sweeps status`)")


class Progress:
    """Draws what the driver says; on a pipe only a line for each ended trial.

    Args:
        objectives: of the sweep.
        units: metric → its unit (`sweeps.drive.metrics.units`).
        console: where it is drawn.
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
        self._bar: Bar | None = None
        self._text = Text()

    def resume(self, records: Iterable[TrialRecord]) -> None:
        """Count trials that ended before this driver began."""
        for record in records:
            self._count(record)

    @contextlib.contextmanager
    def drawn(self, total: int) -> Iterator[None]:
        """The bar, while the sweep runs."""
        if not self.console.is_terminal:
            yield
            return
        self._bar = Bar(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("trials", total=total)
        shown = Group(self._bar, self._text)
        try:
            with Live(shown, console=self.console, transient=True):
                yield
        finally:
            self._bar = None

    def note(self, line: str) -> None:
        """Print a line of the driver's."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def started(self) -> None:
        """One more trial runs."""
        self.counts["running"] += 1
        self._redraw()

    def restarted(self) -> None:
        """No trial runs now: a new attempt of the driver begins."""
        self.counts["running"] = 0

    def failed_over(self, trial_id: str, why: str) -> None:
        """A trial's process died, and why; it will run again."""
        self.counts["running"] -= 1
        self.note(f"{trial_id}  {why}; it goes on from its last checkpoint")
        self._redraw()

    def ended(self, record: TrialRecord) -> None:
        """Print a trial's line."""
        self.counts["running"] -= 1
        self.console.print(self._line(record), highlight=False, soft_wrap=True)
        if record.trial_id != BASELINE:
            self._count(record)
            if self._bar is not None:
                self._bar.advance(self._task)
        self._redraw()

    def _count(self, record: TrialRecord) -> None:
        self.counts[record.status] += 1
        if record.status == "complete":
            self.standing.add(record.outcome.metrics)

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

        return "about " if len(self.objectives) > pareto.MOST_EXACT else ""

    def _redraw(self) -> None:
        if self._bar is not None:
            self._text.plain = self.summary()

    def _line(self, record: TrialRecord) -> str:
        plan, outcome = record.plan, record.outcome
        parts = [f"{_MARKS.get(record.status, '?')} {record.trial_id}"]
        if plan.refines is not None:
            parts.append(f"refines {plan.refines}")
        parts += self._result(record)
        shown = [
            f"{path.removeprefix('stages.')}={plain(value)}"
            for path, value in plan.configuration.items()
        ]
        parts.append(f"[dim]{escape(' '.join(shown))}[/]")
        if outcome.seconds is not None:
            hits = sum(stage.cached for stage in outcome.stage_runs)
            of = f", {hits} of {len(outcome.stage_runs)} stages cached" if hits else ""
            parts.append(f"[dim]({outcome.seconds:.1f} s{of})[/]")
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
            return [
                f"[bold]{self._measured(o.metric, outcome.metrics.get(o.metric))}[/]"
                for o in self.objectives
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
