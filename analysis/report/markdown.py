"""A run in Markdown, for a paper's notes or a pull request. Text from the run goes into
code spans: it stays text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import summary
from analysis.comparison import Comparison, compare
from analysis.run import Run
from analysis.tables.store import write_text

_MAX_ROWS = 30


def write_markdown(
    run: Run, out: str | Path, by: str | None = None, figures: Sequence[Path] = ()
) -> Path:
    """Write a summary of `run` (or of a merged one, compared) to `out`, naming `figures`
    relative to it.

    Raises ValueError where there is no parameter `by`, OSError where the file cannot be written.
    """
    found = compare(run, by or "run") if by or run.members else None
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
    counts = ", ".join(f"{count} {status}" for status, count in total["status"].items())
    blocks = [
        f"# {code(run.name)}",
        f"{total['trials']} trials: {counts or 'none'}. {_cost(total)}",
    ]
    advised = summary.advice(run)
    if advised:
        rows = [
            [title, code(run.trials["trial_id"].iloc[row]), text]
            for title, row, text in advised
        ]
        blocks += [
            "## Picks",
            _table(
                ["pick", "trial", "offers"], [[_cell(c) for c in row] for row in rows]
            ),
        ]
        commands = [
            summary.command(run, run.trials["trial_id"].iloc[advised[0][1]], what)
            for what in ("onnx", "reproduce")
        ]
        blocks.append(_fenced("\n".join(commands)))
    if compared is not None:
        blocks += [f"## Compared by {code(compared.by)}", _comparison(run, compared)]
    front = summary.front_table(run)
    if len(front):
        rows = [
            [_value(v) for v in row]
            for row in front.head(_MAX_ROWS).itertuples(index=False)
        ]
        blocks += ["## Front", _table([_value(name) for name in front.columns], rows)]
        blocks += (
            [f"and {len(front) - _MAX_ROWS} more"] if len(front) > _MAX_ROWS else []
        )
    blocks += [
        f"![{Path(name).stem}](<{name}>)"
        for name in figures
        if not set("<>\n") & set(name)
    ]
    failed = summary.failures(run)
    if len(failed):
        rows = [
            [str(row["count"]), _value(row["error"])]
            for row in failed.head(_MAX_ROWS).to_dict("records")
        ]
        blocks += ["## Failures", _table(["trials", "error"], rows)]
    if run.command:
        blocks += ["## Command", _fenced(run.command)]
    return "\n\n".join(blocks) + "\n"


def _cost(total: dict[str, float]) -> str:
    saved = (
        f"; the stage cache saved {summary.duration(total['seconds_saved'])} more"
        if total["seconds_saved"]
        else ""
    )
    return f"They took {summary.duration(total['seconds'])}{saved}."


def _comparison(run: Run, found: Comparison) -> str:
    head = [
        found.by,
        "points",
        "on the common front",
        "hypervolume",
        f"after {found.budget} points",
    ]
    head += [
        f"after {summary.duration(found.time)}",
        *(f"best {o.metric}" for o in run.objectives),
    ]
    rows = []
    for g in found.groups:
        spread = f" ± {100 * g.spread:.1f}" if math.isfinite(g.spread) else ""
        row = [
            code(g.name),
            str(g.points),
            f"{g.on_front} of {g.front}",
            f"{100 * g.volume:.1f}{spread} %",
        ]
        row += [f"{100 * g.budget:.1f} %", f"{100 * g.at_time:.1f} %"]
        rows.append(
            [
                *row,
                *(
                    summary.quantity(v, o.metric)
                    for v, o in zip(g.best, run.objectives, strict=True)
                ),
            ]
        )
    return _table(
        [_cell(name) if i else code(name) for i, name in enumerate(head)], rows
    )


def code(text: object) -> str:
    """Text as a code span on one line that can stand in a table: nothing in it is markup, a
    link or a mention.
    """
    plain = " ".join(
        str(text).encode("utf-8", "replace").decode("utf-8").replace("`", "'").split()
    )
    return "`" + (plain.replace("|", "\\|") or " ") + "`"


def _cell(text: str) -> str:
    """Our own words with metrics' names in them: the few characters that a name may have,
    escaped.
    """
    return (
        text
        if text.startswith("`")
        else "".join(
            "\\" + c if c in "\\`*_[]<>|&#@!~" else c for c in " ".join(text.split())
        )
    )


def _value(value: object) -> str:
    if (
        value is None
        or value is pd.NA
        or (isinstance(value, float) and math.isnan(value))
    ):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        str(value)
        if isinstance(value, int) and not isinstance(value, bool)
        else code(value)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
