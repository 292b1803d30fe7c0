"""What the configurations of a run are compared with: the model before anything was searched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.contract import BASELINE
from analysis.tables.frames import as_float
from analysis.tables.read import read_trial, signature_of
from analysis.tables.schema import Declared
from analysis.text import clean_text

SOURCE = "the source"


@dataclass(frozen=True)
class Baseline:
    """The measured baseline of a run.

    Attributes:
        name: "the source", or after which stage the source was measured.
        metrics: name → value of those that are finite numbers, as trials have them.
        seconds: that it took.
        computed: keys of the stages that it computed, and did not find in the stage cache.
    """

    name: str
    metrics: Mapping[str, float]
    seconds: float | None = None
    computed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "name": self.name,
            "metrics": dict(self.metrics),
            "seconds": self.seconds,
            "computed": list(self.computed),
        }


def from_json(value: Any, problems: list[str]) -> Baseline | None:
    """A baseline as the header of the tables holds it; what is malformed is a problem."""
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict):
        problems.append(f"baseline: must be a JSON object with metrics, got {value!r}")
        return None
    name, computed = value.get("name"), value.get("computed")
    return Baseline(
        clean_text(name) if isinstance(name, str) else SOURCE,
        _numbers(value["metrics"]),
        _number(value.get("seconds")),
        tuple(map(str, computed)) if isinstance(computed, list) else (),
    )


def read_baseline(
    run: Path, declared: Declared, problems: list[str]
) -> Baseline | None:
    """The baseline in a run folder; None where there is none that is complete."""
    folder = run / BASELINE
    if not folder.is_dir():
        return None
    found = read_trial(folder, signature_of(folder), declared)
    problems += found.problems
    rows = found.rows["trials"]
    if not rows or rows[0]["status"] != "complete":
        return None
    stages = [str(row["name"]) for row in found.rows["stages"] if row.get("name")]
    metrics = {
        column.removeprefix("metric/"): value
        for column, value in rows[0].items()
        if column.startswith("metric/")
    }
    name = f"the source after stage {stages[-1]}" if stages else SOURCE
    computed = [
        str(row["key"])
        for row in found.rows["stages"]
        if row.get("key") and not row.get("cached")
    ]
    seconds = _number(rows[0].get("seconds"))
    return Baseline(name, _numbers(metrics), seconds, tuple(computed))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    known = {clean_text(str(name)): _number(v) for name, v in metrics.items()}
    return {name: value for name, value in known.items() if value is not None}


def _number(value: Any) -> float | None:
    number = as_float(value)
    return number if number is not None and math.isfinite(number) else None
