"""The cards of the models that the report offers to ship."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import summary
from analysis.certainty import Change, error_variances, part_of
from analysis.fronts import best_name
from analysis.goal import LEAST_SAID
from analysis.numbers import fixed, plain, plural, points_said
from analysis.report.delivery import get_model
from analysis.report.html import Html, element, join, trial_link
from analysis.report.verdict import (
    MOST_LOSS,
    STEP,
    allowed_loss,
    configuration_of,
    goal_title,
    kept_changes,
    kept_goal,
)
from analysis.run import Run


def picks(run: Run) -> tuple[Html, Html]:
    """The card that stands beside the front, and the others below both."""
    advised = summary.advice(run)
    if not advised:
        return Html(""), Html("")
    known = kept_changes(run)
    met = kept_goal(run)
    shipped = None if met is None else met.row
    cards = [] if shipped is None else [_shipped(run, shipped, known)]
    cards += _within_loss(run, known, first=not cards)
    cards += [
        _pick(run, advice, first=not cards and not i)
        for i, advice in enumerate(advised)
        if advice.row != shipped
    ]
    note = None
    if run.has_replicates:
        note = element(
            "p",
            "Mean ± standard deviation over seeds; the trial is the seed nearest the mean.",
            class_="note",
        )
    others = element("div", *cards[1:], class_="picks") if cards[1:] else None
    return cards[0], join([others, note])


def _shipped(run: Run, row: int, known: Mapping[Any, Change]) -> Html:
    """What the summary says to ship, since it keeps all bounds, and what it is the best of besides.

    Args:
        known: as `kept_changes`.
    """
    title = goal_title(run)
    first = best_name(run.objectives[0])  # which the title says already
    also = [name for name, picked in run.picks().items() if picked == row]
    named = [summary.pick_title(run, name) for name in also if name != first]
    advice = summary.Advice(", ".join([title[0].upper() + title[1:], *named]), row, "")
    return _pick(run, advice, first=True, change=known.get(row))


def _within_loss(run: Run, known: Mapping[Any, Change], first: bool) -> list[Html]:
    """The cheapest member of the front for a loss that the reader sets; a card for each that there
    is, of which one is seen.

    Args:
        known: as `kept_changes`.
        first: whether no card stands before.
    """
    offered, wanted = summary.within_loss(run), summary.kept_and_cost(run)
    if not offered or wanted is None:
        return []
    kept, cost = wanted
    allowed = allowed_loss(run)
    chosen = summary.cheapest_within(offered, allowed) or offered[0]
    points = points_said(allowed)
    cards = []
    for member in offered:
        title = f"Lowest {cost.metric} within {points}"
        if member.loss > allowed:
            title = f"Nearest: more than {points} of {kept.metric} is lost"
        advice = summary.Advice(title, member.row, "")
        cards.append(
            element(
                "div",
                _pick(run, advice, first, change=known.get(member.row)),
                class_="member",
                hidden=None if member == chosen else "",
                data_loss=f"{member.loss:.9g}",
            )
        )
    return [
        element(
            "div",
            _loss_slider(kept.metric, allowed),
            *cards,
            class_="within",
            data_metric=kept.metric,
            data_cost=cost.metric,
        )
    ]


def _loss_slider(metric: str, allowed: float) -> Html:
    """What the reader sets the loss with; hidden until the page's script shows it."""
    return element(
        "label",
        "Lose at most ",
        element(
            "input",
            type="range",
            id="loss",
            min="0",
            max=f"{MOST_LOSS}",
            step=f"{STEP}",
            value=f"{100 * allowed:g}",
            aria_label=f"points of {metric} that may be lost",
        ),
        element("output", points_said(allowed), id="loss-shown", for_="loss"),
        class_="loss",
        hidden="",
    )


