"""Results of a sweep: load a run folder, gather it into Parquet, read its front, write its report.

>>> run = analysis.load("runs/demo")       # doctest: +SKIP
>>> run.front()[["trial_id", "metric/accuracy"]]   # doctest: +SKIP
>>> analysis.write_report("runs/demo")     # doctest: +SKIP
"""

from analysis.load import Run, gather, load
from analysis.pareto import Objective
from analysis.report import write_report
from analysis.summary import duration, failures, front_table, quantity, stage_table, totals

__all__ = [
    "Objective",
    "Run",
    "duration",
    "failures",
    "front_table",
    "gather",
    "load",
    "quantity",
    "stage_table",
    "totals",
    "write_report",
]
