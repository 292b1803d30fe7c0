"""Constraints as text: `accuracy>=0.9 and (latency_ms<5 or init==none)`, parsed by hand and
never evaluated as code.

    either      = both { "or" both }
    both        = test { "and" test }
    test        = "(" either ")" | name operator value
    operator    = ">=" | "<=" | ">" | "<" | "==" | "=" | "!="
    value       = number, number%, word, 'text' or "text"

A name is that of a metric, else of a parameter, else of a column. A trial passes no test of what
it does not have.
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

from analysis.configurations import is_numeric

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
    """(n,) which rows of `data` pass `expression`.

    Raises ValueError that says where the expression is wrong and what would be right.
    """
    parser = _Parser(expression, data)
    mask = parser.either()
    if parser.tokens:
        raise parser.wrong(f"unexpected {parser.tokens[0][1]!r}; join tests by and, or")
    return mask


def where_columns(expression: str, data: pd.DataFrame) -> list[str]:
    """The columns of `data` that `expression` compares, each once."""
    parser = _Parser(expression, data)
    parser.either()
    return list(dict.fromkeys(parser.columns))


def _tokens(expression: str) -> list[Token]:
    found: list[Token] = []
    start, end = 0, len(expression.rstrip())
    while start < end:
        match = _TOKEN.match(expression, start)
        if match is None or match.lastgroup is None:
            rest = expression[start:].strip()[:20]
            raise ValueError(
                f"where {expression!r}: cannot read {rest!r}; write a test as name, operator"
                " and value, for example accuracy>=0.9"
            )
        found.append((match.lastgroup, match[match.lastgroup]))
        start = match.end()
    if len(found) > _MAX_TOKENS:
        raise ValueError(f"where: more than {_MAX_TOKENS} words; shorten it")
    return found


class _Parser:
    """Reads an expression from left to right, one method for each rule of the grammar."""

    def __init__(self, expression: str, data: pd.DataFrame) -> None:
        self.expression, self.data = expression, data
        self.tokens = _tokens(expression)
        self.columns: list[str] = []

    def wrong(self, message: str) -> ValueError:
        """An error about this expression, to raise."""
        return ValueError(f"where {self.expression!r}: {message}")

    def _take(self, expected: str) -> Token:
        if not self.tokens:
            raise self.wrong(f"ends where {expected} should follow")
        return self.tokens.pop(0)

    def _next_is(self, word: str) -> bool:
        """Whether `word` follows; it is then taken."""
        if not self.tokens:
            return False
        kind, text = self.tokens[0]
        if kind not in ("word", "bracket") or text.lower() != word:
            return False
        self.tokens.pop(0)
        return True

    def either(self) -> Mask:
        """Tests of which one must pass."""
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
            known = " ".join(_OPERATORS)
            raise self.wrong(f"expected one of {known} after {name!r}, got {sign!r}")
        kind, text = self._take("a value")
        if kind not in ("number", "word", "quoted"):
            raise self.wrong(f"expected a value after {name} {sign}, got {text!r}")
        name = _unquoted(name)
        column = self._column(name)
        if is_numeric(column):
            if kind != "number":
                raise self.wrong(f"{name} holds numbers, and {text!r} is not one")
            return _compare_numbers(column, sign, text)
        if sign not in ("==", "=", "!="):
            raise self.wrong(f"{name} holds text; compare it by == or !=")
        return _compare_texts(column, sign, _unquoted(text))

    def _column(self, name: str) -> pd.Series:
        for column in (f"metric/{name}", f"config/{name}", name):
            if column in self.data:
                self.columns.append(column)
                return self.data[column]
        columns = [str(c) for c in self.data if not str(c).startswith("version/")]
        known = sorted({c.partition("/")[2] or c for c in columns})
        near = difflib.get_close_matches(name, known, n=6, cutoff=0.4) or known[:12]
        raise self.wrong(
            f"no metric, parameter or column {name!r}; near: {', '.join(near)}"
        )


def _compare_numbers(column: pd.Series, sign: str, text: str) -> Mask:
    number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    passed = np.asarray(_OPERATORS[sign](values, number), dtype=bool)
    return passed & column.notna().to_numpy()


def _compare_texts(column: pd.Series, sign: str, text: str) -> Mask:
    known = column.notna().to_numpy()
    texts = column[known].astype(str)
    if pd.api.types.is_bool_dtype(column.dtype):
        texts = texts.str.lower()
    mask = np.zeros(len(column), dtype=bool)
    mask[known] = _OPERATORS[sign](texts.to_numpy(dtype=object), text)
    return mask


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in "'\"" else text
