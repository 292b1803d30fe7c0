"""What the report says first: which trial to ship, or why there is none."""

from __future__ import annotations

import math
import shlex
from typing import Any

import numpy as np
import pandas as pd

from analysis import goal, summary
from analysis.certainty import Change, changes, part_of
from analysis.numbers import number, points_said, quantity, significant
from analysis.report.html import Html, element, join, trial_link
from analysis.run import Run
from analysis.tables.frames import as_float

LOSS = 0.01
"""Loss beside the baseline, a share, that the first card allows until the reader sets another,
where the spec does not say how much may be lost.
"""
STEP, MOST_LOSS = 0.25, 10
"""Points between two places of the slider, and at its end."""


def allowed_loss(run: Run) -> float:
    """What the first card allows at first: what the spec allows of the metric that is kept, to a
    place of the slider, else `LOSS`.
    """
    wanted, given = summary.kept_and_cost(run), run.spec.get("objectives")
    if wanted is None or not isinstance(given, list):
        return LOSS
    for item in given:
        bound = item.get("bound") if isinstance(item, dict) else None
        if not isinstance(bound, dict) or item.get("metric") != wanted[0].metric:
            continue
        loss = as_float(bound.get("loss"))
        if loss is not None and not bound.get("relative"):
            places = round(100 * loss / STEP) if math.isfinite(loss) else 0
            return places * STEP / 100 if 0 < places * STEP <= MOST_LOSS else LOSS
    return LOSS


def verdict(run: Run) -> Html | None:
    """Which trial to ship: where every objective has a bound the one that loses least within all,
    else the cheapest that loses little beside the baseline, else the best compromise; and what
    another of these gives.
    """
    advised = summary.advice(run)
    if not advised:
        return _without_front(run)
    met = kept_goal(run)
    if met is not None:
        return _of_goal(run, met)
    offered, wanted = summary.within_loss(run), summary.kept_and_cost(run)
    if not offered or wanted is None:
        return join(["Ship ", _named(run, advised[0].row), f": {advised[0].text}."])
    kept, cost = wanted
    allowed = allowed_loss(run)
    chosen = summary.cheapest_within(offered, allowed)
    lost = f"{points_said(allowed)} of {kept.metric}"
    if chosen is None:
        said = [f"No trial of the front is within {lost} of the baseline; nearest is "]
        said += [_named(run, offered[0].row), f": {_gain(run, offered[0].row)}."]
        return join(said)
    said = [
        "Ship ",
        _named(run, chosen.row),
        ", the lowest ",
        f"{cost.metric} within {lost}",
    ]
    gain = summary.beside_baseline(run, configuration_of(run, chosen.row), True)
    said += [f" of the baseline: {gain}.", _sure(run, chosen.row)]
    if advised[0].row != chosen.row:
        said += [" Where more may be lost, the best compromise is "]
        said += [_named(run, advised[0].row), f": {_gain(run, advised[0].row)}."]
    return join(said)


def kept_goal(run: Run) -> goal.Pick | None:
    """What loses least within all bounds, where every objective has one and all are kept."""
    if run.baseline is None or not goal.is_bounded(run):
        return None
    met = goal.pick(run)
    return met if met is not None and met.is_within else None


def goal_title(run: Run) -> str:
    """What is best of all that keeps every bound: 'highest accuracy within all bounds'."""
    first = run.objectives[0]
    best = "highest" if first.mode == "max" else "lowest"
    return f"{best} {first.metric} within all bounds"


