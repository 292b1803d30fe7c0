"""Fronts, hypervolume and knee.

Symbols: n trials, k objectives. `values` is (n, k), as recorded; `costs` is (n, k) with the
objectives to maximise negated, so that less is better in every column. A trial counts where
all its objectives are finite and none breaks its bound. Duplicates are all kept: two trials
with the same objectives do not dominate each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.contract import Objective

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOST_EXACT = 7
"""Objectives up to which a hypervolume may be computed exactly; more than so many are sampled, with
an error of some tenths of a percent.
"""
_MOST_WORK = 3e8
"""Points to the power of the objectives less three, which the time of an exact hypervolume follows:
about a third of a second, of 130 points of 7 objectives or 670 of 6. More is sampled, too.
"""
_DIRECTIONS = 65_536
_MOST_CURVE = 3e9
"""Work of a curve of hypervolumes, likewise; of one that takes more not every point is computed."""


def to_costs(values: Floats, objectives: Sequence[Objective]) -> Floats:
    """Values (n, k) with less better in every column. Raises ValueError where the columns
    are not the objectives.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(objectives):
        raise ValueError(
            f"expected one column for each of {len(objectives)} objectives, got shape"
            f" {values.shape}"
        )
    return values * np.array([objective.sign for objective in objectives])


def eligible(values: Floats, objectives: Sequence[Objective]) -> Bools:
    """(n,) whether all objectives of a trial are finite and within their bounds."""
    costs = to_costs(values, objectives)
    keep: Bools = np.asarray(np.isfinite(costs).all(axis=1))
    for column, objective in enumerate(objectives):
        if objective.limit is not None:
            keep &= costs[:, column] <= objective.sign * objective.limit
    return keep


def front_mask(values: Floats, objectives: Sequence[Objective]) -> Bools:
    """(n,) whether a trial is eligible and no eligible trial dominates it; all False
    without objectives.
    """
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


def noisy_front_mask(
    values: Floats,
    objectives: Sequence[Objective],
    column: int,
    low: Floats,
    high: Floats,
) -> Bools:
    """(n,) a front that ignores differences of objective `column` inside its measured noise.

    `low` and `high` (n,) bound that objective's measurements in its unit; NaN where it was
    not measured (its value counts). Trial a beats b where it is not worse in any other
    objective, b's interval does not lie entirely on the better side of a's, and a is better
    in another objective or its interval lies entirely on the better side of b's. The front
    is the one set in which no trial beats another and every eligible trial outside is
    beaten by one inside; it exists and is unique, since with one noisy objective the
    relation has no cycles.
    """
    keep = np.flatnonzero(eligible(values, objectives))
    costs = to_costs(values, objectives)[keep]
    sign, own = objectives[column].sign, costs[:, column]
    ends = sign * np.stack([low, high])[:, keep] if len(keep) else np.empty((2, 0))
    ends = np.where(np.isnan(ends), own, ends)
    best, worst = np.minimum(ends.min(axis=0), own), np.maximum(ends.max(axis=0), own)
    exact = np.delete(costs, column, axis=1)
    inside: list[int] = []
    left = np.lexsort((worst, *exact.T[::-1]))  # whoever beats a trial comes before it
    while len(left):
        i, left = left[0], left[1:]
        inside.append(int(i))
        not_worse = (exact[i] <= exact[left]).all(axis=1) & (best[i] <= worst[left])
        better = (exact[i] < exact[left]).any(axis=1) | (worst[i] < best[left])
        left = left[~(not_worse & better)]
    mask = np.zeros(len(values), dtype=bool)
    mask[keep[inside]] = True
    return mask