def _pick(
    run: Run, advice: summary.Advice, first: bool, change: Change | None = None
) -> Html:
    """The card of a picked trial; `change` is how it differs in the metric that is kept."""
    row = configuration_of(run, advice.row)
    trial_id = str(row["trial_id"])
    figures = [
        element(
            "div",
            element(
                "dt",
                name,
                _measured_on(run, name),
                title=run.metrics.of(name).description or None,
            ),
            element("dd", text),
        )
        for name, text in summary.figures_of(run, row)
    ]
    return element(
        "article",
        element(
            "header",
            element("h3", advice.title),
            trial_link(trial_id, f"trial {trial_id}"),
        ),
        element("dl", *figures),
        _against(run, row),
        element("p", _pick_note(run, advice), class_="note"),
        _loss_sureness(run, change),
        _sureness(run, advice.row, with_error=change is None) if first else None,
        element("p", _parameters(run, row), class_="config"),
        get_model(run, row, is_open=first),
        class_="pick first" if first else "pick",
    )


def _against(run: Run, row: pd.Series) -> Html | None:
    """What the configuration gains and costs beside the baseline."""
    text = summary.beside_baseline(run, row, with_parts=True)
    if run.baseline is None or not text:
        return None
    return element("p", f"{text} against {run.baseline.name}.", class_="against")


def _measured_on(run: Run, name: str) -> Html | None:
    """The part on which a figure was measured."""
    part = part_of(name, run.classes)
    if part is None:
        return None
    return element("small", f" {part.name}, {plural(part.images, 'image')}")


def _loss_sureness(run: Run, change: Change | None) -> Html | None:
    """How sure the loss beside the baseline is; the page writes the chance for another limit."""
    if change is None or run.baseline is None or not change.variance > 0:
        return None
    limits = np.arange(0, MOST_LOSS + STEP / 2, STEP) / 100
    chances = [summary.chance_text(float(p)) for p in change.kept(limits)]
    allowed = allowed_loss(run)
    mine = chances[round(100 * allowed / STEP)]
    ends = f"{summary.points(change.low)} to {summary.points(change.high)} points"
    luck = None
    if change.flattery >= LEAST_SAID:
        luck = (
            f" About {fixed(100 * change.flattery, 1)} points are left out here as luck: these"
            " images chose it among several."
        )
    return element(
        "p",
        f"Its true difference from {run.baseline.name}: {ends} (95 %, the latter taken as"
        " measured). A loss of at most ",
        element("span", points_said(allowed), class_="limit"),
        " has a probability of ",
        element("b", mine, class_="chance"),
        ".",
        luck,
        class_="note",
        data_chances=",".join(chances),
    )


def _sureness(run: Run, row: int, with_error: bool) -> Html | None:
    """What the chance means; with the error of a configuration's uncertain objectives."""
    if not run.is_noisy:
        return None
    rows = run.configurations()
    variances = error_variances(rows, run.objectives, run.classes)[0]
    mine = variances[rows.index.get_loc(row)]
    half = [
        summary.sure_to(run.metrics.of(o.metric), 1.96 * float(variance) ** 0.5)
        for o, variance in zip(run.objectives, mine, strict=True)
        if variance > 0
    ]
    text = f"Sure to {', '.join(half)} (95 %). " if half and with_error else ""
    text += (
        f"“{summary.CHANCE}”: how likely no other is better in all, given such errors."
    )
    return element("p", text, class_="note")


def _pick_note(run: Run, advice: summary.Advice) -> str:
    if len(run.objectives) == 1 or not advice.text:
        return ""
    if "best compromise" in advice.title:
        return "Farthest from the line between the front's ends."
    return f"{advice.text} beside the best compromise."


def _parameters(run: Run, row: pd.Series) -> Html:
    """The parameters that a configuration has, with their values."""
    values = [(name, row.get(f"config/{name}")) for name in run.parameters]
    shown = [
        join([name, " ", element("b", plain(value))])
        for name, value in values
        if value is not None and pd.notna(value)
    ]
    return join(shown, ", ")
