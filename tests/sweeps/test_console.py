"""What is printed of somebody else's run folder is text and nothing but text."""

import io

from rich.table import Table

from sweeps.cli.terminal import LONGEST_LINE, MOST_LINES, shortened
from sweeps.console import PlainConsole

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
