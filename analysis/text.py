"""Text from a run folder, made fit for UTF-8 and for a terminal."""

import re
from collections.abc import Sequence

_MOVES_A_TERMINAL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters, and those that turn the direction of writing; not tab and new line."""
_USER_OF_URI = re.compile(r"(?<=://)[^/\s?#@]+@")
_KEY_OF_QUERY = re.compile(
    r"([?&](?:access_key|secret_key|session_token|password|token|api_key|sig)=)[^&\s]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """`text` with users, passwords and keys in the addresses that it holds replaced by `***`."""
    if "://" not in text:
        return text
    return _KEY_OF_QUERY.sub(r"\1***", _USER_OF_URI.sub("***@", text))


def clean_text(value: str) -> str:
    """`value` without credentials in addresses, and without lone surrogates, which JSON can spell
    and UTF-8 cannot.
    """
    value = without_credentials(value)
    if value.isascii():
        return value
    return value.encode("utf-8", "replace").decode("utf-8")


def printable(text: str) -> str:
    """`text` with control characters spelled out, as `\\x1b`.

    A terminal obeys them: they move the cursor, write the clipboard, or hide what follows. Text
    from a run folder of somebody else is printed through this.
    """
    return _MOVES_A_TERMINAL.sub(lambda found: ascii(found[0])[1:-1], text)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each dotted name → its shortest ending that no other of them ends with: 'stages.init.args.
    depth' is 'depth' unless another one is called so, too. Wildcards (`*`) are left out where the
    rest tells names apart.
    """
    parts = {name: [p for p in name.split(".") if p != "*"] for name in names}
    found = {}
    for name, own in parts.items():
        others = [p for other, p in parts.items() if other != name]
        count = next(
            (n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)),
            len(own),
        )
        found[name] = ".".join(own[-count:])
    if len(set(found.values())) < len(found):
        return {name: name for name in names}
    return found
