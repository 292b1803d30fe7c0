"""Results of a sweep: load a run folder, gather it into Parquet, read its front, write its report.

>>> run = analysis.load("runs/demo")       # doctest: +SKIP
>>> run.front("accuracy>=0.9")[["trial_id", "metric/gmacs"]]   # doctest: +SKIP
>>> analysis.write_report("runs/demo")     # doctest: +SKIP

A name is imported when it is first used, so that `analysis.contract`, which every command needs,
comes without pandas, and a front without the report. No module has the name of a function that
is exported here: importing it would put the module in the function's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.comparison import Comparison, Group, compare_groups
    from analysis.contract import Objective
    from analysis.differences import Difference, compare
    from analysis.loading import gather, load
    from analysis.merging import merge
    from analysis.numbers import duration, quantity
    from analysis.queries import query, write_rows
    from analysis.report.figures import write_figures
    from analysis.report.markdown import write_markdown
    from analysis.report.page import write_report
    from analysis.report.paper import write_paper
    from analysis.run import Run
    from analysis.summary import (
        advice,
        also_possible,
        baseline_figures,
        command,
        failures,
        front_table,
        front_text,
        nothing_passes,
        stage_table,
        totals,
    )

_HOMES = {
    "analysis.comparison": ("Comparison", "Group", "compare_groups"),
    "analysis.contract": ("Objective",),
    "analysis.differences": ("Difference", "compare"),
    "analysis.loading": ("gather", "load"),
    "analysis.merging": ("merge",),
    "analysis.numbers": ("duration", "quantity"),
    "analysis.queries": ("query", "write_rows"),
    "analysis.report.figures": ("write_figures",),
    "analysis.report.markdown": ("write_markdown",),
    "analysis.report.paper": ("write_paper",),
    "analysis.report.page": ("write_report",),
    "analysis.run": ("Run",),
    "analysis.summary": (
        "advice",
        "also_possible",
        "baseline_figures",
        "command",
        "failures",
        "front_table",
        "front_text",
        "nothing_passes",
        "stage_table",
        "totals",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Comparison",
    "Difference",
    "Group",
    "Objective",
    "Run",
    "advice",
    "also_possible",
    "baseline_figures",
    "command",
    "compare",
    "compare_groups",
    "duration",
    "failures",
    "front_table",
    "front_text",
    "gather",
    "load",
    "merge",
    "nothing_passes",
    "quantity",
    "query",
    "stage_table",
    "totals",
    "write_figures",
    "write_markdown",
    "write_paper",
    "write_report",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
