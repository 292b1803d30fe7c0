"""Words of messages: what a user probably meant."""

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
