"""Progress towards a goal: what is tried, how it compares with the goal, the time left."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from analysis.contract import BASELINE, Objective, is_feasible
from analysis.goal import bounded_by_source
from analysis.numbers import duration, percent, plain, plural, quantity
from sweeps.drive.progress import Progress
from sweeps.drive.running import RunningTrial
from sweeps.run.driving import request_stop
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan, read_plan
from sweeps.run.record import TrialRecord
from sweeps.shrink.reach import Reach

_NAMES = {
    "channels": "fewer channels",
    "low_rank": "low rank",
    "tokens": "merged tokens",
    "smaller": "smaller:",
    "nvit": "NViT",
    "tuned": "tuned",
    "int8": "int8",
    "int8_mixed": "int8",
    "int8_trained": "int8 trained",
    "int4": "int4",
    "int4_trained": "int4 trained",
}
"""Alternative of a slot → what it is called."""
_TOLD: Mapping[str, Callable[[Any], str]] = {
    "target.": plain,
    "epochs": plain,
    "r": plain,
    "model": plain,
    "args": plain,
    "four_bit_fraction": lambda share: f"in {percent(share, 0)} of the weights",
    "float_layer_count": lambda count: f"but for {plural(count, 'layer')}",
}
"""Parameters of an alternative → how their values are said behind its name."""
_HARDLY = 0.1
"""Of the way from chance to knowing all classes: a model that was trained for them is beyond it."""
_BY_FAR = 4.0
"""Standard errors that chance does not explain."""
_NOTICEABLE = 0.02
"""Between validation and test part, in accuracy."""


def said(configuration: Mapping[str, Any]) -> str:
    """'fewer channels 0.7, tuned 4, int8': the slots of a configuration that do something."""
    parts = []
    for slot in ("cut", "tune", "store"):
        chosen = configuration.get(f"stages.{slot}")
        if not isinstance(chosen, str) or chosen in ("none", "float"):
            continue
        inner = f"stages.{slot}.{chosen}."
        values = [
            say(value)
            for key, value in configuration.items()
            for name, say in _TOLD.items()
            if key.startswith(f"{inner}{name}") and value is not None
        ]
        parts.append(" ".join([_NAMES.get(chosen, chosen), *values]))
    return ", ".join(parts) or "as it is"


def hardly_knows(metrics: Mapping[str, Any], classes: int) -> str | None:
    """That the source guesses, in a sentence, and what most often makes it; None where it does not.

    Args:
        metrics: that were measured of the source.
        classes: their number.
    """
    found = metrics.get("balanced_accuracy")
    chance = 1 / classes
    if found is None or found > chance + _HARDLY * (1 - chance):
        return None
    return (
        f"the source is hardly better than guessing: a balanced accuracy of {percent(found)},"
        f" by chance {percent(chance)}. Was it trained with the input that the plan shows, and"
        " with the classes in this order?"
    )


def knows_by_heart(
    metrics: Mapping[str, Any], val_images: int, test_images: int
) -> str | None:
    """That the source was trained with the validation images, in a sentence, where it recognises
    more of them than of the test images, by far more than chance explains; None where it does not.

    Args:
        metrics: that were measured of the source.
        val_images, test_images: of the two parts.
    """
    here, there = metrics.get("accuracy"), metrics.get("test_accuracy")
    if here is None or there is None or not val_images or not test_images:
        return None
    # one success and one failure more in each part, as all right is no certainty
    images = val_images + test_images + 4
    share = (here * val_images + there * test_images + 2) / images
    parts = 1 / (val_images + 2) + 1 / (test_images + 2)
    error = math.sqrt(share * (1 - share) * parts)
    if here - there < max(_BY_FAR * error, _NOTICEABLE):
        return None
    return (
        f"the source recognises {percent(here)} of the validation part and {percent(there)} of"
        " the test part: most likely it was trained with these validation images, so what a"
        " candidate loses there says little of new ones; give data that it has not seen"
    )


class GoalProgress(Progress):
    """Says of each trial what it tried and whether it meets the goal; of the whole, the best so far
    and the time left. Where a goal turns out to be out of reach it says so, and asks the driver to
    stop.

    Args:
        hours: for the search.
        reach: judges whether the goal can be reached.
        classes: of the data, their number.
        val_images, test_images: of the two parts.

    Attributes:
        verdict: that the goal is out of reach, in a sentence; None while it may be met.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        units: Mapping[str, str],
        console: Console | None = None,
        *,
        hours: float,
        reach: Reach,
        classes: int,
        val_images: int = 0,
        test_images: int = 0,
    ) -> None:
        super().__init__(objectives, units, console)
        self.verdict: str | None = None
        self._reach = reach
        self._classes = classes
        self._images = val_images, test_images
        self._seconds = 3600 * hours
        self._run: Path | None = None
        self._tried: dict[str, str] = {}
        self._source: Mapping[str, Any] = {}

    @contextlib.contextmanager
    def drawn(self, total: int, run: Path | None = None) -> Iterator[None]:
        """See `Progress`; the bar is the time of the search, of all its drivers."""
        self._run = run
        source = None if run is None else TrialRecord.read(trial_folder(run, BASELINE))
        if source is not None:  # of a search that goes on
            self._source = source.outcome.metrics
        with super().drawn(round(self._seconds), run):
            self._judge()
            yield

    def resume(self, records: Iterable[TrialRecord]) -> None:
        """Count trials that ended before, and what they show."""
        ended = list(records)
        for record in ended:
            self._reach.note(record)
        super().resume(ended)

    def ended(self, record: TrialRecord) -> None:
        """Print a trial's line; end the search where it shows that it is in vain."""
        if record.trial_id == BASELINE and record.status == "complete":
            self._source = record.outcome.metrics
        super().ended(record)
        if record.trial_id == BASELINE and record.status == "complete":
            found = record.outcome.metrics
            doubts = (
                hardly_knows(found, self._classes),
                knows_by_heart(found, *self._images),
            )
            for doubt in filter(None, doubts):
                self.note(doubt)
        self._reach.note(record)
        self._judge()

    def _judge(self) -> None:
        if self.verdict is not None or self._run is None:
            return
        self.verdict = self._reach.verdict(self.objectives, self.units)
        if self.verdict is not None:
            self.note(self.verdict)
            request_stop(self._run)

    def _stage_ended(self, trial: RunningTrial, stage: str) -> None:
        """In a log, of training alone: what is cut or stored takes seconds."""
        if stage == "tune":
            tried = self._tried.get(trial.trial_id, trial.trial_id)
            self.note(f"  {tried}: tuned, then {trial.stage}")

    def _new_bar(self) -> Bar:
        return Bar(
            TextColumn("time"), BarColumn(), TimeElapsedColumn(), console=self.console
        )

    def _done(self) -> float:
        """How far the bar is: seconds that are gone."""
        return self._seconds * (1 - self.share_left())

    def started(self, trial_id: str) -> None:
        """One more trial runs."""
        if self._run is not None:
            self._tried[trial_id] = _words(read_plan(trial_folder(self._run, trial_id)))
        super().started(trial_id)

    def _trials_now(self) -> list[str]:
        trials = {} if self.running is None else self.running.trials
        return [
            f"{self._tried.get(name, name)}: {trial.said(self.objectives)}"
            for name, trial in trials.items()
        ]

    def summary(self) -> str:
        """The best so far, and the time left."""
        best = " · ".join(
            f"best {self._measured(name, value)}"
            for name, value in self.standing.best().items()
        )
        found = best or "nothing meets the goal yet"
        return f"{found} · {duration(self._seconds * self.share_left())} left"

    def _measured(self, name: str, value: float | None) -> str:
        """A metric's name and value."""
        shown = quantity(value, self.units.get(name, ""))
        return f"{_short(name)} {shown}"

    def _result(self, record: TrialRecord) -> list[str]:
        """What a trial gave, without columns: eighty characters are few."""
        if record.status != "complete":
            return super()._result(record)
        metrics = record.outcome.metrics
        return [
            self._measured(o.metric, metrics.get(o.metric)) for o in self.objectives
        ]

    def _line(self, record: TrialRecord, is_best: bool) -> str:
        """Whether it meets the goal, what was tried, what it gave."""
        metrics = record.outcome.metrics
        mark = "[red]✗[/]"
        if record.status == "complete":
            bounds = bounded_by_source(self.objectives, self._source)
            mark = "[green]✓[/]" if is_feasible(metrics, bounds) else "[yellow]·[/]"
        name = _words(record.plan)
        parts = self._result(record)
        if record.outcome.seconds is not None:
            parts.append(f"[dim]{duration(record.outcome.seconds)}[/]")
        return f"{mark} {escape(f'{name:<27}')} {', '.join(parts)}"


def _short(name: str) -> str:
    """A metric's name as a line has room for it: its value has the unit."""
    if name == "file_bytes":
        return "file"
    return name.removesuffix("_ms").removesuffix("_mb")


def _words(plan: TrialPlan | None) -> str:
    if plan is None:
        return "?"
    return "the source" if plan.trial_id == BASELINE else said(plan.configuration)
