"""What the commands print on, and the one place where a user's mistake becomes a message.

Whatever is wrong with what a user gave is raised as `ValueError` (a spec's mistakes as
`SpecError`) or `OSError`, with a message that says it all. SWEEPS_TRACEBACK=1 shows where it
was raised.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from sweeps.console import LONGEST_TEXT, PlainConsole, print_text

TRACEBACK = "SWEEPS_TRACEBACK"
MISTAKE = 2
"""Exit code of a command that cannot do what it was asked."""
TRY_AGAIN = 75
"""Exit code where Ray or the machine failed and the command, given again, goes on (EX_TEMPFAIL)."""
MOST_LINES = 30
LONGEST_LINE = 2_000

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed by who started us
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115 (to the end)
# a pipe has no width: do not fold at 80, unless COLUMNS asks for it
_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
console = PlainConsole(width=_width)
errors = PlainConsole(stderr=True, width=_width)


def say(text: str, style: str = "") -> None:
    """Print a line as it is; it is neither folded nor coloured by its content."""
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a warning to the error stream."""
    print_text(errors, text, "[yellow]warning[/] ")


def fail(message: str) -> typer.Exit:
    """Print one message for a user's mistake; the exit to raise."""
    print_text(errors, message, "[bold red]error[/] ")
    return typer.Exit(MISTAKE)


def shortened(message: str) -> str:
    """A message with at most `MOST_LINES` lines of `LONGEST_LINE` characters: a file may hold a
    value of a megabyte, and a mistake may be made in a thousand places.
    """
    lines = message.split("\n")
    left_out = len(lines) - MOST_LINES
    if left_out > 0:
        lines = [*lines[:MOST_LINES], f"and {left_out:,} lines more"]
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."
        for line in lines
    )


def handled(call: Callable[[], Any]) -> Any:
    """What `call` returns.

    Raises:
        typer.Exit: it refused what the user gave; the message has been printed.
    """
    try:
        return call()
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        raise fail(shortened(str(error))) from None


class _LastingStream:
    """A stream that falls silent where its reader or its terminal has gone, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._safely(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._safely(self._stream.flush)

    def _safely(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError:
            # what is left in its buffer must find a place, or Python complains as it ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """What is printed inside is lost where the terminal is closed or a pipe's reader has ended; the
    work goes on.
    """
    with (
        contextlib.redirect_stdout(cast(TextIO, _LastingStream(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _LastingStream(sys.stderr))),
    ):
        yield


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage is looked for meanwhile.

    Importing torch makes a million objects that all stay. A command that only prints something
    would spend a sixth of its time on looking through them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_WITH_PATHS = (
    "coded",
    "figures",
    "markdown",
    "model",
    "out",
    "paper",
    "plugin",
    "recorded",
    "run",
    "runs",
    "spec",
)
"""Parameters of commands that are paths, or may be."""


class Command(TyperCommand):
    """A command in whose paths `~` and environment variables are replaced: a shell leaves them
    where they stand after `=` or in quotes.
    """

    def invoke(self, ctx: Any) -> Any:
        from trainers.files import expanded

        for name in _WITH_PATHS:
            value = ctx.params.get(name)
            if isinstance(value, str | Path):
                ctx.params[name] = type(value)(expanded(str(value)))
            elif isinstance(value, list | tuple):
                ctx.params[name] = [expanded(str(each)) for each in value]
        return super().invoke(ctx)


class Commands(TyperGroup):
    """All commands of `sweeps`; a mistake in any of them ends it with a message."""

    def invoke(self, ctx: Any) -> Any:
        return handled(lambda: super(Commands, self).invoke(ctx))


def text_width() -> int:
    """The width of running text on this terminal."""
    return min(console.width, LONGEST_TEXT)


def print_lines(lines: Iterable[Text]) -> None:
    """Print lines that have their width already."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def table(*columns: str, header_style: str = "dim") -> Table:
    """An empty table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style=header_style)
