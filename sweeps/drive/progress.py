"""Live progress in the terminal: a line for each ended trial and, on a terminal, a bar with
what stands so far.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
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

from analysis.contract import Objective
from analysis.numbers import plain
from sweeps.run.record import TrialRecord
from sweeps.space.sweep import Sweep
from sweeps.values import finite_values, is_feasible

_MARKS = {
    "complete": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "pruned": "[yellow]–[/]",
    "interrupted": "[yellow]…[/]",
}
_STATES = ("running", "complete", "pruned", "failed", "interrupted")


class Standing:
    """The front so far and its hypervolume; keeps no more than the front.

    The reference point is that of the run's tables: 10 % of the range beyond the worst
    trial so far, so the volume is comparable within a glance at the screen, not between
    runs.
    """

    def __init__(self, objectives: list[Objective]) -> None:
        self.objectives = objectives
        self.front = np.empty((0, len(objectives)))
        self.ends: np.ndarray | None = (
            None  # (2, k) least and largest value of each objective
        )

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
        self.front = np.unique(rows[pareto.front_mask(rows, self._goals())], axis=0)

    def _goals(self) -> list[Any]:
        from analysis import pareto

        return [pareto.Objective(o.metric, o.mode) for o in self.objectives]

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
        reference = pareto.reference_point(self.ends, self._goals())
        return pareto.hypervolume(self.front, self._goals(), reference)


class Progress:
    """Draws what the driver tells it; on a pipe only a line for each ended trial."""

    def __init__(self, checked: Sweep, console: Console | None = None) -> None:
        self.dimensions = checked.space.dimensions
        self.objectives = checked.spec.objectives
        self.console = console or Console()
        self.counts: Counter[str] = Counter()
        self.standing = Standing(self.objectives)
        self._bar: Bar | None = None
        self._text = Text()

    def resume(self, records: Iterable[TrialRecord]) -> None:
        """Count trials that ended before this driver began."""
        for record in records:
            self._count(record.content, record.status)

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
        with Live(Group(self._bar, self._text), console=self.console, transient=True):
            yield
        self._bar = None

    def note(self, line: str) -> None:
        """Print a line of the driver's."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def started(self) -> None:
        """One more trial runs."""
        self.counts["running"] += 1
        self._redraw()

    def failed_over(self, trial_id: str) -> None:
        """A trial's process died; it will run again."""
        self.counts["running"] -= 1
        self.note(
            f"{trial_id}  its process died or its node was lost; it goes on from its"
            " last checkpoint"
        )
        self._redraw()

    def ended(self, record: TrialRecord | None) -> None:
        """Print a trial's line."""
        self.counts["running"] -= 1
        if record is not None:
            self._count(record.content, record.status)
            self.console.print(
                self._line(record.content, record.status),
                highlight=False,
                soft_wrap=True,
            )
        if self._bar is not None:
            self._bar.advance(self._task)
        self._redraw()

    def _count(self, content: dict[str, Any], status: str) -> None:
        self.counts[status] += 1
        if status == "complete":
            self.standing.add(content["metrics"])

    def summary(self) -> str:
        """How the sweep stands, in a line."""
        states = " · ".join(
            f"{self.counts[s]} {s}" for s in _STATES if self.counts[s] > 0
        )
        best = " · ".join(
            f"best {name} {plain(value)}"
            for name, value in self.standing.best().items()
        )
        volume = (
            f" · hypervolume {plain(self.standing.hypervolume())}"
            if best and len(self.objectives) > 1
            else ""
        )
        return states + (f"\n{best}{volume}" if best else "")

    def _redraw(self) -> None:
        if self._bar is not None:
            self._text.plain = self.summary()

    def _line(self, content: dict[str, Any], status: str) -> str:
        parts = [f"{_MARKS.get(status, '?')} {content['trial_id']}"]
        if content.get("refines") is not None:
            parts.append(f"refines {content['refines']}")
        if status == "complete":
            parts += [
                f"[bold]{o.metric} {plain(content['metrics'].get(o.metric))}[/]"
                for o in self.objectives
            ]
        elif status == "pruned":
            seen = content["pruned"]
            value = plain(content["metrics"].get(seen["metric"]))
            parts.append(
                f"[yellow]stopped at epoch {seen['epoch']} of {seen['stage']},"
                f" {seen['metric']} {value}[/]"
            )
        elif content.get("error"):
            message = f"{content['error']['type']}: {content['error']['message']}".splitlines()[
                0
            ]
            parts.append(f"[red]{escape(message[:200])}[/]")
        params = content.get("params") or {}
        drawn = [d for d in self.dimensions if d.is_drawn(params)]
        shown = [
            f"{d.path.removeprefix('stages.')}={plain(d.decode(params))}" for d in drawn
        ]
        parts.append(f"[dim]{escape(' '.join(shown))}[/]")
        stages = content.get("stages") or []
        hits = sum(bool(s.get("cached")) for s in stages)
        seconds = content.get("seconds")
        if seconds is not None:
            cached = f", {hits} of {len(stages)} stages cached" if hits else ""
            parts.append(f"[dim]({seconds:.1f} s{cached})[/]")
        return "  ".join(parts)
