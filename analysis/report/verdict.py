"""What the report says first: which trial to ship, or why there is none."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd

from analysis import summary
from analysis.numbers import fixed, number, quantity
from analysis.report.html import Html, element, join, trial_link
from analysis.run import Run

LOSS = 0.01
"""Loss beside the baseline, a share, that the first card allows until the reader sets another."""


def verdict(run: Run) -> Html | None:
    """Which trial to ship: the cheapest that loses little beside the baseline, else the best
    compromise; and what the best compromise gives where that is another one.
    """
    advised = summary.advice(run)
    if not advised:
        return _without_front(run)
    offered, wanted = summary.within_loss(run), summary.kept_and_cost(run)
    if not offered or wanted is None:
        return join(["Ship ", _named(run, advised[0].row), f": {advised[0].text}."])
    kept, cost = wanted
    chosen = summary.cheapest_within(offered, LOSS)
    lost = f"{fixed(100 * LOSS, 0)} point of {kept.metric}"
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
    said.append(f" of the baseline: {_gain(run, chosen.row)}.")
    if advised[0].row != chosen.row:
        said += [" Where more may be lost, the best compromise is "]
        said += [_named(run, advised[0].row), f": {_gain(run, advised[0].row)}."]
    return join(said)


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
