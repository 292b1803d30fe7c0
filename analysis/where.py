"""Constraints as text: `accuracy>=0.9 and (latency_ms<5 or init==none)`, parsed by hand and
never evaluated as code.

    either      = both { "or" both }
    both        = test { "and" test }
    test        = "(" either ")" | name operator value
    operator    = ">=" | "<=" | ">" | "<" | "==" | "=" | "!="
    value       = number, number%, word, 'text' or "text"

A name is a metric's, else a configuration key's, else a column's. What a trial does not
have passes no test.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_TOKEN = re.compile(
    r"\s*(?:(?P<operator><=|>=|==|!=|<|>|=)|(?P<bracket>[()])"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?(?![\w.]))"
    r"|(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<word>[A-Za-z_][\w./*:-]*))"
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_MAX_TOKENS = 400

Token = tuple[str, str]
Mask = NDArray[np.bool_]


def where_mask(expression: str, data: pd.DataFrame) -> Mask:
    """(n,) which rows of `data` pass `expression`. Raises ValueError that says where it is
    wrong and what is valid.
    """
    parser = _Parser(expression, data)
    mask = parser.either()
    if parser.tokens:
        raise parser.wrong(f"unexpected {parser.tokens[0][1]!r}; join tests by and, or")
    return mask


def _tokens(expression: str) -> list[Token]:
    found: list[Token] = []
    place, end = 0, len(expression.rstrip())
    while place < end:
        match = _TOKEN.match(expression, place)
        if match is None or match.lastgroup is None:
            raise ValueError(
                f"where {expression!r}: cannot read"
                f" {expression[place:].strip()[:20]!r}; write name op number"
            )
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    if len(found) > _MAX_TOKENS:
        raise ValueError(f"where: more than {_MAX_TOKENS} words; shorten it")
    return found


class _Parser:
    def __init__(self, expression: str, data: pd.DataFrame) -> None:
        self.expression, self.data = expression, data
        self.tokens = _tokens(expression)

    def wrong(self, message: str) -> ValueError:
        return ValueError(f"where {self.expression!r}: {message}")

    def _take(self, expected: str) -> Token:
        if not self.tokens:
            raise self.wrong(f"ends where {expected} should follow")
        return self.tokens.pop(0)

    def _next_is(self, word: str) -> bool:
        if (
            self.tokens
            and self.tokens[0][0] in ("word", "bracket")
            and self.tokens[0][1].lower() == word
        ):
            self.tokens.pop(0)
            return True
        return False

    def either(self) -> Mask:
        mask = self._both()
        while self._next_is("or"):
            mask = mask | self._both()
        return mask

    def _both(self) -> Mask:
        mask = self._test()
        while self._next_is("and"):
            mask = mask & self._test()
        return mask

    def _test(self) -> Mask:
        if self._next_is("("):
            mask = self.either()
            if not self._next_is(")"):
                raise self.wrong("a bracket is not closed")
            return mask
        kind, name = self._take("a name")
        if kind not in ("word", "quoted"):
            raise self.wrong(f"expected a name, got {name!r}")
        kind, sign = self._take("an operator")
        if kind != "operator":
            raise self.wrong(
                f"expected one of {' '.join(_OPERATORS)} after {name!r}, got {sign!r}"
            )
        return self._compare(_plain(name), sign, self._take("a value"))

    def _compare(self, name: str, sign: str, value: Token) -> Mask:
        kind, text = value
        if kind not in ("number", "word", "quoted"):
            raise self.wrong(f"expected a value after {name} {sign}, got {text!r}")
        column = self._column(name)
        known = column.notna().to_numpy()
        numeric = pd.api.types.is_numeric_dtype(
            column.dtype
        ) and not pd.api.types.is_bool_dtype(column.dtype)
        if numeric:
            if kind != "number":
                raise self.wrong(f"{name} holds numbers; {text!r} is none")
            number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            return np.asarray(_OPERATORS[sign](values, number), dtype=bool) & known
        if sign not in ("==", "=", "!="):
            raise self.wrong(f"{name} holds text; compare it by == or !=")
        texts = column[known].astype(str)
        if pd.api.types.is_bool_dtype(column.dtype):
            texts = texts.str.lower()
        mask = np.zeros(len(column), dtype=bool)
        mask[known] = np.asarray(
            _OPERATORS[sign](texts.to_numpy(dtype=object), _plain(text)), dtype=bool
        )
        return mask

    def _column(self, name: str) -> pd.Series:
        for column in (f"metric/{name}", f"config/{name}", name):
            if column in self.data:
                return self.data[column]
        known = sorted(
            {
                str(c).partition("/")[2] or str(c)
                for c in self.data
                if not str(c).startswith("version/")
            }
        )
        near = difflib.get_close_matches(name, known, n=6, cutoff=0.4) or known[:12]
        raise self.wrong(
            f"no metric, parameter or column {name!r}; near: {', '.join(near)}"
        )


def _plain(text: str) -> str:
    return text[1:-1] if text[:1] in "'\"" else text
