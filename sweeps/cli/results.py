"""The commands that read a run: status, front, report, query, export, pack, unpack."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from analysis.run import Run

RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="a run folder, a name under runs/, or a URI"),
]
TrialArgument = Annotated[
    str, typer.Argument(metavar="TRIAL", help="a trial's id, for example 00007")
]
MAX_ROWS = 200
"""Rows of a query that are printed as a table; --csv prints all."""


def status(run: RunArgument) -> None:
    """How many trials ended how, and what failed."""
    from sweeps.cli.main import console

    loaded = _load(run)
    counts = loaded.trials["status"].value_counts()
    total = f"{len(loaded.trials)} trials: " + ", ".join(
        f"{n} {name}" for name, n in counts.items()
    )
    console.print(f"[bold]{escape(loaded.name)}[/]  {total}", highlight=False)
    for _, row in loaded.trials[loaded.trials["status"] == "failed"].iterrows():
        console.print(
            f"  [red]✗ {escape(str(row['trial_id']))}[/]  {escape(str(row['error']))}",
            highlight=False,
            soft_wrap=True,
        )


def front(
    run: RunArgument,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help='only points that pass: "accuracy>=90% and (gmacs<0.5 or init==none)"',
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option("--pick", help="one point of it: knee, or best-<objective>"),
    ] = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="ignore differences of a latency inside its measured quartiles",
        ),
    ] = False,
) -> None:
    """The non-dominated trials as a table; replicates of a configuration are one point,
    mean and spread.
    """
    from analysis import front_text
    from sweeps.cli.main import console, fail

    loaded = _load(run)
    try:
        rows = loaded.front(where, noise=noise)
    except ValueError as error:
        raise fail(str(error)) from None
    if pick is None:
        _print_table(
            front_text(loaded, rows),
            f"front of {loaded.name}",
            "no trial is on the front: none is complete within the bounds",
        )
        return
    picks = {name.replace(" ", "-"): row for name, row in loaded.picks(rows).items()}
    if rows.empty:
        raise fail("nothing to pick from: no trial is on the front")
    if pick.replace(" ", "-") not in picks:
        raise fail(f"--pick {pick}: no such pick; valid: {', '.join(picks)}")
    chosen = rows.loc[[picks[pick.replace(" ", "-")]]]
    _print_table(front_text(loaded, chosen), f"{pick} of {loaded.name}", "")
    for what in ("onnx", "reproduce"):
        console.print(
            _command(loaded, chosen["trial_id"].iloc[0], what),
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


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
) -> None:
    """Gather the tables and write the HTML report, of one run or of several compared."""
    import analysis
    from sweeps.cli.main import console, fail

    loaded = [_load(run, analysis.gather) for run in runs]
    try:
        found = loaded[0] if len(loaded) == 1 else analysis.merge(loaded)
        written = [analysis.write_report(loaded, out, by)]
        drawn = (
            analysis.write_figures(found, figures, by) if figures is not None else []
        )
        if markdown is not None:
            written.append(analysis.write_markdown(found, markdown, by, drawn))
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    for path in [*written, *drawn]:
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)


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
    """SQL over the tables trials, epochs, stages, layers and fronts, by DuckDB."""
    import analysis
    from sweeps.cli.main import console, fail

    loaded = _load(run)
    try:
        rows = analysis.query(loaded, sql)
        if out is not None:
            analysis.write_rows(rows, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    if out is not None:
        console.print(
            f"{out}  {len(rows)} rows", highlight=False, soft_wrap=True, markup=False
        )
        return
    if csv:
        rows.to_csv(sys.stdout, index=False)
        return
    more = f", the first {MAX_ROWS}" if len(rows) > MAX_ROWS else ""
    _print_table(
        rows.head(MAX_ROWS),
        f"{len(rows)} row{'' if len(rows) == 1 else 's'}{more}",
        "no rows",
    )


def export(
    run: RunArgument,
    trial: TrialArgument,
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="safetensors, onnx, torchscript, torch_export or packed"
        ),
    ] = "safetensors",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="the folder to make; default: ./RUN-TRIAL-FORMAT"
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=1,
            help="side of the model's images, px; default: the trial's",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="SPDX identifier of the weights' licence, for the model card",
        ),
    ] = None,
) -> None:
    """Write a trial's model with a model card; it is loaded again and compared before it is
    left behind.
    """
    from sweeps.cli.main import console, fail
    from sweeps.export.formats import export as write

    folder = _folder(run)
    target = out or Path(f"{folder.name}-{trial}-{format_name}")
    try:
        done = write(
            folder, trial, format_name, target, image_size=image_size, licence=licence
        )
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    for path in done.files:
        console.print(
            f"{path}  {path.stat().st_size:,} bytes",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f"loaded again: logits differ by at most {done.difference:.2g}", highlight=False
    )


def pack(
    run: RunArgument,
    trial: TrialArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="the coded file, for example model.wfn"),
    ],
) -> None:
    """Write a trial's model as an entropy-coded file."""
    from sweeps.cli.main import console, fail
    from sweeps.export.models import pack as write

    try:
        size = write(_folder(run), trial, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    parts = (
        f"indices {size.index_bytes:,}, codebook {size.codebook_bytes:,}, other tensors"
        f" {size.tensor_bytes:,}"
    )
    console.print(
        f"{out}  {size.total_bytes:,} bytes ({parts}, header {size.header_bytes:,})",
        highlight=False,
        soft_wrap=True,
    )


def unpack(
    coded: Annotated[Path, typer.Argument(metavar="FILE", help="a coded file")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the safetensors file")],
) -> None:
    """Write a coded file's weights as safetensors, bit for bit."""
    from sweeps.cli.main import console, fail
    from sweeps.export.models import unpack as write

    try:
        state = write(coded, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    console.print(
        f"{out}  {state.arch.name}, {len(state.weights)} tensors",
        highlight=False,
        soft_wrap=True,
    )


def print_front(run: Path) -> "Run":
    """Print the non-dominated trials of a run as a table, and give the run."""
    from analysis import front_text

    loaded = _load(str(run))
    _print_table(
        front_text(loaded),
        f"front of {loaded.name}",
        "no trial is on the front: none is complete within the bounds",
    )
    return loaded


def _folder(run: str) -> Path:
    """Raises typer.Exit with a message where there is no such run."""
    from sweeps.cli.main import fail
    from sweeps.run.storage import find_run
    from sweeps.spec.yaml_text import SpecError

    try:
        return find_run(run, to_read=True)
    except SpecError as error:
        raise fail(str(error)) from None


def _load(run: str, read: "Callable[[Path], Run] | None" = None) -> "Run":
    """The run, its problems printed. Raises typer.Exit with a message where it is none, or
    cannot be read.
    """
    import analysis
    from sweeps.cli.main import errors, fail

    folder = _folder(run)
    try:
        loaded = (read or analysis.load)(folder)
    except (ValueError, OSError) as error:
        raise fail(f"{folder}: {error}") from None
    for problem in loaded.problems:
        errors.print(
            f"[yellow]warning[/] {escape(problem)}", highlight=False, soft_wrap=True
        )
    return loaded


def _command(run: "Run", trial_id: str, what: str) -> str:
    from analysis import command

    return command(run, trial_id, what)


def _print_table(rows: "pd.DataFrame", title: str, empty: str) -> None:
    from analysis.numbers import plain
    from sweeps.cli.main import console

    if rows.empty:
        console.print(empty, highlight=False)
        return
    names = [
        escape(str(c).removeprefix("metric/").removeprefix("config/"))
        for c in rows.columns
    ]
    console.print(
        f"[italic]{escape(title)}[/]", highlight=False
    )  # a title of the table would be folded to its width
    table = Table(*names, box=None, header_style="bold", pad_edge=False)
    for values in rows.astype(object).where(rows.notna(), "").itertuples(index=False):
        table.add_row(*[escape(plain(v)) for v in values])
    console.print(table)


def add_commands(app: typer.Typer) -> None:
    """Hook these commands in."""
    for command in (status, front, report, query, export, pack, unpack):
        app.command()(command)
