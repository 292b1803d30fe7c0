"""Untrusted JSON values to typed Arrow columns, and Arrow tables to data frames."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.text import clean_text

_INT64 = 2**63
_EXACT = 2**53
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)

ARROW: dict[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "json": pa.string(),
    "datetime": pa.timestamp("us", tz="UTC"),
}
"""Arrow type of each of our column types. "json" is any JSON value as text; "null" is a
column without values.
"""

_KINDS: dict[str, set[type]] = {
    "boolean": {bool},
    "Int64": {int},
    "float64": {int, float},
    "string": {str},
}
_PANDAS = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.string(): pd.StringDtype(),
}


def as_float(value: Any) -> float | None:
    """A JSON number as a float (overflow gives an infinity), None for anything else,
    booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def as_text(value: Any) -> str:
    """A string as it is, any other JSON value as JSON text; 2.0 is written 2, as columns of
    numbers do not tell them apart.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    try:
        text = value if isinstance(value, str) else _ENCODER.encode(value)
    except RecursionError:
        text = "(nested too deeply)"
    return clean_text(text)


def fits(value: Any, dtype: str) -> bool:
    """Whether a JSON value is of the kind that a column of `dtype` holds."""
    if dtype == "json":
        return True
    return type(value) in _KINDS[dtype] and (
        dtype != "Int64" or -_INT64 <= value < _INT64
    )


def all_fit(values: Sequence[Any], dtype: str) -> bool:
    """Whether all values but None fit a column of `dtype`."""
    if dtype == "json":
        return True
    kinds = set(map(type, values)) - {type(None)}
    return kinds <= _KINDS[dtype] and (
        dtype != "Int64" or all(v is None or -_INT64 <= v < _INT64 for v in values)
    )


def infer(values: Sequence[Any]) -> str:
    """The narrowest of null, boolean, Int64, float64 and string that holds every value;
    mixed ones are text.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return "null"
    if kinds == {int}:
        return (
            "Int64"
            if all(v is None or -_INT64 <= v < _INT64 for v in values)
            else "float64"
        )
    return next(
        (dtype for dtype in ("boolean", "float64") if kinds <= _KINDS[dtype]), "string"
    )


def unify(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The narrowest type that holds columns of both types."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    return pa.float64() if {a, b} == {pa.int64(), pa.float64()} else pa.string()


def array(values: Sequence[Any], dtype: str) -> pa.Array:
    """A column of JSON values that fit `dtype`; None is missing. Any value fits "string":
    it becomes text.
    """
    if dtype in ("string", "json"):
        convert: Callable[[Any], Any] = as_text
        if set(map(type, values)) <= {str, type(None)}:
            with contextlib.suppress(UnicodeEncodeError):
                made = pa.array(values, pa.string())
                # an address may hold credentials, which `as_text` takes out
                if not pc.any(pc.match_substring(made, "://")).as_py():
                    return made
    elif dtype == "float64":
        convert = as_float
        try:
            return pa.array(values, pa.float64())
        except pa.ArrowInvalid:  # integers beyond what a float holds exactly
            pass
    else:
        return pa.array(values, ARROW[dtype])
    return pa.array([None if v is None else convert(v) for v in values], ARROW[dtype])


def cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """A column as a type that `unify` gave for it; numbers and booleans become the text
    that `array` writes.
    """
    if column.type == wanted:
        return column
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), wanted)])
    if pa.types.is_string(wanted):
        return pa.chunked_array([array(column.to_pylist(), "string")])
    return pc.cast(column, wanted)


def known_type(column: pa.ChunkedArray) -> pa.DataType:
    """Type of a column; null where it has no values, since then its stored type says nothing."""
    return pa.null() if column.null_count == len(column) else column.type


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The value of every name in each row, None where a row has none."""
    found = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        try:
            found[name] = list(map(itemgetter(name), rows))
        except KeyError:
            found[name] = [row.get(name) for row in rows]
    return found


def table(
    values: Mapping[str, Sequence[Any]], num_rows: int, dtypes: Mapping[str, str]
) -> pa.Table:
    """Columns of JSON values to a table: those of `dtypes`, whose values fit them, then all
    others with inferred types.
    """
    made = {
        name: array(values[name], t) if name in values else pa.nulls(num_rows, ARROW[t])
        for name, t in dtypes.items()
    }
    return pa.table(
        made
        | {name: array(v, infer(v)) for name, v in values.items() if name not in dtypes}
    )


def to_pandas(data: pa.Table) -> pd.DataFrame:
    """A table as a data frame: nullable integers, booleans and text, floats with NaN for
    missing.
    """
    return data.to_pandas(types_mapper=_PANDAS.get)


_GROUPS = {"": 1, "config": 2, "metric": 3, "version": 4}


def group_order(
    names: Sequence[str], first: Sequence[str], metrics: Sequence[str] = ()
) -> list[str]:
    """`names` in a table's order: plain ones, then `config/`, `metric/`, `version/`.

    In each group those of `first` stand first, then, among the plain ones, `metrics` in their
    order, then the others by name.
    """
    rank = {name: i for i, name in enumerate(first)}
    for name in metrics:
        rank.setdefault(name, len(rank))
    leading = {name for name in first if "/" not in name}

    def key(name: str) -> tuple[int, int, str]:
        if name in leading:
            return (0, rank[name], "")
        group = name.partition("/")[0] if "/" in name else ""
        return (_GROUPS.get(group, 5), rank.get(name, len(rank)), name)

    return sorted(dict.fromkeys(names), key=key)
