"""What one choice is worth against another: differences, or ratios of sizes and times, at equal
other parameters and equal seed, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.contract import Objective
from analysis.pareto import Floats
from analysis.run import Run

LEVEL = 0.95

Verdict = Literal["better", "worse", "not distinguishable", "cannot be judged"]


@dataclass(frozen=True)
class Difference:
    """One objective of a less that of b, or over it.

    Attributes:
        metric: name of the objective.
        n: pairs that it rests on, of configurations or of seeds.
        pairs: "configurations": each is a mean over its common seeds; "seeds": where only one
            configuration has a partner.
        mean: of the differences, in the metric's unit, or the geometric mean of the ratios; NaN
            of no pair.
        low, high: ends of the 95 % interval (Student's t, of logarithms where it is of ratios);
            as wide as can be for fewer than two pairs.
        verdict: what a is beside b; "not distinguishable" where the interval holds no difference,
            "cannot be judged" where there is no interval.
        is_ratio: whether a is divided by b: of a size or a time that is positive everywhere,
            which differs by as many times in large models as in small ones.
    """

    metric: str
    n: int
    pairs: Literal["configurations", "seeds"]
    mean: float
    low: float
    high: float
    verdict: Verdict
    is_ratio: bool = False


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
    if not math.isfinite(low):
        return "cannot be judged"
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
        One difference for each objective that both have, in the order of `a`, and a ratio where
        the metric is a size or a time (`Metric.is_ratio`); with n = 0 where
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
        pairs = _pairs((left, right), keys, f"metric/{objective.metric}")
        is_size = a.metrics.of(objective.metric).is_ratio
        found.append(_difference(pairs, objective, is_size))
    return found


def _difference(pairs: pd.DataFrame, objective: Objective, is_size: bool) -> Difference:
    """What the pairs (see `_pairs`) say of an objective, by ratios where `is_size`."""
    is_ratio = is_size and bool((pairs[["a", "b"]] > 0).all(axis=None))
    sides = np.log(pairs[["a", "b"]]) if is_ratio else pairs
    each = (sides["a"] - sides["b"]).groupby(pairs["key"])
    is_one = each.ngroups < 2
    values = (sides["a"] - sides["b"]) if is_one else each.mean()
    mean, low, high = interval(values.to_numpy(dtype=np.float64))
    verdict = verdict_of(low, high, objective.sign)
    if is_ratio:
        with np.errstate(over="ignore"):
            mean, low, high = map(float, np.exp([mean, low, high]))
    pairs_of: Literal["configurations", "seeds"]
    pairs_of = "seeds" if is_one else "configurations"
    return Difference(
        objective.metric, len(values), pairs_of, mean, low, high, verdict, is_ratio
    )


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
    """Columns key (the equal parameters), a and b, one row a configuration and seed."""
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
    found = pd.DataFrame({"a": sides[0], "b": sides[1]}).dropna()
    return found.reset_index()
