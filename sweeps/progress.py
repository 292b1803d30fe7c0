"""Live progress in the terminal: a line for each ended trial and, on a terminal, a bar."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sweeps.check import Checked
from sweeps.records import TrialRecord

_MARKS = {"complete": "[green]✓[/]", "failed": "[red]✗[/]", "pruned": "[yellow]–[/]", "interrupted": "[yellow]…[/]"}


def short(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


class Progress:
    """Draws what the driver tells it."""

    def __init__(self, checked: Checked, console: Console | None = None) -> None:
        self.objectives = checked.spec.objectives
        self.params = [d.path for d in checked.space.dimensions]
        self.console = console or Console()
        self.best: dict[str, float] = {}
        self._bar: Bar | None = None

    @contextlib.contextmanager
    def drawn(self, total: int) -> Iterator[None]:
        """The bar, while the sweep runs."""
        columns = (
            TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[best]}"),
        )  # fmt: skip
        if not self.console.is_terminal:
            yield
            return
        with Bar(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task("trials", total=total, best="")
            yield
        self._bar = None

    def ended(self, record: TrialRecord | None) -> None:
        """Print a trial's line."""
        if record is None:
            return
        content = record.content
        self.console.print(self._line(content, record.status), highlight=False, soft_wrap=True)
        if self._bar is not None:
            best = "  ".join(f"best {name} {short(value)}" for name, value in self.best.items())
            self._bar.update(self._task, advance=1, best=best)

    def _line(self, content: dict[str, Any], status: str) -> str:
        parts = [f"{_MARKS.get(status, '?')} {content['trial_id']}"]
        if status == "complete":
            for objective in self.objectives:
                value = content["metrics"].get(objective.metric)
                parts.append(f"[bold]{objective.metric} {short(value)}[/]")
                self._note_best(objective.metric, objective.mode, value)
        elif content.get("error"):
            message = f"{content['error']['type']}: {content['error']['message']}".splitlines()[0]
            parts.append(f"[red]{escape(message[:200])}[/]")
        params = content.get("params") or {}
        shown = [f"{p.removeprefix('stages.')}={short(params[p])}" for p in self.params if p in params]
        parts.append(f"[dim]{escape(' '.join(shown))}[/]")
        stages = content.get("stages") or []
        hits = sum(bool(s.get("cached")) for s in stages)
        seconds = content.get("seconds")
        if seconds is not None:
            cached = f", {hits} of {len(stages)} stages cached" if hits else ""
            parts.append(f"[dim]({seconds:.1f} s{cached})[/]")
        return "  ".join(parts)

    def _note_best(self, name: str, mode: str, value: Any) -> None:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return
        known = self.best.get(name)
        if known is None or (value < known if mode == "min" else value > known):
            self.best[name] = value
