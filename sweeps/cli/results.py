"""The commands that read a run: front, report, query."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from analysis.text import printable
from sweeps.cli.arguments import RunArgument
from sweeps.cli.terminal import console, say, table, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from analysis.run import Run

MAX_ROWS = 200
"""Rows of a query that are printed as a table; --csv prints all."""

_FOLDED = 30
"""Width to which a column of longer text is folded before columns are left out."""

WORST_CASE = "worst-case"
"""Name of the pick that is the best compromise of what each offers at worst."""

NO_FRONT = "no trial is on the front: none is complete within the bounds"


def front(
    run: RunArgument,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help=(
                "only configurations that pass:"
                ' "accuracy>=90% and (gmacs<0.5 or init==none)"'
            ),
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick",
            help=(
                "one of them: knee, best-<objective>, or worst-case: the best compromise of what"
                " each offers at worst, given its seeds, images and quartiles"
            ),
        ),
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(
            "--max-loss",
            help=(
                "what to ship: the cheapest that loses no more than this beside the baseline,"
                " as in 1%"
            ),
        ),
    ] = None,
    noise: Annotated[
        bool | None,
        typer.Option(
            "--noise/--no-noise",
            help=(
                "ignore differences of a latency that lie within its measured quartiles"
                " (default: where they were measured)"
            ),
            show_default=False,
        ),
    ] = None,
) -> None:
    """The configurations that no other dominates, as a table.

    Replicates of a configuration are one row, with mean and spread.
    """
    from analysis import also_possible, front_text, nothing_passes

    if max_loss is not None:
        if pick is not None:
            raise ValueError("give one of --pick, --max-loss")
        if where is not None or noise is not None:
            raise ValueError(
                "--max-loss picks from the whole front; leave out --where, --noise"
            )
        _print_within(load_run(run), max_loss)
        return
    loaded = load_run(run)
    if pick is not None:
        _check_pick(loaded, pick)
    rows = loaded.front(where, noise=noise)
    empty = NO_FRONT if where is None else nothing_passes(loaded, where)
    if pick is None:
        title = f"front of {loaded.heading}"
        _print_table(_narrowed(front_text(loaded, rows), loaded), title, empty)
        possible = also_possible(loaded, rows) if where is None else ""
        if possible:
            say(possible)
        _say_baseline(loaded)
        return
    if rows.empty:
        raise ValueError(f"--pick {pick}: nothing to pick from: {empty}")
    picks = {name.replace(" ", "-"): row for name, row in loaded.picks(rows).items()}
    picks[WORST_CASE] = loaded.worst_case_pick(rows)
    chosen = rows.loc[[picks[pick.replace(" ", "-")]]]
    text = _narrowed(front_text(loaded, chosen), loaded)
    _print_table(text, f"{pick} of {loaded.heading}", "")
    _say_commands(loaded, str(chosen["trial_id"].iloc[0]))


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="a run folder, or several to compare"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="default: RUN/report.html; needed for several runs"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help="compare the values of this parameter, for example init"
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="write a summary in Markdown too")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", help="a folder for the main figures as PNG and SVG"),
    ] = None,
    paper: Annotated[
        Path | None,
        typer.Option(
            "--paper",
            help="a folder for what a paper needs: figures as PDF and SVG, the front as LaTeX and"
            " Markdown, with intervals",
        ),
    ] = None,
) -> None:
    """Gather the tables and write the HTML report, of one run or of several compared."""
    import analysis

    if len(runs) > 1 and out is None:
        raise ValueError(
            "a report of several runs belongs to none of their folders; give its file, for"
            " example -o compared.html"
        )
    loaded = [load_run(run, analysis.gather) for run in runs]
    found = loaded[0] if len(loaded) == 1 else analysis.merge(loaded)
    written = [analysis.write_report(loaded, out, by)]
    drawn: list[Path] = []
    try:
        if figures is not None:
            drawn = analysis.write_figures(found, figures, by)
    finally:  # what needs no matplotlib is written without it
        if markdown is not None:
            written.append(analysis.write_markdown(found, markdown, by, drawn))
        for path in [*written, *drawn]:
            say(str(path))
    if paper is not None:
        for path in analysis.write_paper(found, paper, by):
            say(str(path))


def query(
    run: RunArgument,
    sql: Annotated[
        str,
        typer.Argument(
            metavar="SQL",
            help='for example: select trial_id, "metric/accuracy" from trials',
        ),
    ],
    csv: Annotated[bool, typer.Option("--csv", help="print all rows as CSV")] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="write all rows to this Parquet file"),
    ] = None,
) -> None:
    """SQL over the tables trials, epochs, stages, layers, classes and fronts, by DuckDB."""
    import analysis

    if csv and out is not None:
        raise ValueError("give one of --csv, --out")
    rows = analysis.query(load_run(run), sql)
    if out is not None:
        analysis.write_rows(rows, out)
        say(f"{out}  {len(rows)} rows")
        return
    if csv:
        sys.stdout.write(printable(rows.to_csv(index=False)))
        return
    more = f", the first {MAX_ROWS}" if len(rows) > MAX_ROWS else ""
    title = f"{len(rows)} row{'' if len(rows) == 1 else 's'}{more}"
    _print_table(
        rows.head(MAX_ROWS),
        title,
        "no rows",
        "--csv prints all, -o FILE.parquet writes all",
    )


def print_front(run: Path) -> "Run":
    """Print the non-dominated trials of a run as a table, and give the run."""
    from analysis import front_text

    loaded = load_run(str(run))
    rows = _narrowed(front_text(loaded), loaded)
    _print_table(rows, f"front of {loaded.heading}", NO_FRONT)
    _say_baseline(loaded)
    return loaded


def _print_within(loaded: "Run", given: str) -> None:
    """The cheapest configuration that loses no more than this, with the commands to have it."""
    from analysis import front_text
    from analysis.summary import (
        beside_baseline,
        cheapest_within,
        kept_and_cost,
        within_loss,
    )

    loss = _share(given)
    wanted, offered = kept_and_cost(loaded), within_loss(loaded)
    if loaded.baseline is None or wanted is None or not offered:
        raise ValueError(
            "--max-loss: nothing to compare: it needs a measured baseline, a share to maximise"
            " (accuracy), an objective to minimise, and a front; --where takes absolute values"
        )
    found = cheapest_within(offered, loss)
    if found is None:
        raise ValueError(
            f"--max-loss {given}: every configuration of the front loses more {wanted[0].metric}"
            f" than that; the least is {100 * offered[0].loss:.2f} %"
        )
    rows = loaded.configurations()
    chosen = rows.loc[[found.row]]
    title = f"lowest {wanted[1].metric} of {loaded.heading} within {given}"
    _print_table(_narrowed(front_text(loaded, chosen), loaded), title, "")
    say(f"{beside_baseline(loaded, chosen.iloc[0])} against {loaded.baseline.name}")
    _say_commands(loaded, str(chosen["trial_id"].iloc[0]))


def _check_pick(loaded: "Run", pick: str) -> None:
    """Raises ValueError: no front of this run, empty or not, has a pick of this name."""
    from analysis.fronts import KNEE, best_name
    from sweeps.spec.yaml_text import did_you_mean

    valid = [best_name(each).replace(" ", "-") for each in loaded.objectives]
    if len(valid) > 1:
        valid.append(KNEE)
    valid.append(WORST_CASE)
    name = pick.replace(" ", "-")
    if name not in valid:
        hint = did_you_mean(name, valid)
        raise ValueError(
            f"--pick {pick}: no such pick; {hint}valid: {', '.join(valid)}"
        )


def _share(given: str) -> float:
    """'1%' and '0.01' as 0.01."""
    text = given.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError(f"--max-loss {given}: give a share of one, as in 1% or 0.01")
    return value


def _say_commands(loaded: "Run", trial_id: str) -> None:
    """How to have a trial's model, and to run it again."""
    from analysis import command

    for what in ("onnx", "reproduce"):
        say(command(loaded, trial_id, what))


