"""The command `sweeps`. Heavy imports wait until a command needs them, so that --help is quick."""

import sys

import typer

from sweeps.cli import (
    about,
    bench,
    latency_table,
    models,
    reproduce,
    results,
    run,
    serve,
    simulate,
)
from sweeps.cli.terminal import Command, Commands

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Initialise, train, prune and quantise image models, and sweep all of it.",
)
for command in (
    about.methods,
    about.presets,
    about.schema,
    run.validate,
    run.run,
    run.resume,
    run.stop,
    reproduce.reproduce,
    results.status,
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
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
