"""Whether one choice beats another, drawn: differences with their intervals, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis.comparison import Comparison, Group, compare_groups
from analysis.configurations import is_numeric
from analysis.differences import Verdict, compare, interval, verdict_of
from analysis.numbers import MISSING, number, plural, significant
from analysis.report.columns import compared_parameters
from analysis.report.html import Html, card, element, heads, join, table
from analysis.run import Run

MOST_PARAMETERS = 4
"""Choices that are compared."""
MOST_VALUES = 4
"""Values of a choice that are compared, those whose front dominates most."""
FRONT = "front"
NO_VALUE = "not set"
_WIDTH, _HEIGHT = 200, 22
_CLASSES = {"better": "good", "worse": "bad", "not distinguishable": "none"}


class Line(NamedTuple):
    """One difference of a less b.

    Attributes:
        what: a metric, or `FRONT` for the share of the space that the front dominates.
        unit: of mean, low and high, in which they are shown.
        rests_on: what it was compared over, in words.
        low, high: ends of the 95 % interval, infinite where there is none.
    """

    a: str
    b: str
    what: str
    unit: str
    rests_on: str
    mean: float
    low: float
    high: float
    verdict: Verdict


def versus_section(run: Run, found: Comparison | None) -> Html:
    """The best value of each choice against the others; empty where there is no choice."""
    choices = [found.by] if found else _choices(run)
    bodies = []
    for name in choices[:MOST_PARAMETERS]:
        lines = _lines(run, name, found)
        if lines:
            bodies.append(_table(name, lines, is_only=len(choices) == 1))
    if not bodies:
        return Html("")
    note = (
        "The difference of the first less the second, with its 95 % interval; where that holds 0,"
        " they are not distinguishable. “Front” is the share of the space between the best"
        " values and the reference point that the front of each dominates, compared seed by seed:"
        " what was tried more often had more chances."
        " A metric is compared over pairs of trials that differ in this choice alone, so there may"
        " be none."
    )
    title = "Does one choice beat another?"
    return card("versus", title, note, *bodies, nav="A or B")


def _choices(run: Run) -> list[str]:
    """Searched parameters of words, with a few values."""
    return [
        name
        for name in compared_parameters(run)
        if not is_numeric(run.trials[f"config/{name}"])
    ]


def _lines(run: Run, name: str, found: Comparison | None) -> list[Line]:
    """The differences of the first group of a choice and each other one."""
    try:
        groups = (found or compare_groups(run, name)).groups
    except ValueError:  # no trial is eligible
        return []
    if found is None:  # a trial without the parameter made another choice above it
        groups = [group for group in groups if group.name != NO_VALUE]
    groups = groups[:MOST_VALUES]
    lines = []
    for other in groups[1:]:
        lines += _pair(run, name, groups[0], other)
    return lines


def _pair(run: Run, name: str, a: Group, b: Group) -> list[Line]:
    common = sorted(a.by_seed.keys() & b.by_seed.keys())
    shares = np.array([100 * (a.by_seed[seed] - b.by_seed[seed]) for seed in common])
    mean, low, high = interval(shares)
    lines = []
    if len(common):
        seeds = (
            f"{plural(len(common), 'seed')}; {number(a.configurations)} and"
            f" {plural(b.configurations, 'configuration')}"
        )
        verdict = verdict_of(low, high, -1.0)
        lines.append(
            Line(a.name, b.name, FRONT, "points", seeds, mean, low, high, verdict)
        )
    texts = run.trials[f"config/{name}"].astype("string").fillna(NO_VALUE)
    sides = [replace(run, trials=run.trials[texts == g.name]) for g in (a, b)]
    for difference in compare(sides[0], sides[1]):
        if not difference.n:
            continue
        unit = run.metrics.unit(difference.metric)
        scale = 100.0 if unit == "fraction" else 1.0
        lines.append(
            Line(
                a.name,
                b.name,
                difference.metric,
                "points" if unit == "fraction" else unit,
                f"{plural(difference.n, 'pair')} of {difference.pairs}",
                scale * difference.mean,
                scale * difference.low,
                scale * difference.high,
                difference.verdict,
            )
        )
    return lines


def _table(name: str, lines: Sequence[Line], is_only: bool) -> Html:
    reach = {
        what: max(_ends(line) for line in lines if line.what == what)
        for what in {line.what for line in lines}
    }
    head = join(
        [
            element("th", name),
            element("th", "In"),
            heads(["Difference", "95 % interval"]),
            element("td", class_="wide"),
            element("th", "Verdict"),
            element("th", "Over"),
        ]
    )
    rows = [_row(line, reach[line.what]) for line in lines]
    title = None if is_only else element("h3", name)
    return join([title, table(head, rows)])


def _ends(line: Line) -> float:
    """How far a line reaches from 0."""
    return max(abs(v) for v in (line.mean, line.low, line.high) if math.isfinite(v))


def _row(line: Line, reach: float) -> Html:
    unit = "" if line.unit in ("", "1") else f" {line.unit}"
    ends = MISSING
    if math.isfinite(line.low):
        ends = f"{_signed(line.low)} to {_signed(line.high)}"
    badge = element("span", line.verdict, class_=f"verdict-{_CLASSES[line.verdict]}")
    against = join([element("b", line.a), " against ", element("b", line.b)])
    return element(
        "tr",
        element("th", against, scope="row"),
        element("td", line.what),
        element("td", f"{_signed(line.mean)}{unit}", class_="n"),
        element("td", ends, class_="n"),
        element("td", _picture(line, reach), class_="wide"),
        element("td", badge),
        element("td", line.rests_on, class_="note"),
    )


def _signed(value: float) -> str:
    return (
        f"{'+' if value > 0 else '−' if value < 0 else ''}{significant(abs(value), 3)}"
    )


def _picture(line: Line, reach: float) -> Html:
    """The interval around its mean, and where no difference is."""

    def place(value: float) -> str:
        share = value / reach if reach else 0.0
        return number(round(_WIDTH / 2 + 0.46 * _WIDTH * min(max(share, -1), 1), 1))

    middle = str(_HEIGHT // 2)
    parts = [
        element(
            "line", x1=place(0), x2=place(0), y1="0", y2=str(_HEIGHT), class_="zero"
        )
    ]
    if math.isfinite(line.low):
        ends = {"x1": place(line.low), "x2": place(line.high)}
        parts.append(element("line", y1=middle, y2=middle, class_="span", **ends))
    parts.append(element("circle", cx=place(line.mean), cy=middle, r="5"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_=f"interval {_CLASSES[line.verdict]}",
        aria_hidden="true",
    )