def factor_to_front(
    values: Floats, objectives: Sequence[Objective], column: int
) -> Floats:
    """(n,) by what factor a trial's objective `column`, a positive number, would have to be
    better for no eligible trial to dominate it; 1 on the front, inf where it is not eligible.
    """
    keep = np.flatnonzero(eligible(values, objectives))
    costs = to_costs(values, objectives)[keep]
    exact = np.delete(costs, column, axis=1)
    sign, own = objectives[column].sign, np.abs(costs[:, column])
    factors = np.full(len(values), np.inf)
    for i, row in enumerate(keep):
        better = (exact <= exact[i]).all(axis=1) & (costs[:, column] < costs[i, column])
        if not better.any():
            factors[row] = 1.0
            continue
        best = own[better].min() if sign > 0 else own[better].max()
        ratio = own[i] / best if sign > 0 else best / own[i]
        factors[row] = ratio if np.isfinite(ratio) else np.inf
    return factors


def attainment(
    values: Floats,
    sets: Sequence[int],
    objectives: Sequence[Objective],
    levels: Sequence[float] = (0, 50, 100),
) -> dict[float, Floats]:
    """Attainment surfaces over seeds: for each level, in percent, the points that bound
    what so many sets attain.

    Args:
        values: (n, k) the trials of all sets, k 2 or 3.
        sets: (n,) which set (root seed) each trial belongs to.
        levels: 0 is attained by the best set alone, 50 by half of them, 100 by all.

    Returns:
        level → (m, k) points in the metrics' units, best first objective first. Raises
        ValueError for k not 2 or 3.
    """
    if len(objectives) not in (2, 3):
        raise ValueError(
            f"attainment surfaces are drawn of 2 or 3 objectives, got {len(objectives)}"
        )
    keep = eligible(values, objectives)
    if not keep.any():
        return {level: np.empty((0, len(objectives))) for level in levels}
    import moocore

    costs = to_costs(values, objectives)[keep]
    codes = np.unique(np.asarray(sets)[keep], return_inverse=True)[1] + 1
    order = np.argsort(codes, kind="stable")
    surfaces = moocore.eaf(costs[order], sets=codes[order], percentiles=list(levels))
    signs = np.array([objective.sign for objective in objectives])
    found = {}
    for level in levels:
        points = surfaces[surfaces[:, -1] == level][:, :-1]
        found[level] = points[np.lexsort(points.T[::-1])] * signs
    return found


def reference_point(
    values: Floats, objectives: Sequence[Objective], margin: float = 0.1
) -> Floats:
    """(k,) the worst value of the eligible trials, `margin` of their range further out, in
    the metrics' units.

    An objective on which all trials agree moves out by `margin` of its value, or `margin`
    where that is zero. Raises ValueError where no trial is eligible.
    """
    keep = eligible(values, objectives)
    if not keep.any():
        raise ValueError(
            "no complete trial with finite objectives within their bounds: give a"
            " reference point"
        )
    costs = to_costs(values, objectives)[keep]
    worst, span = costs.max(axis=0), np.ptp(costs, axis=0)
    step = np.where(span > 0, span, np.where(worst != 0, np.abs(worst), 1.0))
    return (worst + margin * step) * np.array(
        [objective.sign for objective in objectives]
    )


def check_reference(
    reference: Sequence[float] | Mapping[str, float], objectives: Sequence[Objective]
) -> Floats:
    """(k,) a reference point given in objective order or by metric. Raises ValueError
    unless one finite value each.
    """
    metrics = [objective.metric for objective in objectives]
    if isinstance(reference, Mapping):
        if set(reference) != set(metrics):
            raise ValueError(
                f"reference point must name the objectives {metrics}, got"
                f" {sorted(reference)}"
            )
        reference = [reference[metric] for metric in metrics]
    point = np.asarray(reference, dtype=np.float64)
    if point.shape != (len(metrics),) or not np.isfinite(point).all():
        raise ValueError(
            f"reference point must be one finite number for each of {metrics}, got"
            f" {point.tolist()}"
        )
    return point


