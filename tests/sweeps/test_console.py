"""What is printed of somebody else's run folder is text and nothing but text."""

import io
import re

from rich.table import Table

from sweeps.cli.terminal import LONGEST_LINE, MOST_LINES, shortened
from sweeps.console import PlainConsole, print_text

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"


def test_text_is_spelled_out_and_colours_remain():
    written = io.StringIO()
    console = PlainConsole(file=written, force_terminal=True, width=100)
    table = Table(f"name {CLIPBOARD}")
    table.add_row(f"[red]value[/] {CLIPBOARD}")
    console.print(table)
    console.print(f"line {CLIPBOARD}", style="bold", highlight=False)
    text = written.getvalue()
    assert CLIPBOARD not in text
    assert "\x1b]" not in text
    assert text.count(r"\x1b]52") == 3
    assert "\x1b[31mvalue" in text
    assert "\x1b[1m" in text


def test_a_message_of_a_megabyte_is_cut():
    assert shortened("place: rule\nplace: value") == "place: rule\nplace: value"
    lines = shortened("\n".join(["x" * 100_000] * (MOST_LINES + 7))).split("\n")
    assert max(map(len, lines)) == LONGEST_LINE
    assert lines[-1] == "and 7 lines more"


def test_running_text_is_folded_between_words_on_a_terminal_alone() -> None:
    text = "a path /somewhere/that-is-longer/than-the-line stays whole"
    for is_terminal, lines in ((True, 3), (False, 1)):
        out = io.StringIO()
        console = PlainConsole(file=out, width=20, force_terminal=is_terminal)
        print_text(console, text, "error ")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
        assert len(shown) == lines
        assert " ".join(shown) == f"error {text}"
    out = io.StringIO()
    console = PlainConsole(file=out, width=20, force_terminal=True)
    print_text(console, "note  of the data, in two lines", indent=6)
    assert out.getvalue() == "note  of the data,\n      in two lines\n"
