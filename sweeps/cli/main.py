"""The command `sweeps`. Heavy imports wait until a command needs them, so that --help is quick."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps.cli.latency_table import latency_table
from sweeps.cli.results import add_commands as add_result_commands
from sweeps.cli.results import print_front as print_front
from sweeps.cli.run import add_commands

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Initialise, train, prune and quantise image models, and sweep all of it.",
)
_width = None if sys.stdout.isatty() else 140  # a pipe has no width: do not fold at 80
console = Console(width=_width)
errors = Console(stderr=True, width=_width)

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="a YAML file or the name of a preset (`sweeps presets`)"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="dotted overrides: search.trials=24 stages.finetune.lr=1e-3",
    ),
]
Tiny = Annotated[bool, typer.Option("--tiny", help="the preset's tiny CPU variant")]


def fail(message: str) -> typer.Exit:
    """Print one message for a user's mistake; exit code 2."""
    errors.print(
        "[bold red]error[/] " + escape(message), highlight=False, soft_wrap=True
    )
    return typer.Exit(2)


def _checked(spec: str, overrides: list[str] | None, tiny: bool) -> Any:
    from sweeps.check import load_spec
    from sweeps.spec.yaml_text import SpecError

    try:
        return load_spec(spec, overrides or [], tiny=tiny)
    except SpecError as error:
        raise fail(str(error)) from None


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="only this one")
    ] = None,
) -> None:
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
            reported = ", ".join(metric.name for metric in stage.metrics)
            console.print(f"[dim]reports {reported}[/]", soft_wrap=True)
        console.print(stage_table(stage))


@app.command()
def presets() -> None:
    """The shipped specs, with what each says of itself."""
    from sweeps.describe import preset_comment
    from sweeps.spec.load import preset_names

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
def validate(
    spec: SpecArgument, overrides: Overrides = None, tiny: Tiny = False
) -> None:
    """Check a spec; print its pipeline, search space and number of trials. Takes no resource."""
    from sweeps.describe import print_sweep

    print_sweep(_checked(spec, overrides, tiny), console)


add_commands(app)  # run, resume, stop, reproduce
add_result_commands(app)  # status, front, report, query, export, pack, unpack
app.command("latency-table")(latency_table)


def main() -> None:
    """Entry point; Ctrl-C outside a sweep ends without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
