"""The main figures as PNG and SVG, drawn by matplotlib (an optional extra) without a
browser or a display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.comparison import Comparison, compare
from analysis.contract import Objective
from analysis.importance import importance
from analysis.report import data as plots
from analysis.report.layers import layer_data
from analysis.run import Run
from analysis.tables.schema import metric_unit
from analysis.tables.store import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (
    "#0b6bb0",
    "#d2600a",
    "#07916a",
    "#b3569b",
    "#c98a00",
    "#3f9fd8",
    "#5b4bb5",
    "#6b6f75",
)
"""Colours of groups, as in the report: told apart by people with colour-blindness."""
_MARKERS = "osD^PvXh"
_STYLE = {
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.hashsalt": "sweeps",  # same data, same bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a94",
    "axes.labelcolor": "#1c1f23",
    "xtick.color": "#5b626b",
    "ytick.color": "#5b626b",
    "axes.grid": True,
    "grid.color": "#ecece7",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 160,
}


def write_figures(run: Run, folder: str | Path, by: str | None = None) -> list[Path]:
    """Write front, progress, importance, layers and comparison, each where there is
    something to show.

    Gives the PNG files; an SVG of the same name lies beside each. Raises ValueError where
    matplotlib is not installed or there is no parameter `by`, OSError where a file cannot
    be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "figures need matplotlib; install it: pip install"
            " 'compression-sweeps[analysis]'"
        ) from None
    found = compare(run, by or "run") if by or run.members else None
    drawn: dict[str, Callable[[Figure], bool]] = {
        "front": lambda figure: _front(figure, run, found),
        "progress": lambda figure: _progress(figure, run),
        "importance": lambda figure: _importance(figure, run),
        "layers": lambda figure: _layers(figure, run),
        "comparison": lambda figure: _comparison(figure, found),
    }
    target, written = Path(folder), []
    target.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, draw in drawn.items():
            figure = Figure(figsize=(6.4, 4.2), layout="constrained")
            if draw(figure):
                for kind in ("svg", "png"):
                    buffer = io.BytesIO()
                    figure.savefig(
                        buffer,
                        format=kind,
                        metadata={"Date": None} if kind == "svg" else None,
                    )
                    content = buffer.getvalue()
                    atomic_write(target / f"{name}.{kind}", partial(_put, content))
                written.append(target / f"{name}.png")
    return written


def _put(content: bytes, file: Any) -> None:
    file.write(content)


def _label(metric: str) -> str:
    unit = metric_unit(metric)
    told = unit in ("", "1", "fraction") or metric.endswith(f"_{unit}")
    return metric if told else f"{metric} ({unit.replace('10^9', '10⁹')})"


def _scale(axes: Axes, axis: str, metric: str, values: Any) -> None:
    if plots.spans_decades(np.asarray(values, dtype=float)):
        getattr(axes, f"set_{axis}scale")("log")
    if metric_unit(metric) == "fraction":
        from matplotlib.ticker import PercentFormatter

        getattr(axes, f"{axis}axis").set_major_formatter(PercentFormatter(1.0))
    getattr(axes, f"set_{axis}label")(_label(metric))


def _groups(
    run: Run, points: pd.DataFrame, column: str
) -> list[tuple[str, np.ndarray]]:
    """Names and masks of the groups that colour the points; one without a name where there
    are none or too many.
    """
    if column == "status" or column not in points:
        return [("", np.ones(len(points), dtype=bool))]
    names, codes = plots.levels(points[column])
    if len(names) > len(PALETTE):
        return [("", np.ones(len(points), dtype=bool))]
    return [(name, np.asarray(codes) == i) for i, name in enumerate(names)]


def _front(figure: Figure, run: Run, found: Comparison | None) -> bool:
    points = run.points()
    if points.empty or not run.objectives:
        return False
    pairs: list[tuple[Objective, Objective | None]] = [
        *combinations(run.objectives[:3], 2)
    ]
    pairs = pairs or [(run.objectives[0], None)]
    figure.set_size_inches(6.4 if len(pairs) == 1 else 4.4 * len(pairs), 4.2)
    groups = _groups(
        run, points, f"config/{found.by}" if found else plots.colour_param(run)
    )
    front = set(run.front().index)
    for number, (y, x) in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), number + 1)
        _scatter(axes, run, points, groups, front, x, y, per_group=found is not None)
        if number == 0 and len(groups) > 1:
            axes.legend(fontsize=8.5, loc="best")
    return True


