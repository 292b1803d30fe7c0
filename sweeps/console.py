"""What is printed on: a console that a run folder of somebody else cannot command."""

import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from analysis.text import printable

LONGEST_TEXT = 100
"""Width of running text; longer lines are hard to read."""
_WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
"""A path or a name stays whole, so that it can be copied."""


class PlainConsole(Console):
    """A console on which text is text: control characters are spelled out, as `\\x1b`.

    Names, errors and values come from files that others may have written. Colours and movements
    of the cursor are rich's own, and remain.
    """

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """The segments of something to print, in order."""
        for text, style, control in super().render(*args, **options):
            yield Segment(text if control else printable(text), style, control)


def print_text(
    console: Console, text: str, before: str = "", *, indent: int = 0
) -> None:
    """Print running text as it is: on a terminal folded between words, in a log a line a line.

    Args:
        before: markup that comes before the text.
        indent: spaces before a line that goes on.
    """
    if console.is_terminal:
        room = console.width - len(before and Text.from_markup(before).plain)
        lines = [
            textwrap.wrap(line, room, subsequent_indent=" " * indent, **_WHOLE_WORDS)
            or [""]
            for line in text.split("\n")
        ]
        text = "\n".join(part for line in lines for part in line)
    console.print(before + escape(text), highlight=False, soft_wrap=True)
