"""Fronts, hypervolume and knee.

Symbols: n trials, k objectives. `values` is (n, k), as recorded; `costs` is (n, k) with the objectives to maximise
negated, so that less is better in every column. A trial counts where all its objectives are finite and none breaks
its bound. Duplicates are all kept: two trials with the same objectives do not dominate each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Objective:
    """A metric to make small ("min") or large ("max"); a trial past `bound` (in the metric's unit) is not eligible.

    The bound itself is allowed: value <= bound for "min", value >= bound for "max". Raises ValueError for a mode
    other than these two, or a bound that is not a number.
    """

    metric: str
    mode: str = "min"
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"objective {self.metric!r}: mode must be 'min' or 'max', got {self.mode!r}")
        if self.bound is not None and np.isnan(self.bound):
            raise ValueError(f"objective {self.metric!r}: bound must be a number or none, got NaN")

    @property
    def sign(self) -> float:
        """What the metric is multiplied by so that less is better."""
        return 1.0 if self.mode == "min" else -1.0


def to_costs(values: Floats, objectives: Sequence[Objective]) -> Floats:
    """Values (n, k) with less better in every column. Raises ValueError where the columns are not the objectives."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(objectives):
        raise ValueError(f"expected one column for each of {len(objectives)} objectives, got shape {values.shape}")
    return values * np.array([objective.sign for objective in objectives])


def eligible(values: Floats, objectives: Sequence[Objective]) -> Bools:
    """(n,) whether all objectives of a trial are finite and within their bounds."""
    costs = to_costs(values, objectives)
    keep: Bools = np.asarray(np.isfinite(costs).all(axis=1))
    for column, objective in enumerate(objectives):
        if objective.bound is not None:
            keep &= costs[:, column] <= objective.sign * objective.bound
    return keep


def front_mask(values: Floats, objectives: Sequence[Objective]) -> Bools:
    """(n,) whether a trial is eligible and no eligible trial dominates it; all False without objectives."""
    keep = eligible(values, objectives)
    if not len(objectives) or not keep.any():
        return np.zeros(len(values), dtype=bool)
    keep[keep] = _nondominated(to_costs(values, objectives)[keep])
    return keep


def _nondominated(costs: Floats) -> Bools:
    if costs.shape[1] == 1:
        return np.asarray(costs[:, 0] == costs[:, 0].min())
    import moocore

    return np.asarray(moocore.is_nondominated(costs, keep_weakly=True), dtype=bool)


def reference_point(values: Floats, objectives: Sequence[Objective], margin: float = 0.1) -> Floats:
    """(k,) the worst value of the eligible trials, `margin` of their range further out, in the metrics' units.

    An objective on which all trials agree moves out by `margin` of its value, or `margin` where that is zero.
    Raises ValueError where no trial is eligible.
    """
    keep = eligible(values, objectives)
    if not keep.any():
        raise ValueError("no complete trial with finite objectives within their bounds: give a reference point")
    costs = to_costs(values, objectives)[keep]
    worst, span = costs.max(axis=0), np.ptp(costs, axis=0)
    step = np.where(span > 0, span, np.where(worst != 0, np.abs(worst), 1.0))
    return (worst + margin * step) * np.array([objective.sign for objective in objectives])


def check_reference(reference: Sequence[float] | Mapping[str, float], objectives: Sequence[Objective]) -> Floats:
    """(k,) a reference point given in objective order or by metric. Raises ValueError unless one finite value each."""
    metrics = [objective.metric for objective in objectives]
    if isinstance(reference, Mapping):
        if set(reference) != set(metrics):
            raise ValueError(f"reference point must name the objectives {metrics}, got {sorted(reference)}")
        reference = [reference[metric] for metric in metrics]
    point = np.asarray(reference, dtype=np.float64)
    if point.shape != (len(metrics),) or not np.isfinite(point).all():
        raise ValueError(f"reference point must be one finite number for each of {metrics}, got {point.tolist()}")
    return point


def hypervolume(values: Floats, objectives: Sequence[Objective], reference: Floats) -> float:
    """Volume between the eligible trials and `reference` (k,), in the product of the metrics' units; 0 for none."""
    keep = eligible(values, objectives)
    costs = to_costs(values, objectives)[keep]
    point = to_costs(np.asarray(reference, dtype=np.float64)[None], objectives)[0]
    return _volume(costs, point)


def _volume(costs: Floats, point: Floats) -> float:
    costs = costs[(costs < point).all(axis=1)]
    if not costs.size:
        return 0.0
    if costs.shape[1] == 1:
        return float(point[0] - costs.min())
    import moocore

    return float(moocore.hypervolume(costs, ref=point))


def hypervolume_over_time(values: Floats, objectives: Sequence[Objective], reference: Floats) -> Floats:
    """(n,) hypervolume of the first 1 ... n trials, the rows of `values` in the order in which they ended."""
    keep = eligible(values, objectives)
    costs = to_costs(values, objectives)
    point = to_costs(np.asarray(reference, dtype=np.float64)[None], objectives)[0]
    archive = np.empty((0, len(objectives)))
    volumes = np.zeros(len(costs))
    for row, cost in enumerate(costs):
        volumes[row] = volumes[row - 1] if row else 0.0
        if keep[row] and not (archive <= cost).all(axis=1).any():
            archive = np.vstack([archive[~(cost <= archive).all(axis=1)], cost])
            volumes[row] = _volume(archive, point)
    return volumes


def knee(values: Floats, objectives: Sequence[Objective]) -> int:
    """Row of a front, `values` (n, k), that is farthest from the plane through its ends, towards the ideal.

    Objectives are scaled to the front's range first; of equals, the row with the smallest largest sacrifice.
    Raises ValueError for an empty front.
    """
    costs = to_costs(values, objectives)
    if not len(costs):
        raise ValueError("an empty front has no knee")
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    # Rounded, so that equals by design are equals despite the last bits.
    return int(np.lexsort((scaled.max(axis=1).round(12), scaled.sum(axis=1).round(12)))[0])
