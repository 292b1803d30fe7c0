"""What the system says about itself on a terminal: stages, metrics, a checked sweep."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.contract import Objective, RelativeBound
from analysis.numbers import plain
from compress.metrics import metrics
from sweeps.console import LONGEST_TEXT, print_text
from sweeps.spec.options import Option
from trainers.plugins import plugin_of
from trainers.training.epoch_metrics import epoch_metrics

if TYPE_CHECKING:
    from compress.stage import Stage
    from sweeps.space.sweep import Sweep

MEANING_INDENT = "      "
KIND_COLUMN = 36
"""Where the type of an option begins on a line, if its name and default leave room."""
MOST_NAMES = 12
"""Options that are named where they are only referred to; of more, the number is told."""


def option_lines(options: Iterable[Option], width: int) -> Iterator[Text]:
    """Options as lines of at most `width` characters: name, default and type; below, what it
    means. Only a name or a default that is longer than that makes a longer line.
    """
    for option in options:
        default = "(required)" if option.default is None else f"= {option.default}"
        head = f"  {option.name} {default}".removesuffix(" = ")
        kind = f"{option.type}; {option.unit}" if option.unit else option.type
        yield from _entry(head, len(option.name), kind, option.meaning, width)


def _entry(
    head: str, name_length: int, kind: str, meaning: str, width: int
) -> Iterator[Text]:
    """A line with a bold name and what it is, and its meaning in lines below."""
    first = Text(head)
    first.stylize("bold", 2, 2 + name_length)
    space = " " * max(2, KIND_COLUMN - len(head))
    if len(head) + len(space) + len(kind) <= width:
        yield first + Text(space + kind, "cyan") if kind else first
    else:
        yield first
        yield from _wrapped(kind, width, "cyan")
    yield from _wrapped(meaning, width)


def _wrapped(
    text: str, width: int, style: str = "", indent: str = MEANING_INDENT
) -> Iterator[Text]:
    room = width - len(indent)
    for line in textwrap.wrap(
        text, room, break_long_words=False, break_on_hyphens=False
    ):
        yield Text(indent + line, style)


def options_as_markdown(options: Iterable[Option]) -> str:
    """A table of options."""
    lines = ["| option | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is None else _as_code(option.default)
        cells = (
            _as_code(option.name),
            option.type.replace("|", "\\|"),
            default,
            option.unit,
            option.meaning.replace("|", "\\|").replace("<", "&lt;"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _as_code(text: str) -> str:
    return f"`{text}`" if text else ""


class Told:
    """Stages that were described already, each option with the stage that had it first."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Option]] = {}

    def lines(
        self, stage: str, options: Iterable[Option], width: int
    ) -> Iterator[Text]:
        """A stage's options, those of earlier stages by name alone."""
        unknown, as_before = self._sorted(stage, options)
        yield from option_lines(unknown, width)
        for line in as_before:
            yield from _wrapped(line, width, "dim", indent="  ")

    def _sorted(
        self, stage: str, options: Iterable[Option]
    ) -> tuple[list[Option], list[str]]:
        """The options that must be described, and a line for each stage that has the others."""
        unknown = []
        names: dict[str, dict[str, None]] = {}
        changed: dict[str, list[str]] = {}
        for option in options:
            first = self._first.setdefault(option.name, (stage, option))
            if first[0] == stage or not option.is_like(first[1]):
                unknown.append(option)
                continue
            names.setdefault(first[0], {})[option.name.partition(".")[0]] = None
            if option.default != first[1].default:
                text = f"{option.name} = {option.default or first[1].default}"
                changed.setdefault(first[0], []).append(text)
        return unknown, [
            _as_before(other, list(same), changed.get(other, []))
            for other, same in names.items()
        ]


def _as_before(stage: str, names: list[str], changed: list[str]) -> str:
    many = len(names) > MOST_NAMES
    what = f"{len(names)} options" if many else ", ".join(names)
    differ = f"; other defaults: {', '.join(changed)}" if changed else ""
    return f"and as in {stage}: {what}{differ}"


def purpose(stage: "type[Stage]") -> str:
    """What a stage is for: the first paragraph of its docstring, on one line."""
    return " ".join((stage.__doc__ or "").strip().partition("\n\n")[0].split())


