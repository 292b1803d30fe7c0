"""What is printed on: a console that a run folder of somebody else cannot command."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from analysis.text import printable


class PlainConsole(Console):
    """A console on which text is text: control characters are spelled out, as `\\x1b`.

    Names, errors and values come from files that others may have written. Colours and movements
    of the cursor are rich's own, and remain.
    """

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """The segments of something to print, in order."""
        for text, style, control in super().render(*args, **options):
            yield Segment(text if control else printable(text), style, control)
