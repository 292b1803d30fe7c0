"""The front as a picture in the page itself, for readers without JavaScript."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from analysis import pareto
from analysis.contract import Objective
from analysis.numbers import label, number
from analysis.report.html import Html, element, join
from analysis.run import Run

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 16, 52
_TICKS = 6


def front_picture(run: Run) -> Html:
    """Complete configurations by the first two objectives, those on the front filled, the baseline
    as a star; nothing where there are fewer than two objectives or no configuration.
    """
    rows = run.configurations()
    if len(run.objectives) < 2 or rows.empty:
        return Html("")
    y, x = run.objectives[:2]
    values = rows[[f"metric/{x.metric}", f"metric/{y.metric}"]].to_numpy(float)
    base = None
    if run.baseline is not None:
        known = run.baseline.metrics
        if x.metric in known and y.metric in known:
            base = (known[x.metric], known[y.metric])
    seen = values[np.isfinite(values).all(axis=1)]
    if not len(seen):
        return Html("")
    everything = np.vstack([seen, [base]]) if base is not None else seen
    across, low = _scale(everything[:, 0], LEFT, WIDTH - RIGHT)
    up, left = _scale(everything[:, 1], HEIGHT - BOTTOM, TOP)
    on_front = set(run.front().index)
    marks = [
        element(
            "circle",
            element("title", f"trial {trial}"),
            cx=f"{across(px):.1f}",
            cy=f"{up(py):.1f}",
            r="5" if row in on_front else "3.5",
            class_="still-front" if row in on_front else "still",
        )
        for row, trial, (px, py) in zip(
            rows.index, rows["trial_id"], values, strict=True
        )
        if math.isfinite(px) and math.isfinite(py)
    ]
    if base is not None:
        at = {"x": f"{across(base[0]):.1f}", "y": f"{up(base[1]) + 7:.1f}"}
        star = element("text", "★", class_="still-star", text_anchor="middle", **at)
        marks.append(star)
    return element(
        "svg",
        join(_axis(run, x, low, across, is_below=True)),
        join(_axis(run, y, left, up, is_below=False)),
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{y.metric} against {x.metric} of the complete configurations",
        class_="still",
    )


def _scale(
    values: np.ndarray, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value lies between two places, by its logarithm where the values span decades; and
    round values to write beside the axis.
    """
    is_log = pareto.spans_decades(values)
    least, most = float(values.min()), float(values.max())

    def part(value: float) -> float:
        return math.log(value) if is_log else value

    room = 0.06 * (part(most) - part(least)) or 0.5 * abs(part(most)) or 1.0
    low, high = part(least) - room, part(most) + room

    def place(value: float) -> float:
        return start + (end - start) * (part(value) - low) / (high - low)

    if is_log:
        exponents = range(
            math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1
        )
        return place, [10.0**exponent for exponent in exponents]
    return place, _round_values(low, high)


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _axis(
    run: Run,
    objective: Objective,
    ticks: Sequence[float],
    place: Callable[[float], float],
    is_below: bool,
) -> list[Html]:
    unit = run.metrics.unit(objective.metric)
    parts = []
    for value in ticks:
        text = f"{number(100 * value)} %" if unit == "fraction" else number(value)
        at = f"{place(value):.1f}"
        below, aside = str(HEIGHT - BOTTOM), str(LEFT)
        line = {"x1": at, "x2": at, "y1": str(TOP), "y2": below}
        word = {"x": at, "y": str(HEIGHT - BOTTOM + 18), "text_anchor": "middle"}
        if not is_below:
            line = {"x1": aside, "x2": str(WIDTH - RIGHT), "y1": at, "y2": at}
            word = {"x": str(LEFT - 8), "y": at, "text_anchor": "end"}
        parts += [element("line", **line), element("text", text, **word)]
    title = label(objective.metric, unit)
    if is_below:
        middle = str((LEFT + WIDTH - RIGHT) // 2)
        name = {"x": middle, "y": str(HEIGHT - 8), "text_anchor": "middle"}
    else:
        name = {"x": "4", "y": "12", "text_anchor": "start"}
    return [*parts, element("text", title, class_="still-name", **name)]
