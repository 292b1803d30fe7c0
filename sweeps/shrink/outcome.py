"""What a search came to: what to deploy, how sure that is, and what more would cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.certainty import CERTAIN, bounds_probability
from analysis.configurations import objective_values
from analysis.contract import Objective, RelativeBound
from analysis.goal import LEAST_SAID, Pick, open_objective, relative_metrics
from analysis.metrics import on_test_set
from analysis.numbers import fixed, number, percent, quantity
from analysis.pareto import front_mask
from analysis.run import Run

STEPS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
"""Losses, as shares, whose price is told."""


def verdict(run: Run, chosen: Pick) -> str:
    """Whether the goal is met, and by which trial; of a goal without a bound, what was found."""
    trial, free = f"trial {chosen.trial_id}", open_objective(run)
    more, most = ("faster", "fastest") if _is_time(free) else ("smaller", "smallest")
    sure = _with(chosen.probability)
    if free is None:
        if not chosen.is_within:
            return f"the goal is not met; the nearest is {trial}"
        met = f"the goal is met by {trial}"
        return met if chosen.is_certain else f"{met}, {sure}"
    if not chosen.is_within:
        lost = "no candidate that loses no more than allowed is"
        return f"{lost} {more} than the source; the nearest is {trial}"
    found = f"the {most} that was found is {trial}"
    allowed = f"which loses no more than allowed {sure}"
    return found if chosen.is_certain else f"{found}, {allowed}"


def _is_time(objective: Objective | None) -> bool:
    return objective is not None and objective.metric == "latency_ms"


def figures(run: Run, pick: Pick) -> list[str]:
    """A line for each objective: the source's value, the pick's, the bound."""
    lines = []
    for objective in run.objectives:
        metric = objective.metric
        unit = run.metrics.unit(metric)
        value = _value(run, pick, metric)
        now = quantity(value, unit)
        parts = [now]
        if run.baseline is not None and metric in run.baseline.metrics:
            before = quantity(run.baseline.metrics[metric], unit)
            parts = [f"{before} -> {now}"]
            if unit != "fraction" and run.baseline.metrics[metric] > 0:
                parts = [f"{parts[0]} ({value / run.baseline.metrics[metric]:.2g}x)"]
        if objective.limit is not None:
            word = "at most" if objective.mode == "min" else "at least"
            keeps = objective.excess(value) <= 0
            limit = f"goal {word} {quantity(objective.limit, unit)}"
            parts.append(limit if keeps else f"{limit}: missed")
        lines.append(f"{metric}: {', '.join(parts)}")
    if pick.flattery >= LEAST_SAID:
        lines.append(
            f"of its {run.objectives[0].metric} about {fixed(100 * pick.flattery, 1)} points are"
            " luck: these images chose it among several; the probability leaves them out"
        )
    return lines


def on_test(run: Run, pick: Pick) -> str | None:
    """The pick and the source on the test part, and whether what may be lost is kept there, in a
    line; None where that was not measured.
    """
    objective = run.objectives[0]
    metric = objective.metric
    name = on_test_set(metric)
    value, baseline = _value(run, pick, name), run.baseline
    if not math.isfinite(value) or baseline is None:
        return None
    before, unit = baseline.metrics.get(name), run.metrics.unit(name)
    if before is None:
        return None
    said = f"test part: {quantity(before, unit)} -> {quantity(value, unit)}"
    images = _images(run, pick)
    if images is not None:
        said += f" ({number(images)} images, looked at once)"
    if objective.bound is None:
        return said
    tested = replace(objective, metric=name, bound=_limit_beside(run, before))
    row = run.configurations().loc[[pick.row]]
    paired = {}
    if metric in relative_metrics(run.spec):
        paired = run.paired_errors(row, [name])
    chance = float(bounds_probability(row, [tested], run.classes, paired)[0])
    word = "at most" if objective.mode == "min" else "at least"
    goal = f"goal {word} {quantity(tested.limit, unit)}"
    return f"{said}, {goal}: {_confirmation(tested.excess(value) <= 0, chance)}"


def _limit_beside(run: Run, before: float) -> float:
    """The first objective's bound where the source has `before`."""
    bound, mode = run.spec["objectives"][0]["bound"], run.objectives[0].mode
    if isinstance(bound, int | float):
        return float(bound)
    return RelativeBound(**bound).limit(mode, before)


def _confirmation(is_kept: bool, chance: float) -> str:
    """Whether the test part confirms that no more is lost than allowed.

    Args:
        is_kept: as measured there.
        chance: the probability that the true value keeps the bound.
    """
    if is_kept:
        sure = "confirmed"
        return sure if chance >= CERTAIN else f"kept, {_with(chance)}"
    return "refuted" if chance <= 1 - CERTAIN else f"missed; kept {_with(chance)}"


def _with(chance: float) -> str:
    return f"with a probability of {percent(chance, 0)}"


def _value(run: Run, pick: Pick, metric: str) -> float:
    """Of the trial that stands for the pick; NaN where it was not measured."""
    found: Any = run.trials.loc[pick.row].get(f"metric/{metric}", math.nan)
    return math.nan if pd.isna(found) else float(found)


def _images(run: Run, pick: Pick) -> int | None:
    if run.classes.empty or "test_images" not in run.classes:
        return None
    mine = run.classes[run.classes["trial_id"] == pick.trial_id]["test_images"]
    return int(mine.sum()) or None


def prices(run: Run) -> list[str]:
    """What each further percent of loss would buy, of what was found: a line a step.

    Only for a metric that is a share, with a measured source.
    """
    rows, objectives, baseline = run.configurations(), run.objectives, run.baseline
    metric = objectives[0].metric
    if rows.empty or baseline is None or metric not in baseline.metrics:
        return []
    if run.metrics.unit(metric) != "fraction" or len(objectives) < 2:
        return []
    cost = next((o for o in objectives[1:] if o.bound is not None), objectives[1])
    values = objective_values(rows, [objectives[0], cost])
    lost = objectives[0].sign * (values[:, 0] - baseline.metrics[metric])
    lines, before = [], None
    for step in STEPS:
        allowed = lost <= step + 1e-12
        if not allowed.any():
            continue
        costs = np.where(allowed, cost.sign * values[:, 1], np.inf)
        best = int(costs.argmin())
        if best == before:
            continue
        before = best
        shown = quantity(float(values[best, 1]), run.metrics.unit(cost.metric))
        word = "gains" if lost[best] < 0 else "loses"
        lines.append(
            f"losing {percent(step)} at most: {cost.metric} {shown}"
            f" (trial {rows['trial_id'].iloc[best]}, {word}"
            f" {fixed(100 * abs(float(lost[best])), 2)} points)"
        )
    return lines


def found_front(run: Run) -> pd.DataFrame:
    """The configurations that no other dominates, whatever the bounds are."""
    rows = run.configurations()
    free = [replace(objective, bound=None) for objective in run.objectives]
    if rows.empty:
        return rows
    front = rows[front_mask(objective_values(rows, free), free)]
    columns = ["trial_id", *(f"metric/{o.metric}" for o in run.objectives)]
    columns += [f"config/{p}" for p in run.parameters if f"config/{p}" in front]
    return front[columns].sort_values(columns[1], ascending=False)
