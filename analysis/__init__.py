"""Results of a sweep: load a run folder, gather it into Parquet, read its front, write its report.

>>> run = analysis.load("runs/demo")       # doctest: +SKIP
>>> run.front("accuracy>=0.9")[["trial_id", "metric/gmacs"]]   # doctest: +SKIP
>>> analysis.write_report("runs/demo")     # doctest: +SKIP
"""

from analysis.compare import Comparison, Group, compare, merge
from analysis.load import gather, load
from analysis.pareto import Objective
from analysis.query import query, write_rows
from analysis.report.figures import write_figures
from analysis.report.markdown import write_markdown
from analysis.report.page import write_report
from analysis.run import Run
from analysis.summary import (
    advice,
    command,
    duration,
    failures,
    front_table,
    quantity,
    stage_table,
    totals,
)

__all__ = [
    "Comparison",
    "Group",
    "Objective",
    "Run",
    "advice",
    "command",
    "compare",
    "duration",
    "failures",
    "front_table",
    "gather",
    "load",
    "merge",
    "quantity",
    "query",
    "stage_table",
    "totals",
    "write_figures",
    "write_markdown",
    "write_report",
    "write_rows",
]