def _say_baseline(loaded: "Run") -> None:
    """What the configurations are compared with, under their table."""
    from analysis import baseline_figures

    figures = baseline_figures(loaded)
    if loaded.baseline is not None and figures:
        say(f"baseline ({loaded.baseline.name}): {figures}")


def _narrowed(rows: "pd.DataFrame", loaded: "Run") -> "pd.DataFrame":
    """A front as it is where the terminal is wide enough; else the shortest names of its parameters
    that tell them apart, or all parameters in one column, which can be folded.
    """
    from analysis.text import short_names

    if rows.empty or _width(rows) <= console.width:
        return rows
    rows = rows.rename(columns=(short := short_names(loaded.parameters)))
    if _width(rows) <= console.width:
        return rows
    names = [short[name] for name in loaded.parameters if short[name] in rows]
    found = rows.drop(columns=names)
    found["parameters"] = [
        " ".join(
            f"{name}={value}"
            for name, value in zip(names, values, strict=True)
            if value
        )
        for values in rows[names].itertuples(index=False)
    ]
    return found


def _width(rows: "pd.DataFrame") -> int:
    """Characters that a table takes."""
    widths = [max(len(str(name)), rows[name].str.len().max()) for name in rows]
    return sum(widths) + 2 * len(widths)


def load_run(run: str, read: "Callable[[Path], Run] | None" = None) -> "Run":
    """A run as the user names it; problems in its files are printed as warnings.

    Raises:
        ValueError: there is no such run, or it cannot be read.
    """
    import analysis
    from sweeps.run.storage import find_run

    folder = find_run(run, to_read=True)
    try:
        loaded = (read or analysis.load)(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder}: {error}") from error
    for problem in loaded.problems:
        warn(problem)
    return loaded