def _scatter(
    axes: Axes,
    run: Run,
    points: pd.DataFrame,
    groups: list[tuple[str, np.ndarray]],
    front: set[int],
    x: Objective | None,
    y: Objective,
    *,
    per_group: bool,
) -> None:
    across = (
        points[f"metric/{x.metric}"]
        if x
        else pd.Series(np.arange(len(points)), index=points.index)
    )
    up = points[f"metric/{y.metric}"]
    on = np.array([row in front for row in points.index])
    for i, (name, mask) in enumerate(groups):
        colour = PALETTE[i % len(PALETTE)]
        if x and (points["replicates"] > 1).any():
            errors: dict[str, Any] = {
                "xerr": points[f"sd/{x.metric}"][mask],
                "yerr": points[f"sd/{y.metric}"][mask],
            }
            axes.errorbar(
                across[mask],
                up[mask],
                fmt="none",
                ecolor=colour,
                alpha=0.35,
                linewidth=1,
                **errors,
            )
        style: dict[str, Any] = {
            "marker": _MARKERS[i % len(_MARKERS)],
            "color": colour,
            "edgecolors": "white",
        }
        label = None if (mask & on).any() else name
        axes.scatter(
            across[mask & ~on],
            up[mask & ~on],
            s=22,
            alpha=0.6,
            label=label,
            linewidths=0.5,
            **style,
        )
        style |= {"edgecolors": "#1c1f23"}
        axes.scatter(
            across[mask & on], up[mask & on], s=48, label=name, linewidths=1, **style
        )
        if x and per_group:
            _stairs(axes, across[mask], up[mask], x, y, colour)
    if x and not per_group:
        _stairs(axes, across, up, x, y, "#1c1f23")
    if x:
        _scale(axes, "x", x.metric, across)
    else:
        axes.set_xlabel("configuration")
    _scale(axes, "y", y.metric, up)


def _stairs(
    axes: Axes,
    across: pd.Series,
    up: pd.Series,
    x: Objective,
    y: Objective,
    colour: str,
) -> None:
    """The front of two objectives as the border of what it dominates."""
    order = np.lexsort((y.sign * up, x.sign * across))
    best, steps = np.inf, []
    for a, u in zip(
        across.to_numpy(float)[order], up.to_numpy(float)[order], strict=True
    ):
        if y.sign * u < best:
            best = y.sign * u
            steps.append((a, u))
    if len(steps) > 1:
        axes.plot(
            *zip(*steps, strict=True),
            drawstyle="steps-post",
            color=colour,
            linewidth=1.3,
            zorder=1,
        )


def _progress(figure: Figure, run: Run) -> bool:
    share = plots.progress(run)["share"]
    if len(share) < 2:
        return False
    figure.set_size_inches(6.4, 3.2)
    axes = figure.add_subplot()
    axes.step(
        np.arange(1, len(share) + 1),
        share,
        where="post",
        color=PALETTE[0],
        linewidth=1.8,
    )
    axes.set(
        xlabel="complete trials, in the order they ended",
        ylabel="hypervolume (share)",
        ylim=(0, None),
    )
    return True


def _importance(figure: Figure, run: Run) -> bool:
    found = importance(run)[:15]
    if not found:
        return False
    figure.set_size_inches(
        6.4, 1.2 + 0.36 * len(found) * max(1, len(run.objectives) / 2)
    )
    axes = figure.add_subplot()
    height = 0.8 / len(run.objectives)
    for i, objective in enumerate(run.objectives):
        places = np.arange(len(found)) + (i - (len(run.objectives) - 1) / 2) * height
        shares = [0.0 if np.isnan(item.shares[i]) else item.shares[i] for item in found]
        axes.barh(
            places,
            shares,
            height=0.9 * height,
            color=PALETTE[i % len(PALETTE)],
            label=objective.metric,
        )
    names = [item.param + (" *" if item.conditional else "") for item in found]
    axes.set_yticks(np.arange(len(found)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(
        "share of the variation explained (fANOVA)"
        + ("; * where present" if any(i.conditional for i in found) else "")
    )
    axes.legend(fontsize=8.5)
    return True


def _bars(axes: Axes, values: Sequence[float | None], label: str, colour: str) -> None:
    axes.bar(range(len(values)), [v or 0 for v in values], color=colour, width=0.8)
    axes.set(ylabel=label)
    axes.grid(axis="x", visible=False)


def _layers(figure: Figure, run: Run) -> bool:
    """Of the recommended trial: dimensions a block, or entropy a layer of a quantised model."""
    data = layer_data(run)
    if not data:
        return False
    first = data[0]
    panels: list[tuple[Sequence[float | None], str]] = []
    if first["quantised"]:
        panels = [(first["bits"], "entropy (bits)"), (first["unique"], "unique values")]
    elif first["dims"]:
        panels = [
            (values, name) for name, values in first["dims"].items() if name != "embed"
        ]
    if not panels:
        return False
    figure.set_size_inches(6.4, 1.0 + 1.3 * len(panels))
    for i, (values, label) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        _bars(axes, values, label, PALETTE[i % len(PALETTE)])
        if i == len(panels) - 1:
            what = "layer" if first["quantised"] else "block"
            axes.set_xlabel(
                f"{what} of trial {run.trials['trial_id'].iloc[first['row']]}, from"
                " input to output"
            )
    return True


def _comparison(figure: Figure, found: Comparison | None) -> bool:
    if found is None:
        return False
    axes = figure.add_subplot()
    for i, group in enumerate(found.groups):
        x, y = group.curves["points"]
        axes.step(
            x,
            y,
            where="post",
            color=PALETTE[i % len(PALETTE)],
            linewidth=1.8,
            label=group.name,
        )
    axes.axvline(found.budget, color="#9a9a94", linewidth=1, linestyle=":")
    axes.set(xlabel="complete trials", ylabel="hypervolume (share)", ylim=(0, None))
    axes.legend(fontsize=8.5)
    return True
