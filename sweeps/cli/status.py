"""How a run stands: `sweeps status`, once or as long as it changes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sweeps.cli.arguments import RunArgument
from sweeps.cli.results import load_run
from sweeps.cli.terminal import console, say

if TYPE_CHECKING:
    from analysis.run import Run
    from sweeps.drive.running import RunningTrial

SECONDS_BETWEEN_LOOKS = 2.0
MOST_FAILURES = 10
"""Failures that `--watch` shows, the latest."""


def status(
    run: RunArgument,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="go on showing it, also from another terminal or node, until the run is driven no"
            " more; Ctrl-C ends the watching",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="as JSON; with --watch a line for each change"),
    ] = False,
) -> None:
    """How many trials ended how, what runs, and what failed."""
    if watch:
        _watch(run, as_json)
        return
    loaded = load_run(run)
    if as_json:
        say(json.dumps(_facts(loaded, [])))
        return
    for line in _lines(loaded, {}):
        console.print(line, highlight=False, soft_wrap=True)


def _watch(given: str, as_json: bool) -> None:
    """Show a run again whenever it has changed."""
    from rich.live import Live
    from rich.text import Text

    from analysis.loading import Follower
    from sweeps.drive.progress import cut
    from sweeps.drive.watch import Watch
    from sweeps.run.driving import is_driven
    from sweeps.run.storage import find_run

    folder = find_run(given, to_read=True)
    follower, seen = Follower(folder), Watch(folder)
    shown = Text()
    before = ""
    is_drawn = console.is_terminal and not as_json
    with Live(shown, console=console, auto_refresh=False, transient=is_drawn) as screen:
        while True:
            goes_on = is_driven(folder)
            changes = seen.look()
            if changes.trials or not before:
                loaded = follower.load()
            trials = seen.running.trials if goes_on else {}
            lines = list(_lines(loaded, trials, MOST_FAILURES))
            text = "\n".join(Text.from_markup(line).plain for line in lines)
            if as_json:
                text = json.dumps(_facts(loaded, list(trials.values())))
            if is_drawn:
                width = console.width
                shown.plain = "\n".join(cut(line, width) for line in text.split("\n"))
                screen.update(shown, refresh=True)
            elif (changes.trials or changes.epochs or not goes_on) and text != before:
                say(text)
            before = text
            if not goes_on:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if is_drawn:
        say(before)


def _lines(
    loaded: "Run",
    running: "Mapping[str, RunningTrial]",
    most_failures: int | None = None,
) -> list[str]:
    """Lines with markup: counts, driver, running trials, failures."""
    from sweeps.run.driving import driver_line

    counts = loaded.status_counts()
    total = ", ".join(f"{n} {name}" for name, n in counts.items())
    lines = [f"[bold]{escape(loaded.heading)}[/]  {len(loaded.trials)} trials: {total}"]
    line = driver_line(loaded.path)
    if line is not None:
        lines.append(escape(line))
    lines += [
        f"  {escape(trial_id)}  {escape(trial.said(loaded.objectives))}"
        for trial_id, trial in running.items()
    ]
    failed = loaded.trials[loaded.trials["status"] == "failed"]
    if most_failures is not None:
        failed = failed.tail(most_failures)
    for _, row in failed.iterrows():
        name, error = escape(str(row["trial_id"])), escape(str(row["error"]))
        lines.append(f"  [red]✗ {name}[/]  {error}")
    return lines


def _facts(loaded: "Run", running: "list[RunningTrial]") -> dict[str, Any]:
    """The same as values; metrics in their own units."""
    from sweeps.run.driving import driver_line, is_driven

    failed = loaded.trials[loaded.trials["status"] == "failed"]
    front = loaded.front()
    names = [objective.metric for objective in loaded.objectives]
    return {
        "run": loaded.name,
        "folder": str(Path(loaded.path).absolute()),
        "trials": loaded.status_counts(),
        "driven": is_driven(loaded.path),
        "driver": driver_line(loaded.path),
        "running": [
            {"trial": t.trial_id, "said": t.said(loaded.objectives)} | t.facts()
            for t in running
        ],
        "failed": [
            {"trial": str(row["trial_id"]), "error": str(row["error"])}
            for _, row in failed.iterrows()
        ],
        "front": [
            {"trial": str(row["trial_id"])}
            | {name: float(row[f"metric/{name}"]) for name in names}
            for _, row in front.iterrows()
        ],
    }
