"""What is printed of somebody else's run folder is text and nothing but text."""

import io

from rich.table import Table

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
