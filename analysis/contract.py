"""What a run folder promises, whoever writes or reads it: file names, statuses, objectives.

`sweeps` writes by it and `analysis` reads by it, so each fact stands here once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

RECORD_SCHEMA = 2
"""Version of the run folder's own files that is written. 1: a record held its plan, too."""

READABLE_RECORD_SCHEMAS = (1, 2)
"""Versions of these files that are read."""

RUN_FILE = "run.json"
SPEC_FILE = "spec.yaml"
STUDY_FILE = "study.journal"
DRIVER_FILE = "driver.json"
STOP_FILE = "stop"
REPORT_FILE = "report.html"
TRIALS_FOLDER = "trials"
TABLES_FOLDER = "parquet"
BASELINE = "baseline"
"""Id of the trial that measures what the others are compared with, and the folder beside
`trials/` that holds it: it is no trial of the search.
"""
PLAN_FILE = "plan.json"
RECORD_FILE = "record.json"
EPOCHS_FILE = "epochs.jsonl"
LAYERS_FILE = "layers.json"
CLASSES_FILE = "classes.json"
LATENCY_FILE = "latency.json"
"""Of a trial on the front or near it: its latency, measured again when the search had ended."""

TEST_PREFIX = "test_"
"""`test_<metric>` is the same metric on the test set, which the search never sees."""

SEARCH_PREFIX = "search_"
"""`search_<metric>` is what the trial itself recorded of a metric that was measured again."""

Status = Literal["complete", "pruned", "failed", "interrupted", "running"]
"""What can be said of a trial. A planned trial without a record counts as `running`."""

STATUSES: tuple[Status, ...] = get_args(Status)
"""All statuses, in the order in which trials are counted out."""

ENDED: tuple[Status, ...] = ("complete", "pruned", "failed")
"""Statuses of trials that are not run again."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Objective:
    """One metric to optimise.

    Attributes:
        metric: name of the metric.
        mode: whether small or large values are better.
        bound: worst acceptable value, in the metric's unit; the bound itself is acceptable.

    Raises:
        ValueError: a mode other than these two, or a bound that is not a finite number.
    """

    metric: Annotated[
        str,
        Field(
            description="a measured metric or one that a stage reports (`sweeps methods`)"
        ),
    ]
    mode: Annotated[
        Literal["min", "max"],
        Field(description="whether small or large values are better"),
    ]
    bound: Annotated[
        float | None,
        Field(
            description="worst value that is acceptable: trials beyond it never enter the front",
            allow_inf_nan=False,
        ),
    ] = None

    @property
    def sign(self) -> float:
        """1 where small values are better, else -1: `sign * value` is to be minimised."""
        return 1.0 if self.mode == "min" else -1.0

    def excess(self, value: float) -> float:
        """How far `value` lies beyond the bound, in the metric's unit.

        At most 0 within the bound; -inf where there is none. Samplers call it a constraint.
        """
        if self.bound is None:
            return -math.inf
        return self.sign * (value - self.bound)


def finite_values(
    metrics: Mapping[str, Any], objectives: Sequence[Objective]
) -> list[float] | None:
    """The objectives' values in order; None where one is missing or not a finite number."""
    values: list[float] = []
    for objective in objectives:
        value = metrics.get(objective.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        values.append(float(value))
    return values


def is_feasible(metrics: Mapping[str, Any], objectives: Sequence[Objective]) -> bool:
    """Whether every objective was measured and none lies beyond its bound."""
    values = finite_values(metrics, objectives)
    if values is None:
        return False
    return all(o.excess(v) <= 0 for o, v in zip(objectives, values, strict=True))
