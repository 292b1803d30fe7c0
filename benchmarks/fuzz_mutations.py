"""Random damage to trees of JSON or YAML values, and to bytes. All of it follows from the `Random`
that is given.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

Tree = Any
"""Dicts, lists and plain values, nested."""

_DEEP = json.loads("[" * 60 + "]" * 60)
_DEEPER = json.loads("[" * 400 + "]" * 400)
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    -(2**63),
    2**63,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "0",
    "nan",
    "none",
    "../../../etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "\x00",
    "\x1b]52;c;ZXZpbA==\x07",
    "\ud800",
    "a\nb",
    "‮evil",
    "x" * 100_000,
    "</script><script>alert(1)</script>",
    "'; drop table trials; --",
    "{0.__class__}",
    "%s%n",
    [],
    {},
    [None],
    [[]],
    {"": ""},
    {"a": {"a": {"a": 1}}},
    list(range(3)),
    ["x"] * 1000,
    _DEEP,
    _DEEPER,
)
"""Values that are seldom meant: limits of types, texts that mean something somewhere."""

_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"- ",
    b"&a",
    b"*a",
    b"[" * 2_000,
    b'{"a":' * 300,
)


def mutated(tree: Tree, rng: random.Random) -> Tree:
    """A copy with one to three random changes."""
    changed = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return rng.choice(NASTY)
        parent, key = rng.choice(places)
        _change(parent, key, changed, rng)
    return changed


def _places(tree: Tree) -> Any:
    """(parent, key) of every value below the root."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _change(parent: Tree, key: Any, root: Tree, rng: random.Random) -> None:
    value = parent[key]
    kind = rng.randrange(8)
    if kind <= 2:
        parent[key] = copy.deepcopy(rng.choice(NASTY))
    elif kind == 3:
        del parent[key]
    elif kind == 4:  # another name, or once more
        if isinstance(parent, dict):
            parent[_misspelt(str(key), rng)] = parent.pop(key)
        else:
            parent.insert(key, copy.deepcopy(value))
    elif kind == 5:  # a value from elsewhere
        other, there = rng.choice(list(_places(root)))
        parent[key] = copy.deepcopy(other[there])
    elif kind == 6:
        parent[key] = _near(value, rng)
    elif isinstance(parent, dict):
        parent[rng.choice(("extra", "", "*", "a.b", "0", "\x1b[31m"))] = value
    else:
        parent.extend(parent[: 10_000 // max(1, len(parent))])


def _misspelt(name: str, rng: random.Random) -> str:
    if not name:
        return "a"
    place = rng.randrange(len(name))
    return name[:place] + rng.choice(("", "_", "é", "\x07", ".")) + name[place + 1 :]


def _near(value: Any, rng: random.Random) -> Any:
    """A value of about this kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        try:
            return value * rng.choice((-1, 0.5, 10, 1e6)) + rng.choice((0, 1))
        except OverflowError:
            return 0
    if isinstance(value, str):
        return rng.choice((_misspelt(value, rng), [value], {value: value}, len(value)))
    return rng.choice(([value], {"value": value}, str(value)[:1000]))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes that are flipped, cut, doubled, moved or put in."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not found:
            return rng.choice(_BYTES)
        start = rng.randrange(len(found))
        length = min(rng.choice((1, 4, 30, 300)), len(found) - start)
        kind = rng.randrange(6)
        if kind <= 1:
            found[start] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del found[start : start + length]
        elif kind == 3:
            found[start:start] = rng.choice(_BYTES) * rng.choice((1, 1, 3, 500))
        elif kind == 4:
            found[start:start] = found[start : start + length]
        elif rng.random() < 0.3:
            del found[start:]
        else:
            found[start : start + length] = rng.randbytes(length)
    return bytes(found)


def as_json(tree: Tree) -> bytes:
    """JSON as Python reads it: NaN and lone surrogates too."""
    return json.dumps(tree).encode()


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file, or lines of it, with other values or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    lines = content.splitlines() or [b"{}"]
    try:
        return as_json(mutated(json.loads(content), rng))
    except ValueError:
        number = rng.randrange(len(lines))
    try:
        lines[number] = as_json(mutated(json.loads(lines[number]), rng))
    except ValueError:
        return damaged(content, rng)
    return b"\n".join(lines) + b"\n"
