"""A run in Markdown, for a paper's notes or a pull request. Text from the run goes into
code spans: it stays text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from analysis import summary
from analysis.comparison import Comparison, compare_groups
from analysis.files import write_text
from analysis.merging import RUN_PARAMETER
from analysis.numbers import (
    THIN_SPACE,
    duration,
    fixed,
    number,
    percent,
    plural,
    quantity,
)
from analysis.report.delivery import deliveries, note_of
from analysis.run import Run
from analysis.text import clean_text

_MAX_ROWS = 30
_SPACE = re.compile(rf"[^\S{THIN_SPACE}]+")
_MARKUP = "\\`*_[]<>|&#@!~"


def write_markdown(
    run: Run, out: str | Path, by: str | None = None, figures: Sequence[Path] = ()
) -> Path:
    """Write a summary of `run` (or of a merged one, compared) to `out`, naming `figures`
    relative to it.

    Raises ValueError where there is no parameter `by`, OSError where the file cannot be written.
    """
    found = compare_groups(run, by or RUN_PARAMETER) if by or run.members else None
    target = Path(out)
    text = render(run, found, [_relative(path, target.parent) for path in figures])
    write_text(target, text)
    return target


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return (
        path.relative_to(folder).as_posix()
        if path.is_relative_to(folder)
        else path.as_posix()
    )


def render(
    run: Run, compared: Comparison | None = None, figures: Sequence[str] = ()
) -> str:
    """The summary as Markdown text."""
    total = summary.totals(run)
    counts = ", ".join(f"{number(n)} {status}" for status, n in total["status"].items())
    blocks = [
        f"# {code(run.heading)}",
        f"{plural(total['trials'], 'trial')}: {counts or 'none'}. {_cost(total)}",
        *_remarks(run),
        *_baseline(run),
        *_picks(run),
    ]
    if compared is not None:
        blocks += [f"## Compared by {code(compared.by)}", _comparison(run, compared)]
    blocks += _front(run)
    blocks += [
        f"![{Path(name).stem}](<{name}>)"
        for name in figures
        if not set("<>\n") & set(name)
    ]
    blocks += _failures(run)
    if run.command:
        blocks += ["## Command", _fenced(run.command)]
    return "\n\n".join(blocks) + "\n"


def _cost(total: dict[str, float]) -> str:
    text = f"They took {duration(total['seconds'])}"
    if total["seconds_saved"]:
        text += f"; the stage cache saved {duration(total['seconds_saved'])} more"
    return f"{text}."


def _remarks(run: Run) -> list[str]:
    lines = [line for line in [run.data, *run.remarks] if line]
    if not lines:
        return []
    return ["## Data and source", "\n".join(f"- {code(line)}" for line in lines)]


def _baseline(run: Run) -> list[str]:
    figures = summary.baseline_figures(run)
    if run.baseline is None or not figures:
        return []
    return [f"The baseline is {_cell(run.baseline.name)}: {_cell(figures)}."]


def _picks(run: Run) -> list[str]:
    advised = summary.advice(run)
    if not advised:
        return []
    ids = run.trials["trial_id"]
    configurations = run.configurations()
    offered = {
        a.row: configurations.loc[configurations.index == a.row] for a in advised
    }
    rows = [
        [
            _cell(a.title),
            code(ids.iloc[a.row]),
            _cell(a.text),
            _cell(summary.beside_baseline(run, offered[a.row].iloc[0])),
        ]
        for a in advised
    ]
    head = ["pick", "trial", "offers"]
    head += ["against the baseline"] if run.baseline is not None else []
    best = ids.iloc[advised[0].row]
    row = offered[advised[0].row].iloc[0]
    commands = []
    for each in deliveries(run):
        said = ", ".join(filter(None, [each.name, note_of(run, each, row)]))
        commands.append(f"{summary.command(run, best, each.what)}  # {said}")
    return [
        "## Picks",
        _table(head, [row[: len(head)] for row in rows]),
        _fenced("\n".join(commands)),
    ]


def _front(run: Run) -> list[str]:
    front = summary.front_text(run)
    if front.empty:
        return []
    measured = {objective.metric for objective in run.objectives} | {
        "seeds",
        summary.CHANCE,
    }
    rows = [
        [
            _cell(value) if name in measured else code(value) if value else ""
            for name, value in zip(front.columns, row, strict=True)
        ]
        for row in front.head(_MAX_ROWS).itertuples(index=False)
    ]
    blocks = ["## Front", _table([code(name) for name in front.columns], rows)]
    if len(front) > _MAX_ROWS:
        blocks.append(f"and {number(len(front) - _MAX_ROWS)} more")
    possible = summary.also_possible(run)
    if possible:
        blocks.append(_cell(possible))
    return blocks


def _failures(run: Run) -> list[str]:
    failed = summary.failures(run).head(_MAX_ROWS)
    if failed.empty:
        return []
    rows = [
        [number(row["count"]), code(row["error"])] for row in failed.to_dict("records")
    ]
    return ["## Failures", _table(["trials", "error"], rows)]


def _comparison(run: Run, found: Comparison) -> str:
    head = [
        code(found.by),
        "configurations",
        "on the common front",
        "hypervolume",
        f"after {plural(found.budget, 'configuration')}",
        f"after {duration(found.time)}",
        *(_cell(f"best {o.metric}") for o in run.objectives),
    ]
    rows = []
    for group in found.groups:
        best = [
            quantity(value, run.metrics.unit(objective.metric))
            for value, objective in zip(group.best, run.objectives, strict=True)
        ]
        spread = group.spread if math.isfinite(group.spread) else None
        volume = percent(group.volume)
        if spread is not None:
            volume = f"{fixed(100 * group.volume, 1)} ± {percent(spread)}"
        rows.append(
            [
                code(group.name),
                number(group.configurations),
                f"{number(group.on_front)} of {number(group.front)}",
                volume,
                percent(group.budget),
                percent(group.at_time),
                *best,
            ]
        )
    return _table(head, rows)


def code(text: object) -> str:
    """Text as a code span on one line that can stand in a table: nothing in it is markup, a
    link or a mention.
    """
    plain = " ".join(clean_text(str(text)).replace("`", "'").split())
    return "`" + (plain.replace("|", "\\|") or " ") + "`"


def _cell(text: str) -> str:
    """Our own words with metrics' names in them: the few characters that a name may have,
    escaped.
    """
    line = _SPACE.sub(" ", text)
    return "".join("\\" + c if c in _MARKUP else c for c in line)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
