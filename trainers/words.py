"""Words of messages: what a user probably meant, and names that come from files."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'X'? ` with a blank behind it for a name much like a known one, else ''."""
    names = list(known)
    if name in names:
        return ""
    close = difflib.get_close_matches(name, names, 1)
    begun = [each for each in names if len(name) > 2 and each.startswith(name)]
    found = close or begun
    return f"did you mean {found[0]!r}? " if found else ""


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def printable(name: str) -> str:
    """A name for messages: what is not UTF-8, breaks a line or steers a terminal is escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in name
    )


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in a sentence: "a, b and 3 more"."""
    every = [printable(name) for name in names]
    shown = ", ".join(every[:most])
    return f"{shown} and {len(every) - most:,} more" if len(every) > most else shown