def _of_goal(run: Run, met: goal.Pick) -> Html:
    """What keeps all bounds, and the cheapest that loses little where that is another one."""
    gain = summary.beside_baseline(run, configuration_of(run, met.row), True)
    said = [
        "Ship ",
        _named(run, met.row),
        f", the {goal_title(run)}: {gain}.",
        f" Chance that it keeps them: {summary.chance_text(met.probability)}.",
    ]
    wanted, allowed = summary.kept_and_cost(run), allowed_loss(run)
    cheapest = summary.cheapest_within(summary.within_loss(run), allowed)
    if wanted is not None and cheapest is not None and cheapest.row != met.row:
        kept, cost = wanted
        lost = f"{points_said(allowed)} of {kept.metric}"
        said += [f" The lowest {cost.metric} within {lost} is "]
        said += [_named(run, cheapest.row), f": {_gain(run, cheapest.row)}."]
    return join(said)


def kept_changes(run: Run) -> dict[Any, Change]:
    """How each configuration's kept metric (see `summary.kept_and_cost`) differs from the
    baseline's, of which the measured value is taken as it is.
    """
    wanted = summary.kept_and_cost(run)
    if wanted is None or run.baseline is None:
        return {}
    before = run.baseline.metrics[wanted[0].metric]
    rows, metric = run.configurations(), wanted[0].metric
    paired = run.paired_errors(rows, [metric])
    return changes(rows, wanted[0], run.classes, before, paired)


_FEW_IMAGES = 10
"""A point that is fewer images of a part is said to be few."""


def _sure(run: Run, row: int) -> str:
    """How likely the loss is within the limit, and what a point is where it is few images."""
    found = kept_changes(run).get(row)
    if found is None or not found.variance > 0:
        return ""
    allowed = allowed_loss(run)
    chance = summary.chance_text(float(found.kept(np.array([allowed]))[0]))
    wanted = summary.kept_and_cost(run)
    part = part_of(wanted[0].metric, run.classes) if wanted else None
    few = ""
    if part is not None and part.images * allowed < _FEW_IMAGES:
        few = f" ({significant(part.images * allowed, 2)} images)"
    return f" Chance of losing at most {points_said(allowed)}{few}: {chance}."


def _without_front(run: Run) -> Html:
    """Why there is nothing to ship yet, and what to look at."""
    status = run.status_counts()
    complete = len(run.complete())
    place = str(run.path)
    if complete and run.objectives:
        kept = ", ".join(_keeping(run))
        return join([f"No trial is within all bounds: {kept}."])
    if not complete and status.get("running"):
        command = element("code", f"sweeps status {shlex.quote(place)} --watch")
        return join(["No trial is complete yet; ", command, " shows what runs."])
    if status.get("failed"):
        return join(["No trial is complete; what ended them stands under Failures."])
    return join(["No trial is complete, so there is nothing to compare."])


def _keeping(run: Run) -> list[str]:
    """For each objective how many complete trials have a value, and keep its bound."""
    values = run.values(run.complete())
    found = []
    for objective, column in zip(run.objectives, values.T, strict=True):
        known = column[np.isfinite(column)]
        keeping = sum(objective.excess(float(value)) <= 0 for value in known)
        unit = run.metrics.unit(objective.metric)
        limit = objective.limit
        if limit is None or np.isnan(limit):
            said = (
                f"{number(len(known))} of {number(len(column))} have {objective.metric}"
            )
        else:
            sign = "≤" if objective.mode == "min" else "≥"
            bound = f"{objective.metric} {sign} {quantity(limit, unit)}"
            best = known.min() if objective.mode == "min" else known.max()
            said = f"{number(keeping)} of {number(len(column))} keep {bound}"
            said += f" (best {quantity(float(best), unit)})" if len(known) else ""
        found.append(said)
    return found


def _named(run: Run, row: int) -> Html:
    trial_id = str(run.trials["trial_id"].iloc[row])
    return trial_link(trial_id, f"trial {trial_id}")


def _gain(run: Run, row: int) -> str:
    return summary.beside_baseline(run, configuration_of(run, row))


def configuration_of(run: Run, row: int) -> pd.Series:
    """The configuration for which the trial in a row of `trials` stands."""
    rows = run.configurations()
    return rows.loc[rows.index == row].iloc[0]
