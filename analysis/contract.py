"""What a run folder promises, whoever writes or reads it: file names, statuses, objectives.

`sweeps` writes by it and `analysis` reads by it, so each fact stands here once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
REQUESTS_FOLDER = "requests"
"""Configurations that somebody asks the driver to try."""
NOTES_FOLDER = "notes"
"""What people have noted about trials: `notes/<trial>.json`."""
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
RECOGNISED = "recognised"
"""Key of that file: metric → which images of its part are recognised."""
PREDICTIONS_FILE = "predictions.json"
"""What a complete trial's predictions show: confusion, calibration, samples."""
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
class RelativeBound:
    """A bound that is known when the baseline has been measured: so much worse than it at most.

    Attributes:
        loss: what may be lost, in the metric's unit; with `relative` a share of the baseline's
            value. Negative: what must be gained.
        times: or the baseline's value times this.
        relative: see `loss`.
        to: what it is relative to: the run's baseline.

    Raises:
        ValueError: neither or both of `loss` and `times`, a number that is not finite, or
            `relative` beside `times`.
    """

    loss: Annotated[
        float | None,
        Field(
            description=(
                "what may be lost, in the metric's unit: 0.01 is one point of an accuracy;"
                " below 0: what must be gained"
            ),
            allow_inf_nan=False,
        ),
    ] = None
    times: Annotated[
        float | None,
        Field(
            description="instead of loss: the source's value times this",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = None
    relative: Annotated[
        bool, Field(description="loss is a share of the source's value")
    ] = False
    to: Annotated[
        Literal["source"], Field(description="the run's baseline (search.baseline)")
    ] = "source"

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.times is None):
            raise ValueError(
                "give either loss or times: {loss: 0.01, to: source} or"
                " {times: 0.5, to: source}"
            )
        if self.relative and self.loss is None:
            raise ValueError("relative goes with loss; times is relative by itself")

    def limit(self, mode: Literal["min", "max"], value: float) -> float:
        """The bound as a number, where the baseline has this value."""
        if self.times is not None:
            return value * self.times
        assert self.loss is not None, "one of the two is given"
        lost = self.loss * (abs(value) if self.relative else 1.0)
        return value + lost if mode == "min" else value - lost

    def said(self) -> str:
        """In words, after "bound:"."""
        if self.times is not None:
            return f"{self.times:g} times the source's"
        assert self.loss is not None, "one of the two is given"
        part = f"{self.loss:.4g} of it" if self.relative else f"{self.loss:g}"
        return f"worse than the source's by {part} at most"


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
        Annotated[float, Field(allow_inf_nan=False)] | RelativeBound | None,
        Field(
            description=(
                "worst value that is acceptable: trials beyond it never enter the front. A"
                " number, or {loss: 0.01, to: source}: relative to the measured baseline"
            ),
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
        limit = self.limit
        return -math.inf if limit is None else self.sign * (value - limit)

    @property
    def limit(self) -> float | None:
        """The bound as a number; None where there is none, NaN, which no value keeps, where it
        waits for the baseline (see `resolved`).
        """
        return math.nan if isinstance(self.bound, RelativeBound) else self.bound


def resolved(
    objectives: Sequence[Objective], baseline: Mapping[str, Any] | None
) -> list[Objective]:
    """The objectives with relative bounds as numbers, as far as the baseline's metrics give them.

    Args:
        baseline: metrics of the run's baseline; None while it has not ended.
    """
    found = []
    for objective in objectives:
        bound, value = objective.bound, (baseline or {}).get(objective.metric)
        known = isinstance(value, int | float) and math.isfinite(value)
        if isinstance(bound, RelativeBound) and value is not None and known:
            limit = bound.limit(objective.mode, float(value))
            objective = replace(objective, bound=limit)
        found.append(objective)
    return found


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