def hypervolume(
    values: Floats, objectives: Sequence[Objective], reference: Floats
) -> float:
    """Volume between the eligible trials and `reference` (k,), in the product of the
    metrics' units; 0 for none. Approximate where `is_exact` says so.
    """
    keep = eligible(values, objectives)
    costs = to_costs(values, objectives)[keep]
    point = to_costs(np.asarray(reference, dtype=np.float64)[None], objectives)[0]
    return _volume(costs, point)


def is_exact(points: int, objectives: int) -> bool:
    """Whether the hypervolume of a front of so many points is computed, and not sampled."""
    return objectives <= MOST_EXACT and _exact_work(points, objectives) <= _MOST_WORK


def _exact_work(points: int, objectives: int) -> float:
    return float(points) ** max(objectives - 3, 1)


def _work(points: int, objectives: int) -> float:
    """What a hypervolume takes, about in nanoseconds."""
    if is_exact(points, objectives):
        return _exact_work(points, objectives)
    return 1e7 + 1e5 * points


def _volume(costs: Floats, point: Floats) -> float:
    costs = costs[(costs < point).all(axis=1)]
    if not costs.size:
        return 0.0
    if costs.shape[1] == 1:
        return float(point[0] - costs.min())
    import moocore

    if not is_exact(len(costs), costs.shape[1]):
        costs = costs[_nondominated(costs)]
    if is_exact(len(costs), costs.shape[1]):
        return float(moocore.hypervolume(costs, ref=point))
    # along directions that are spread over all sides of a cube
    sides = point - costs.min(axis=0)
    scaled = (costs - point) / sides
    share = moocore.hv_approx(scaled, ref=np.zeros(len(point)), nsamples=_DIRECTIONS)
    return float(share * np.prod(sides))


def hypervolume_over_time(
    values: Floats, objectives: Sequence[Objective], reference: Floats
) -> Floats:
    """(n,) hypervolume of the first 1 ... n trials, the rows of `values` in the order in
    which they ended.

    Where that would take long, it is computed at some rows, evenly among those at which the front
    changed and the last of these, and stays as it was between them.
    """
    keep = eligible(values, objectives)
    costs = to_costs(values, objectives)
    point = to_costs(np.asarray(reference, dtype=np.float64)[None], objectives)[0]
    archive = np.empty(0, dtype=np.int64)
    fronts: list[tuple[int, np.ndarray]] = []
    for row, cost in enumerate(costs):
        if keep[row] and not (costs[archive] <= cost).all(axis=1).any():
            stays = ~(cost <= costs[archive]).all(axis=1)
            archive = np.append(archive[stays], row)
            fronts.append((row, archive))
    work = sum(_work(len(rows), len(objectives)) for _, rows in fronts)
    step = max(1, math.ceil(work / _MOST_CURVE))
    volumes = np.zeros(len(costs))
    for row, rows in fronts[::-1][::step]:
        volumes[row] = _volume(costs[rows], point)
    # an approximate one may fall by its error
    return np.maximum.accumulate(volumes)


def knee(values: Floats, objectives: Sequence[Objective]) -> int:
    """Row of a front, `values` (n, k), that is farthest from the plane through its ends,
    towards the ideal.

    Objectives are scaled to the front's range first, those to minimise that span decades by their
    logarithm; of equals, the row with the smallest largest sacrifice. Raises ValueError for an
    empty front.
    """
    costs = to_costs(values, objectives)
    if not len(costs):
        raise ValueError("an empty front has no knee")
    for column, objective in enumerate(objectives):
        if objective.mode == "min" and spans_decades(costs[:, column]):
            costs[:, column] = np.log(costs[:, column])
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    # Rounded, so that equals by design are equals despite the last bits.
    return int(
        np.lexsort((scaled.max(axis=1).round(12), scaled.sum(axis=1).round(12)))[0]
    )


def spans_decades(values: Floats) -> bool:
    """Whether finite positive values span so much that a log scale shows them better."""
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() / values.min() >= 30)
