"""Whether one choice beats another, drawn: differences or ratios with their intervals, and a
verdict.
"""

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
_CLASSES = {
    "better": "good",
    "worse": "bad",
    "not distinguishable": "none",
    "cannot be judged": "none",
}


class Line(NamedTuple):
    """One difference of a less b, or ratio of a over b.

    Attributes:
        what: a metric, or `FRONT` for the share of the space that the front dominates.
        unit: of mean, low and high, in which they are shown.
        rests_on: what it was compared over, in words.
        low, high: ends of the 95 % interval, as wide as can be where there is none.
        is_ratio: whether 1 stands for no difference, not 0.
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
    is_ratio: bool = False

    @property
    def places(self) -> tuple[float, float, float]:
        """Mean, low and high where they are drawn: ratios by their logarithms."""
        ends = self.mean, self.low, self.high
        if not self.is_ratio:
            return ends
        with np.errstate(divide="ignore"):
            mean, low, high = map(float, np.log(ends))
        return mean, low, high


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
        "The difference of the first less the second, and of sizes and times the ratio of the"
        " first to the second (0.5 × is half as large), with its 95 % interval; where that holds 0"
        " (of a ratio 1), they are not distinguishable. A metric is compared over pairs of trials"
        " that differ in this choice alone, so there may be none."
        " “Front” is the share of the space between the best values and the reference point that"
        " the front of each dominates, compared seed by seed where both have as many"
        " configurations: what was tried more often had more chances."
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
        seeds = f"{plural(len(common), 'pair')} of seeds"
        if a.configurations == b.configurations:
            seeds += f", {plural(a.configurations, 'configuration')} each"
        else:  # the share grows with what was tried, so seeds are no pairs
            low, high = -math.inf, math.inf
            seeds = f"{number(a.configurations)} and {number(b.configurations)} configurations"
            seeds += ": not equally many"
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
        scale = 100.0 if unit == "fraction" and not difference.is_ratio else 1.0
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
                difference.is_ratio,
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
            element("th", "In", class_="what"),
            heads(["Difference or ratio", "95 % interval"]),
            element("td", class_="wide"),
            element("th", "Verdict"),
            element("th", "Over"),
        ]
    )
    rows = [_row(line, reach[line.what]) for line in lines]
    title = None if is_only else element("h3", name)
    return join([title, table(head, rows)])


def _ends(line: Line) -> float:
    """How far a line reaches from no difference."""
    return max(abs(v) for v in line.places if math.isfinite(v))


def _row(line: Line, reach: float) -> Html:
    unit = "" if line.unit in ("", "1") else f" {line.unit}"
    write = _times if line.is_ratio else _signed
    unit = " ×" if line.is_ratio else unit
    ends = MISSING
    if line.verdict != "cannot be judged":
        ends = f"{write(line.low)} to {write(line.high)}"
    badge = element("span", line.verdict, class_=f"verdict-{_CLASSES[line.verdict]}")
    against = join([element("b", line.a), " against ", element("b", line.b)])
    return element(
        "tr",
        element("th", against, scope="row", data_what=line.what),
        element("td", line.what, class_="what"),
        element("td", f"{write(line.mean)}{unit}", class_="n"),
        element("td", ends, class_="n"),
        element("td", _picture(line, reach), class_="wide"),
        element("td", badge),
        element("td", line.rests_on, class_="note"),
    )


def _signed(value: float) -> str:
    return (
        f"{'+' if value > 0 else '−' if value < 0 else ''}{significant(abs(value), 3)}"
    )


def _times(ratio: float) -> str:
    """A ratio as the page states it; one beyond all numbers is no more than large."""
    return significant(ratio, 3) if math.isfinite(ratio) else "any"


def _picture(line: Line, reach: float) -> Html:
    """The interval around its mean, and where no difference is."""

    def place(value: float) -> str:
        share = value / reach if reach else 0.0
        return number(round(_WIDTH / 2 + 0.46 * _WIDTH * min(max(share, -1), 1), 1))

    middle = str(_HEIGHT // 2)
    mean, low, high = line.places
    parts = [
        element(
            "line", x1=place(0), x2=place(0), y1="0", y2=str(_HEIGHT), class_="zero"
        )
    ]
    if line.verdict != "cannot be judged":
        ends = {"x1": place(low), "x2": place(high)}
        parts.append(element("line", y1=middle, y2=middle, class_="span", **ends))
    parts.append(element("circle", cx=place(mean), cy=middle, r="5"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_=f"interval {_CLASSES[line.verdict]}",
        aria_hidden="true",
    )