def _print_table(
    rows: "pd.DataFrame",
    title: str,
    empty: str,
    remedy: str = "a wider terminal shows all",
) -> None:
    """Print the first columns of a table, as many as the terminal has room for.

    Args:
        empty: said of a table without rows.
        remedy: how to see the columns that were left out.
    """
    from analysis.numbers import plain
    from trainers.words import listed

    if rows.empty:
        console.print(empty, highlight=False)
        return
    names = [
        str(column).removeprefix("metric/").removeprefix("config/")
        for column in rows.columns
    ]
    given = rows.astype(object).where(rows.notna(), "")
    columns = [[plain(value) for value in given.iloc[:, i]] for i in range(len(names))]
    shown = _fitting(names, columns)
    # rich would fold a title of the table itself to the table's width
    console.print(f"[italic]{escape(title)}[/]", highlight=False)
    printed = table(header_style="bold")
    for name, column in zip(names[:shown], columns, strict=False):
        is_short = _cells([name, *column]) <= _FOLDED
        printed.add_column(escape(name), no_wrap=is_short, overflow="fold")
    for values in zip(*columns[:shown], strict=True):
        printed.add_row(*map(escape, values))
    console.print(printed)
    left_out = names[shown:]
    if left_out:
        count = f"{len(left_out)} more column{'' if len(left_out) == 1 else 's'}"
        say(f"{count}: {listed(left_out)}; {remedy}")


def _fitting(names: list[str], columns: list[list[str]]) -> int:
    """How many columns the terminal has room for, from the first one on: text is folded to
    `_FOLDED` cells, and all else stands whole.
    """
    used = 0
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        used += min(_FOLDED, _cells([name, *column])) + 2 * (index > 0)
        if used > console.width and index > 0:
            return index
    return len(names)


def _cells(texts: list[str]) -> int:
    """Cells of a terminal that the widest of some texts takes."""
    from rich.cells import cell_len

    return max(cell_len(line) for text in texts for line in text.split("\n"))
