"""The main figures as PNG and SVG, drawn by matplotlib (an optional extra) without a
browser or a display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.comparison import Comparison, compare_groups
from analysis.contract import Objective
from analysis.files import write_bytes
from analysis.importance import importance
from analysis.merging import RUN_PARAMETER
from analysis.numbers import label, number
from analysis.pareto import spans_decades
from analysis.report import columns, data
from analysis.report.layers import layer_data
from analysis.run import Run

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
_INK = "#1c1f23"
_STYLE = {
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.hashsalt": "sweeps",  # same data, same bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a94",
    "axes.labelcolor": _INK,
    "xtick.color": "#5b626b",
    "ytick.color": "#5b626b",
    "axes.grid": True,
    "grid.color": "#ecece7",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 160,
}


def write_figures(
    run: Run,
    folder: str | Path,
    by: str | None = None,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Write front, progress, importance, layers and comparison, each where there is
    something to show, in all these formats (png, svg, pdf).

    Gives the files of the first format; the others lie beside them. Raises ValueError where
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
    found = compare_groups(run, by or RUN_PARAMETER) if by or run.members else None
    drawn: dict[str, Callable[[Figure], bool]] = {
        "front": lambda figure: _front(figure, run, found),
        "progress": lambda figure: _progress(figure, run),
        "importance": lambda figure: _importance(figure, run),
        "layers": lambda figure: _layers(figure, run),
        "comparison": lambda figure: _comparison(figure, run, found),
    }
    target, written = Path(folder), []
    target.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, draw in drawn.items():
            figure = Figure(figsize=(6.4, 4.2), layout="constrained")
            if draw(figure):
                for suffix in formats:
                    _save(figure, target / f"{name}.{suffix}")
                written.append(target / f"{name}.{formats[0]}")
    return written


def _save(figure: Figure, path: Path) -> None:
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    metadata = dated.get(path.suffix)  # same data, same bytes
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
    write_bytes(path, buffer.getvalue())


def _scale(axes: Axes, axis: str, run: Run, metric: str, values: Any) -> None:
    """Scale, ticks and label of an axis that shows a metric."""
    unit = run.metrics.unit(metric)
    if spans_decades(np.asarray(values, dtype=float)):
        _log(axes, axis)
    elif axis == "x":  # numbers of bytes are wide
        axes.locator_params(axis="x", nbins=4)

    def tick(value: float, _: int) -> str:
        return f"{number(100 * value)} %" if unit == "fraction" else number(value)

    getattr(axes, f"{axis}axis").set_major_formatter(tick)
    getattr(axes, f"set_{axis}label")(label(metric, unit))


def _log(axes: Axes, axis: str) -> None:
    """A logarithmic scale whose ticks are all written by the axis' own formatter."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axes, f"set_{axis}scale")("log")
    shown = getattr(axes, f"{axis}axis")
    low, high = axes.dataLim.intervalx if axis == "x" else axes.dataLim.intervaly
    is_short = low > 0 and high / low < 1000
    shown.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
    # matplotlib would write powers of ten as mathematics, which names must not be read as
    shown.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class _Group:
    """Configurations that are drawn alike: `mask` (n,) marks them."""

    name: str
    mask: np.ndarray
    colour: str
    marker: str


def _groups(rows: pd.DataFrame, column: str) -> list[_Group]:
    """The groups that colour the configurations; one without a name where there are none or
    too many.
    """
    names, codes = [""], [0] * len(rows)
    if column != "status" and column in rows:
        names, codes = columns.levels(rows[column])
    if len(names) > len(PALETTE):
        names, codes = [""], [0] * len(rows)
    return [
        _Group(name, np.asarray(codes) == i, PALETTE[i], _MARKERS[i])
        for i, name in enumerate(names)
    ]


def _front(figure: Figure, run: Run, found: Comparison | None) -> bool:
    rows = run.configurations()
    if rows.empty or not run.objectives:
        return False
    pairs: list[tuple[Objective, Objective | None]] = [
        *combinations(run.objectives[:3], 2)
    ]
    pairs = pairs or [(run.objectives[0], None)]
    figure.set_size_inches(6.4 if len(pairs) == 1 else 4.4 * len(pairs), 4.2)
    groups = _groups(
        rows, f"config/{found.by}" if found else columns.colour_column(run)
    )
    for index, (y, x) in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), index + 1)
        _scatter(axes, run, groups, x, y)
        if x is not None:
            _front_lines(axes, rows, groups, x, y, each=found is not None)
        if index == 0 and len(groups) > 1:
            axes.legend(fontsize=8.5, loc="best")
    return True


def _scatter(
    axes: Axes, run: Run, groups: list[_Group], x: Objective | None, y: Objective
) -> None:
    """Configurations by two objectives, or by one in the order of the table."""
    rows = run.configurations()
    up = rows[f"metric/{y.metric}"]
    across = pd.Series(np.arange(len(rows)), index=rows.index)
    if x is not None:
        across = rows[f"metric/{x.metric}"]
    on_front = rows.index.isin(run.front().index)
    for group in groups:
        if x is not None and run.has_replicates:
            _error_bars(axes, rows[group.mask], x, y, group.colour)
        inside, outside = group.mask & on_front, group.mask & ~on_front
        style: dict[str, Any] = {"marker": group.marker, "color": group.colour}
        axes.scatter(
            across[outside],
            up[outside],
            s=22,
            alpha=0.6,
            label=None if inside.any() else group.name,
            linewidths=0.5,
            edgecolors="white",
            **style,
        )
        axes.scatter(
            across[inside],
            up[inside],
            s=48,
            label=group.name if inside.any() else None,
            linewidths=1,
            edgecolors=_INK,
            **style,
        )
    _star(axes, run, x, y)
    _scale(axes, "y", run, y.metric, up)
    if x is None:
        axes.set_xlabel("configuration")
    else:
        _scale(axes, "x", run, x.metric, across)


