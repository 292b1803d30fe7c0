"""The command `sweeps`. Heavy imports wait until a command needs them, so that --help is quick."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Initialise, train, prune and quantise image models, and sweep all of it.",
)  # fmt: skip
_width = None if sys.stdout.isatty() else 140  # a pipe has no width: do not fold at 80
console = Console(width=_width)
errors = Console(stderr=True, width=_width)

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="a YAML file or the name of a preset (`sweeps presets`)")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides: search.trials=24 stages.finetune.lr=1e-3"),
]
Tiny = Annotated[bool, typer.Option("--tiny", help="the preset's tiny CPU variant")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, for example runs/demo")]


def fail(message: str) -> typer.Exit:
    """Print one message for a user's mistake; exit code 2."""
    errors.print("[bold red]error[/] " + escape(message), highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _checked(spec: str, overrides: list[str] | None, tiny: bool) -> Any:
    from sweeps.check import load_spec
    from sweeps.yaml_file import SpecError

    try:
        return load_spec(spec, overrides or [], tiny=tiny)
    except SpecError as error:
        raise fail(str(error)) from None


@app.command()
def methods(name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="only this one")] = None) -> None:
    """The stages, their parameters, defaults and papers."""
    from compress.pipeline import STAGES
    from sweeps.describe import stage_table

    if name is not None and name not in STAGES:
        raise fail(f"{name}: no such method; valid: {', '.join(STAGES)}")
    for kind, stage in STAGES.items():
        if name not in (None, kind):
            continue
        headline = escape((stage.__doc__ or "").strip().splitlines()[0])
        console.print(f"\n[bold]{kind}[/] [dim]({stage.phase})[/]  {headline}")
        if stage.paper:
            console.print(f"[dim]{escape(stage.paper)}[/]", soft_wrap=True)
        if stage.metrics:
            console.print(f"[dim]reports {', '.join(stage.metrics)}[/]", soft_wrap=True)
        console.print(stage_table(stage))


@app.command()
def presets() -> None:
    """The shipped specs, with what each says of itself."""
    from sweeps.describe import preset_comment
    from sweeps.spec import preset_names

    table = Table("preset", "what it does", box=None, pad_edge=False)
    for name in preset_names():
        table.add_row(f"[bold]{name}[/]", escape(preset_comment(name)))
    console.print(table)


@app.command()
def schema() -> None:
    """The spec's JSON schema, for editors."""
    from sweeps.describe import spec_schema

    print(json.dumps(spec_schema(), indent=1))


@app.command()
def validate(spec: SpecArgument, overrides: Overrides = None, tiny: Tiny = False) -> None:
    """Check a spec; print its pipeline, search space and number of trials. Takes no resource."""
    from sweeps.describe import print_checked

    print_checked(_checked(spec, overrides, tiny), console)


@app.command()
def run(
    spec: SpecArgument,
    overrides: Overrides = None,
    tiny: Tiny = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="delete what the run folder holds (the stage cache stays)")
    ] = False,
) -> None:
    """Run a sweep, or go on with one that was interrupted; then print the front."""
    from sweeps.yaml_file import SpecError

    checked = _checked(spec, overrides, tiny)
    from sweeps.driver import run_sweep  # Ray: only now
    from sweeps.progress import Progress

    try:
        outcome = run_sweep(
            checked, overwrite=overwrite, command=["sweeps", *sys.argv[1:]], progress=Progress(checked, console)
        )
    except SpecError as error:
        raise fail(str(error)) from None
    _print_front(outcome.folder)
    console.print(
        f"\nrun     {outcome.folder}\ntables  {outcome.folder / 'parquet'}\nreport  {outcome.report}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.interrupted:
        console.print("[yellow]interrupted[/]: everything so far is recorded; the same command goes on from here")
        raise typer.Exit(130)


@app.command()
def status(run: RunArgument) -> None:
    """How many trials ended how, and what failed."""
    loaded = _load(run)
    counts = loaded.trials["status"].value_counts()
    total = f"{len(loaded.trials)} trials: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    console.print(f"[bold]{escape(loaded.name)}[/]  {total}", highlight=False)
    for _, row in loaded.trials[loaded.trials["status"] == "failed"].iterrows():
        console.print(
            f"  [red]✗ {escape(str(row['trial_id']))}[/]  {escape(str(row['error']))}", highlight=False, soft_wrap=True
        )


@app.command()
def front(run: RunArgument) -> None:
    """The non-dominated trials as a table."""
    _load(run)
    _print_front(run)


@app.command()
def report(
    run: RunArgument, out: Annotated[Path | None, typer.Option("-o", "--out", help="default: RUN/report.html")] = None
) -> None:
    """Gather the tables and write the HTML report."""
    import analysis

    _load(run)
    analysis.gather(run)
    console.print(str(analysis.write_report(run, out)), highlight=False, soft_wrap=True)


@app.command()
def pack(
    run: RunArgument,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="a trial's id, for example 00007")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the coded file, for example model.wfn")],
) -> None:
    """Write a trial's model as an entropy-coded file."""
    from sweeps.artifacts import pack as write

    try:
        size = write(run, trial, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    parts = f"indices {size.index_bytes:,}, codebook {size.codebook_bytes:,}, other tensors {size.tensor_bytes:,}"
    console.print(
        f"{out}  {size.total_bytes:,} bytes ({parts}, header {size.header_bytes:,})", highlight=False, soft_wrap=True
    )


@app.command()
def unpack(
    coded: Annotated[Path, typer.Argument(metavar="FILE", help="a coded file")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the safetensors file")],
) -> None:
    """Write a coded file's weights as safetensors, bit for bit."""
    from sweeps.artifacts import unpack as write

    try:
        state = write(coded, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from None
    console.print(f"{out}  {state.arch.name}, {len(state.weights)} tensors", highlight=False, soft_wrap=True)


def _load(run: Path) -> Any:
    import analysis

    if not (run / "run.json").exists() and not (run / "parquet").is_dir():
        raise fail(f"{run}: not a run folder (no run.json in it); a run folder is storage/name of its spec")
    try:
        loaded = analysis.load(run)
    except (ValueError, OSError) as error:
        raise fail(f"{run}: {error}") from None
    for problem in loaded.problems:
        errors.print(f"[yellow]warning[/] {escape(problem)}", highlight=False, soft_wrap=True)
    return loaded


def _print_front(run: Path) -> None:
    from analysis import front_table
    from sweeps.progress import short

    loaded = _load(run)
    rows = front_table(loaded)
    if rows.empty:
        console.print("no trial is on the front: none is complete within the bounds")
        return
    names = [str(c).removeprefix("metric/").removeprefix("config/") for c in rows.columns]
    table = Table(
        *names, title=f"front of {loaded.name}", title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for values in rows.astype(object).where(rows.notna(), "").itertuples(index=False):
        table.add_row(*[escape(short(v)) for v in values])
    console.print(table)


def main() -> None:
    """Entry point; Ctrl-C outside a sweep ends without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
