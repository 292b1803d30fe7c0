"""What a trial's metrics are worth by its sweep's objectives."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.contract import Objective

_SIGN = {"min": 1.0, "max": -1.0}


def finite_values(
    metrics: Mapping[str, Any], objectives: Sequence[Objective]
) -> list[float] | None:
    """The objectives' values in order, or None where one is missing or not a finite number."""
    values = [metrics.get(o.metric) for o in objectives]
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return None
    return [float(v) for v in values if v is not None]


def excesses(
    values: Sequence[float], objectives: Sequence[Objective]
) -> dict[str, float]:
    """For each bound how far its value lies beyond it, in the metric's unit; what samplers
    call constraints.
    """
    return {
        f"bound.{o.metric}": _SIGN[o.mode] * (value - o.bound)
        for o, value in zip(objectives, values, strict=True)
        if o.bound is not None
    }


def is_feasible(metrics: Mapping[str, Any], objectives: Sequence[Objective]) -> bool:
    """Whether every objective was measured and none lies beyond its bound."""
    values = finite_values(metrics, objectives)
    return values is not None and all(
        excess <= 0 for excess in excesses(values, objectives).values()
    )
