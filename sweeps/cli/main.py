"""The command `sweeps`. Heavy imports wait until a command needs them, so that --help is quick."""

import sys
from typing import Annotated

import typer

from sweeps.cli import (
    about,
    bench,
    latency_table,
    models,
    options,
    reproduce,
    results,
    run,
    serve,
    shrink,
    simulate,
    status,
)
from sweeps.cli.terminal import Command, Commands
from sweeps.drive.interrupt import INTERRUPTED, Interrupt, end_in_peace

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Initialise, train, prune and quantise image models, and sweep all of it.",
)


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=about.version,
            help="Print the versions of this package and of its libraries.",
        ),
    ] = False,
) -> None:
    """What comes before every command."""


for command in (
    about.methods,
    options.options,
    about.presets,
    about.schema,
    shrink.shrink,
    run.validate,
    run.run,
    run.resume,
    run.stop,
    reproduce.reproduce,
    status.status,
    results.front,
    results.report,
    results.query,
    serve.serve,
    simulate.simulate,
    bench.bench,
    models.export,
    models.pack,
    models.unpack,
):
    app.command(cls=Command)(command)
app.command("latency-table", cls=Command)(latency_table.latency_table)


def main() -> None:
    """Entry point; Ctrl-C outside a sweep ends without a traceback."""
    Interrupt.is_our_process = True
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        end_in_peace()
