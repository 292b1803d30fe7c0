"""Rows of untrusted JSON values to typed data frames that Parquet takes and gives back unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

_INT64 = 2**63


def clean_text(value: str) -> str:
    """`value` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8")


def as_float(value: Any) -> float | None:
    """A JSON number as a float (overflow gives an infinity), None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def as_text(value: Any) -> str:
    """A string as it is, any other JSON value as JSON text."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return clean_text(text)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


def fits(value: Any, dtype: str) -> bool:
    """Whether a JSON value is of the kind that a column of `dtype` holds."""
    if dtype == "string":
        return isinstance(value, str)
    if dtype == "boolean":
        return isinstance(value, bool)
    if dtype == "Int64":
        return _is_int64(value)
    return as_float(value) is not None


def infer_dtype(values: Iterable[Any]) -> str:
    """The narrowest of boolean, Int64, float64 and string that holds every value that is not None."""
    present = [value for value in values if value is not None]
    if not present:
        return "string"
    return next((dtype for dtype in ("boolean", "Int64", "float64") if all(fits(v, dtype) for v in present)), "string")


def column(values: Sequence[Any], dtype: str | None = None) -> pd.Series:
    """One column of JSON values; None is missing. Without `dtype` it is inferred, and mixed values become text."""
    dtype = dtype or infer_dtype(values)
    if dtype == "datetime":
        return pd.Series(pd.DatetimeIndex(pd.to_datetime(list(values), utc=True)).as_unit("us"))
    if dtype == "float64":
        floats = [as_float(value) for value in values]
        return pd.Series(np.array([np.nan if f is None else f for f in floats], dtype="float64"))
    if dtype == "string":
        return pd.Series([None if v is None else as_text(v) for v in values], dtype="string")
    return pd.Series(list(values), dtype=dtype)  # type: ignore[call-overload]


def frame(rows: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Rows to a data frame: the columns of `dtypes` first, always there, then the others by group and appearance."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        for name in row:
            if name not in dtypes:
                groups.setdefault(name.partition("/")[0] if "/" in name else "", {})[name] = None
    fixed = [name for name in dtypes if "/" not in name]
    wanted = [name for name in dtypes if "/" in name]
    order = [g for g in ("config", "metric", "version") if g in groups or any(n.startswith(g + "/") for n in wanted)]
    names = [*fixed, *groups.get("", {})]
    for group in [*order, *(g for g in groups if g and g not in order)]:
        names += [n for n in wanted if n.startswith(group + "/")] + list(groups.get(group, {}))
    return pd.DataFrame({name: column([row.get(name) for row in rows], dtypes.get(name)) for name in names})