def headline(kind: str, stage: "type[Stage]", width: int) -> Iterator[Text]:
    """A stage's name, phase, purpose, paper and metrics."""
    lines = textwrap.wrap(f"{kind} ({stage.phase})  {purpose(stage)}", width)
    first = Text(lines[0])
    first.stylize("bold", 0, len(kind))
    yield first
    yield from (Text(line) for line in lines[1:])
    origin = plugin_of(stage)
    reported = ", ".join(_without_runs([metric.name for metric in stage.metrics]))
    for text in (
        f"from the plugin {origin.name}" if origin else "",
        stage.paper,
        f"reports {reported}" if reported else "",
    ):
        yield from _wrapped(text, width, "dim", indent="")


def _without_runs(names: list[str]) -> list[str]:
    """Names, of order_0, order_1, … the first and the last alone."""
    found: list[list[str]] = []
    for name in names:
        stem = name.rstrip("0123456789")
        if stem != name and found and found[-1][0].rstrip("0123456789") == stem:
            found[-1].append(name)
        else:
            found.append([name])
    return [run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}" for run in found]


def metric_lines(width: int) -> Iterator[Text]:
    """The metrics of a final model: name, unit, meaning; and those of an epoch."""
    final, of_epochs = metrics(), epoch_metrics()
    for name, metric in (of_epochs | final).items():
        unit = "" if metric.unit == "1" else metric.unit
        when = "of an epoch too" if name in of_epochs else ""
        if name not in final:
            when = "of an epoch only"
        kind = "; ".join(part for part in (unit, when) if part)
        yield from _entry(f"  {name}", len(name), kind, metric.description, width)


def print_sweep(sweep: "Sweep", console: Console) -> None:
    """The resolved pipeline, the space, and how much work it is."""
    spec, search = sweep.spec, sweep.spec.search
    console.print(f"[bold]{escape(spec.name)}[/]  is valid", highlight=False)
    source = escape(str(spec.source.model or spec.source.checkpoint))
    console.print(f"source     {source}", highlight=False)
    print_facts(sweep, console)
    if sweep.plugins:
        names = ", ".join(plugin.name for plugin in sweep.plugins)
        console.print(f"plugins    {escape(names)}", highlight=False)
    _print_stages(sweep, console)
    for dimension in _space_lines(sweep, min(console.width, LONGEST_TEXT)):
        console.print(dimension, soft_wrap=True, highlight=False)
    size = sweep.space.size()
    amount = "a continuum" if size is None else f"{size:,} configurations"
    configurations = sweep.num_configurations
    for line in (
        f"objectives {', '.join(_goal(o) for o in spec.objectives)}",
        f"space      {amount}, searched by {search.sampler}",
        f"trials     {configurations * search.replicates} = {configurations}"
        f" configurations × {search.replicates} seeds",
        f"run folder {spec.run_folder}",
    ):
        print_text(console, line)


def print_facts(sweep: "Sweep", console: Console) -> None:
    """The data set in a line, and what a user must know about source and data."""
    lines = [f"data       {sweep.data}", *(f"note: {text}" for text in sweep.remarks)]
    for line in lines:
        print_text(console, line)


def _print_stages(sweep: "Sweep", console: Console) -> None:
    """The stages of one configuration, and those that other alternatives have."""
    counts = dict(sweep.distinct_stages())
    rows = table("stage", "kind", "phase", "model after it", "computed at most")
    for stage, arch in zip(sweep.example, sweep.archs, strict=True):
        args = " ".join(f"{key}={plain(value)}" for key, value in arch.args.items())
        rows.add_row(
            stage.name,
            stage.kind,
            stage.config.phase,
            escape(f"{arch.name} {args}"),
            _times(counts.get(stage.name, 0)),
        )
    console.print(rows)
    printed = {stage.name for stage in sweep.example} | set(sweep.spec.stages)
    others = [
        f"{name} {_times(n)}" for name, n in counts.items() if name not in printed
    ]
    if others:
        console.print(
            f"in other alternatives, at most: {escape(', '.join(others))}",
            highlight=False,
        )


def _space_lines(sweep: "Sweep", width: int) -> Iterator[Text]:
    """What is searched: a line with each dimension and its values, one with when it exists."""
    for dimension in sweep.space.dimensions:
        alternatives = ", ".join(sorted(dimension.alternatives))
        when = f"where {dimension.slot} is {alternatives}" if dimension.slot else ""
        name = dimension.path
        yield from _entry(f"  {name}", len(name), dimension.describe(), when, width)


def _goal(objective: Objective) -> str:
    bound = objective.bound
    if isinstance(bound, RelativeBound):
        return f"{objective.mode} {objective.metric} (bound: {bound.said()})"
    shown = "" if bound is None else f" (bound {bound:g})"
    return f"{objective.mode} {objective.metric}{shown}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def table(*columns: str) -> Table:
    """An empty table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style="dim")
