"""What a run says of its metrics: descriptions and units come from `run.json`.

This package knows no metric by name. Runs of schema 1 say nothing of theirs; for them alone there
is `analysis.tables.schema_1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from analysis.contract import RUN_FILE, SEARCH_PREFIX, TEST_PREFIX
from analysis.text import clean_text

_LONGEST_TEXT = 300


class Metric(NamedTuple):
    """A measured number as a run describes it.

    Attributes:
        name: as it stands in records and, after `metric/`, in the tables.
        description: what is measured, in words; empty where the run does not say.
        unit: for example "ms", "bytes", "fraction" (of one), "1" (a count), "10^9", "text" (a
            word); "" for none.
        is_time: whether it is a time that depends on the machine, and so differs between runs.
        has_ratio_scale: whether its ratios tell more than its differences, as of a size, a time or
            a count of operations; None: as the unit says (see `is_ratio`).
    """

    name: str
    description: str = ""
    unit: str = ""
    is_time: bool = False
    has_ratio_scale: bool | None = None

    @property
    def is_ratio(self) -> bool:
        """Whether two values are compared by their ratio, not by their difference."""
        if self.has_ratio_scale is None:
            return self.unit in _RATIO_UNITS
        return self.has_ratio_scale


_RATIO_UNITS = {"bytes", "kB", "MB", "GB", "s", "ms", "us", "10^6", "10^9", "J", "1/s"}
"""Units of sizes, times and operations, of which a model has so many times more than another."""


class Metrics(dict[str, Metric]):
    """Metrics by name, in the order in which the run declares them."""

    def of(self, name: str) -> Metric:
        """The metric of this name; one without description and unit where the run has none."""
        known = self.get(name)
        again = self.get(name.removeprefix(SEARCH_PREFIX))
        if known is None and again is not None:
            words = f"{again.description}; as the trial itself recorded it"
            return again._replace(name=name, description=words)
        return known or Metric(name)

    def unit(self, name: str) -> str:
        """Its unit; empty where the run does not say."""
        return self.of(name).unit

    def in_order(self, names: Iterable[str]) -> list[str]:
        """`names` in the order of declaration, others last as they come."""
        rank = {name: index for index, name in enumerate(self)}
        return sorted(names, key=lambda name: rank.get(name, len(rank)))


def on_test_set(name: str) -> str:
    """Name of the metric that is `name` on the test set."""
    return TEST_PREFIX + name


def read_metrics(data: Any, problems: list[str]) -> Metrics:
    """The metrics that `run.json` declares; what is malformed is a problem and left out."""
    found = Metrics()
    if not isinstance(data, Mapping):
        problems.append(f"{RUN_FILE}: metrics must be an object by name, got {data!r}")
        return found
    for name, facts in data.items():
        metric = _metric(clean_text(name), facts)
        if metric is None:
            problems.append(
                f"{RUN_FILE}: metric {name!r} needs a description and a unit as text and"
                f" is_time and has_ratio_scale as true or false, got {facts!r}"
            )
        else:
            found[metric.name] = metric
    return found


def _metric(name: str, facts: Any) -> Metric | None:
    if not isinstance(facts, Mapping):
        return None
    description, unit = facts.get("description", ""), facts.get("unit", "")
    is_time = facts.get("is_time", False)
    has_ratio_scale = facts.get("has_ratio_scale")
    if not (isinstance(description, str) and isinstance(unit, str)):
        return None
    if not isinstance(is_time, bool):
        return None
    if not (has_ratio_scale is None or isinstance(has_ratio_scale, bool)):
        return None
    return Metric(
        name,
        clean_text(description)[:_LONGEST_TEXT],
        clean_text(unit)[:_LONGEST_TEXT],
        is_time,
        has_ratio_scale,
    )


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """As `run.json` states them."""
    return {
        metric.name: {
            "description": metric.description,
            "unit": metric.unit,
            "is_time": metric.is_time,
            "has_ratio_scale": metric.has_ratio_scale,
        }
        for metric in metrics.values()
    }
