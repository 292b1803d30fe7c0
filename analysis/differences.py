"""What one choice is worth against another: differences at equal other parameters and equal seed,
with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.pareto import Floats
from analysis.run import Run

LEVEL = 0.95

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Difference:
    """One objective of a less that of b.

    Attributes:
        metric: name of the objective.
        n: pairs that it rests on, of configurations or of seeds.
        pairs: "configurations": each is a mean over its common seeds; "seeds": where only one
            configuration has a partner.
        mean: of the differences, in the metric's unit; NaN of none.
        low, high: ends of the 95 % interval (Student's t); infinite for fewer than two pairs.
        verdict: what a is beside b; "not distinguishable" where the interval holds 0.
    """

    metric: str
    n: int
    pairs: Literal["configurations", "seeds"]
    mean: float
    low: float
    high: float
    verdict: Verdict


def interval(differences: Floats) -> tuple[float, float, float]:
    """Mean of (n,) differences and the ends of its 95 % interval."""
    n = len(differences)
    if n < 2:
        return (float(differences[0]) if n else math.nan), -math.inf, math.inf
    from scipy.stats import t

    mean = float(differences.mean())
    half = t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n)
    return mean, mean - float(half), mean + float(half)


def verdict_of(low: float, high: float, sign: float) -> Verdict:
    """The verdict on an interval; `sign` is 1 where small values are better, else -1."""
    if low <= 0 <= high:
        return "not distinguishable"
    return "better" if (high < 0) == (sign > 0) else "worse"


def compare(a: Run, b: Run, by: Collection[str] | None = None) -> list[Difference]:
    """The objectives of `a` beside those of `b`, by pairs of trials that differ in nothing else.

    Two trials are a pair if they have the same root seed and agree in every parameter but those
    that tell `a` and `b` apart. What only one trial of a pair has, as an option of an alternative,
    is averaged over. Groups of one run are made by `Run.select`:
    `compare(run.select("init==sws_expand"), run.select("init==none"))`.

    Args:
        by: names of the parameters that tell the two apart; default: those of which one side has
            a single value that the other does not have.

    Returns:
        One difference for each objective that both have, in the order of `a`; with n = 0 where
        no trial has a partner.

    Raises:
        ValueError: a name in `by` that is no parameter of both.
    """
    left, right = a.complete(), b.complete()
    shared = [c for c in map(str, left) if c.startswith("config/") and c in right]
    if by is not None:
        apart = {f"config/{name}" for name in by}
        for column in sorted(apart - set(shared)):
            name = column.removeprefix("config/")
            known = ", ".join(c.removeprefix("config/") for c in shared)
            raise ValueError(f"no parameter {name!r} in both; valid: {known or 'none'}")
    else:
        apart = {c for c in shared if _tells_apart(left[c], right[c])}
    equal = [column for column in shared if column not in apart]
    keys = _keys(left, equal), _keys(right, equal)
    found = []
    for objective in a.objectives:
        if all(o.metric != objective.metric for o in b.objectives):
            continue
        column = f"metric/{objective.metric}"
        pairs = _pairs((left, right), keys, column)
        by_configuration = pairs.groupby("key")["difference"].mean()
        is_one = len(by_configuration) < 2
        values = pairs["difference"] if is_one else by_configuration
        mean, low, high = interval(values.to_numpy(dtype=np.float64))
        found.append(
            Difference(
                objective.metric,
                len(values),
                "seeds" if is_one else "configurations",
                mean,
                low,
                high,
                verdict_of(low, high, objective.sign),
            )
        )
    return found


def _tells_apart(left: pd.Series, right: pd.Series) -> bool:
    mine, theirs = set(_texts(left)), set(_texts(right))
    return min(len(mine), len(theirs)) == 1 and not mine & theirs


def _texts(series: pd.Series) -> list[str]:
    """Values as text; numbers may be rounded differently."""
    if is_numeric(series):
        return [
            "" if math.isnan(v) else f"{v:.12g}"
            for v in series.to_numpy(dtype=np.float64, na_value=np.nan)
        ]
    return ["" if pd.isna(v) else str(v) for v in series]


def _keys(rows: pd.DataFrame, equal: Sequence[str]) -> list[str]:
    """The equal parameters of each row, as one text."""
    texts = [_texts(rows[name]) for name in equal]
    keys = list(zip(*texts, strict=True)) if texts else [()] * len(rows)
    return [repr(key) for key in keys]


def _pairs(
    runs: Sequence[pd.DataFrame], keys: Sequence[list[str]], column: str
) -> pd.DataFrame:
    """Columns key (the equal parameters) and difference, one row a configuration and seed."""
    sides = []
    for rows, own in zip(runs, keys, strict=True):
        frame = pd.DataFrame(
            {
                "key": own,
                "seed": rows["seed"].to_numpy(dtype=np.float64, na_value=-1),
                "value": rows[column].to_numpy(dtype=np.float64, na_value=np.nan),
            }
        )
        frame = frame[np.isfinite(frame["value"])]
        sides.append(frame.groupby(["key", "seed"])["value"].mean())
    found = (sides[0] - sides[1]).dropna().rename("difference")
    return found.reset_index()