def _star(axes: Axes, run: Run, x: Objective | None, y: Objective) -> None:
    """The baseline, where it was measured on both axes."""
    metrics = run.baseline.metrics if run.baseline is not None else {}
    if x is None or x.metric not in metrics or y.metric not in metrics:
        return
    at = (metrics[x.metric], metrics[y.metric])
    axes.scatter(*at, s=130, marker="*", color="#c98a00", edgecolors=_INK, zorder=4)
    axes.annotate(
        "baseline",
        at,
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
    )


def _error_bars(
    axes: Axes, rows: pd.DataFrame, x: Objective, y: Objective, colour: str
) -> None:
    """Standard deviations over seeds."""
    axes.errorbar(
        rows[f"metric/{x.metric}"],
        rows[f"metric/{y.metric}"],
        xerr=rows[f"sd/{x.metric}"],
        yerr=rows[f"sd/{y.metric}"],
        fmt="none",
        ecolor=colour,
        alpha=0.35,
        linewidth=1,
    )


def _front_lines(
    axes: Axes,
    rows: pd.DataFrame,
    groups: list[_Group],
    x: Objective,
    y: Objective,
    each: bool,
) -> None:
    """The front of two objectives as the border of what it dominates, or that of each group."""
    everything = _Group("", np.ones(len(rows), dtype=bool), _INK, "")
    for group in groups if each else [everything]:
        part = rows[group.mask]
        up = part[f"metric/{y.metric}"].to_numpy(float)
        across = part[f"metric/{x.metric}"].to_numpy(float)
        best, steps = np.inf, []
        for i in np.lexsort((y.sign * up, x.sign * across)):
            if y.sign * up[i] < best:
                best = y.sign * up[i]
                steps.append((across[i], up[i]))
        if len(steps) > 1:
            axes.plot(
                *zip(*steps, strict=True),
                drawstyle="steps-post",
                color=group.colour,
                linewidth=1.3,
                zorder=1,
            )


def _progress(figure: Figure, run: Run) -> bool:
    share = data.progress(run)["share"]
    if len(share) < 2:
        return False
    figure.set_size_inches(6.4, 3.2)
    axes = figure.add_subplot()
    _step(axes, np.arange(1, len(share) + 1), share, PALETTE[0], None)
    axes.set(
        xlabel="complete configurations, in the order they ended",
        ylabel="hypervolume (share)",
        ylim=(0, None),
    )
    return True


def _step(axes: Axes, x: Any, y: Any, colour: str, name: str | None) -> None:
    axes.step(x, y, where="post", color=colour, linewidth=1.8, label=name)


def _importance(figure: Figure, run: Run) -> bool:
    found = importance(run)[:15]
    if not found:
        return False
    count = len(run.objectives)
    figure.set_size_inches(6.4, 1.2 + 0.36 * len(found) * max(1, count / 2))
    axes = figure.add_subplot()
    height = 0.8 / count
    for i, objective in enumerate(run.objectives):
        axes.barh(
            np.arange(len(found)) + (i - (count - 1) / 2) * height,
            [0.0 if np.isnan(item.shares[i]) else item.shares[i] for item in found],
            height=0.9 * height,
            color=PALETTE[i % len(PALETTE)],
            label=objective.metric,
        )
    names = [item.parameter + (" *" if item.conditional else "") for item in found]
    axes.set_yticks(np.arange(len(found)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    note = "; * where present" if any(i.conditional for i in found) else ""
    axes.set_xlabel(f"share of the variation explained (fANOVA){note}")
    axes.legend(fontsize=8.5)
    return True


def _layers(figure: Figure, run: Run) -> bool:
    """Of the recommended trial: dimensions a block, or entropy a layer of a quantised model."""
    shown = layer_data(run)
    if not shown:
        return False
    first = shown[0]
    panels: list[tuple[str, Sequence[float | None]]] = []
    if first["quantised"]:
        panels = [("entropy (bits)", first["bits"]), ("unique values", first["unique"])]
    elif first["dims"]:
        panels = [item for item in first["dims"].items() if item[0] != "embed"]
    if not panels:
        return False
    figure.set_size_inches(6.4, 1.0 + 1.3 * len(panels))
    for i, (name, values) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        heights = [value or 0 for value in values]
        axes.bar(
            range(len(values)), heights, color=PALETTE[i % len(PALETTE)], width=0.8
        )
        axes.set(ylabel=name)
        axes.grid(axis="x", visible=False)
    what = "layer" if first["quantised"] else "block"
    trial_id = run.trials["trial_id"].iloc[first["row"]]
    axes.set_xlabel(f"{what} of trial {trial_id}, from input to output")
    return True


def _comparison(figure: Figure, run: Run, found: Comparison | None) -> bool:
    if found is None:
        return False
    axes = figure.add_subplot()
    # a group has the colour that it has in the figure of the front
    groups = _groups(run.configurations(), f"config/{found.by}")
    colours = {group.name: group.colour for group in groups}
    for i, group in enumerate(found.groups):
        x, y = group.curves["configurations"]
        colour = colours.get(group.name, PALETTE[i % len(PALETTE)])
        _step(axes, x, y, colour, group.name)
    axes.axvline(found.budget, color="#9a9a94", linewidth=1, linestyle=":")
    axes.set(
        xlabel="complete configurations", ylabel="hypervolume (share)", ylim=(0, None)
    )
    axes.legend(fontsize=8.5)
    return True
