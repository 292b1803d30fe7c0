"""The ranks that lose least under a budget, over all layers together.

Legend
    option      a rank of a layer, or the layer as it is: what it costs, what it loses
    hull        the options of a layer on the lower convex hull of (cost, loss)

Whatever minimises loss + λ · cost over all layers has the least loss of all choices that cost as
much or less. On the hulls these minima lie one step after another, the cheapest loss for each
cost saved first, so that a greedy walk visits them all. Where the walk ends below the budget,
what is left is spent on what gains most for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_ROUNDING = 1e-9
"""Part of a budget by which sums of costs may exceed it."""


class Option(NamedTuple):
    """One way to have a layer.

    Attributes:
        rank: None leaves the layer as it is.
        cost: in any unit, the same for all layers.
        loss: at least 0.
    """

    rank: int | None
    cost: float
    loss: float


def rank_options(
    energies: Sequence[float],
    *,
    cost_of: Callable[[int], float],
    cost_as_is: float,
    multiple: int = 1,
) -> list[Option]:
    """What a layer may become; ranks that save nothing are left out.

    Args:
        energies: of its directions, descending.
        cost_of: rank → what the layer then costs.
        cost_as_is: what the layer costs.
        multiple: ranks are multiples of it.
    """
    total = sum(energies) or 1.0
    left = [0.0]
    for energy in reversed(energies):
        left.append(left[-1] + energy)
    left.reverse()
    options = [
        Option(rank, cost, left[rank] / total)
        for rank in range(multiple, len(energies), multiple)
        if (cost := cost_of(rank)) < cost_as_is
    ]
    return [*options, Option(None, cost_as_is, 0.0)]


def choose(
    layers: Mapping[str, Sequence[Option]], budget: float
) -> dict[str, Option] | None:
    """One option for each layer, together within the budget; None where the cheapest are not."""
    hulls = {name: hull(options) for name, options in layers.items()}
    at = {name: len(points) - 1 for name, points in hulls.items()}
    budget *= 1 + _ROUNDING
    cost = sum(points[-1].cost for points in hulls.values())
    steps = sorted(
        (_slope(points[i - 1], points[i]), name)
        for name, points in hulls.items()
        for i in range(1, len(points))
    )
    for (
        _,
        name,
    ) in steps:  # the slopes of one hull rise on the way down: its order is kept
        if cost <= budget:
            break
        points, i = hulls[name], at[name]
        cost -= points[i].cost - points[i - 1].cost
        at[name] = i - 1
    if cost > budget:
        return None
    chosen = {name: hulls[name][i] for name, i in at.items()}
    return _spent(chosen, layers, budget - cost)


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, by ascending cost and descending loss."""
    points: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.loss)):
        if points and option.loss >= points[-1].loss:
            continue
        while len(points) > 1 and _slope(points[-2], points[-1]) <= _slope(
            points[-1], option
        ):
            points.pop()
        points.append(option)
    return points


def _slope(cheap: Option, dear: Option) -> float:
    """What the cheaper option loses for each cost that it saves."""
    return (cheap.loss - dear.loss) / (dear.cost - cheap.cost)


def _spent(
    chosen: dict[str, Option], layers: Mapping[str, Sequence[Option]], slack: float
) -> dict[str, Option]:
    """The same with what is left of the budget spent, the largest gain for its cost first."""
    chosen = dict(chosen)
    while True:
        better = [
            (_slope(chosen[name], option), name, option)
            for name, options in layers.items()
            for option in options
            if 0 < option.cost - chosen[name].cost <= slack
            and option.loss < chosen[name].loss
        ]
        if not better:
            return chosen
        _, name, option = max(better, key=lambda each: each[:2])
        slack -= option.cost - chosen[name].cost
        chosen[name] = option
