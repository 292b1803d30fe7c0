"""What a user asks of `sweeps shrink`: the goal in their words, as objectives of a spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis import numbers
from sweeps.spec.yaml_text import SpecError, did_you_mean

Quantity = Literal["latency", "throughput", "bytes", "macs", "memory"]

_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "latency": {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "throughput": {"/s": 1.0, "": 1.0},
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "macs": {"": 1e-9, "k": 1e-6, "m": 1e-3, "g": 1.0},
    "memory": {"mb": 1.0, "gb": 1e3, "kb": 1e-3, "b": 1e-6},
}
"""Quantity → unit, in small letters → what it is in the metric's unit."""

_METRICS: Mapping[Quantity, tuple[str, Literal["min", "max"]]] = {
    "latency": ("latency_ms", "min"),
    "throughput": ("throughput", "max"),
    "bytes": ("file_bytes", "min"),
    "macs": ("gmacs", "min"),
    "memory": ("peak_memory_mb", "min"),
}

_EXAMPLES: Mapping[Quantity, str] = {
    "latency": "5ms or 0.5x",
    "throughput": "200/s or 2x",
    "bytes": "2MB or 0.25x",
    "macs": "200M or 0.5x",
    "memory": "50MB or 0.5x",
}

_WORDS: Mapping[Quantity, tuple[str, str]] = {
    "latency": ("latency", "ms"),
    "throughput": ("throughput", "images/s"),
    "bytes": ("bytes", "bytes"),
    "macs": ("operations", "GMACs"),
    "memory": ("memory", "MB"),
}
"""Quantity → what a title calls it, and its metric's unit."""
_LONGEST_MODEL = 40
"""Characters of a model's name in a title."""

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s]*)\s*")


@dataclass(frozen=True)
class Goal:
    """One thing that is to become small or fast.

    Attributes:
        quantity: what.
        bound: the limit in the metric's unit; None: as little as can be had.
        times: the limit as a multiple of the source's; None where it is a number.
    """

    quantity: Quantity
    bound: float | None = None
    times: float | None = None

    @property
    def said(self) -> str:
        """In words, for a title."""
        word, unit = _WORDS[self.quantity]
        if self.times is not None:
            return f"{self.times:g} times the {word}"
        if self.bound is None:
            return "as fast as can be" if word == "latency" else "as small as can be"
        limit = "at most" if _METRICS[self.quantity][1] == "min" else "at least"
        return f"{limit} {numbers.quantity(self.bound, unit)}"

    @property
    def objective(self) -> dict[str, Any]:
        """As the spec has it.

        A ratio of latencies is a metric of its own, whose two times are measured in turns.
        """
        metric, mode = _METRICS[self.quantity]
        if self.times is not None and self.quantity == "latency":
            return {"metric": "latency_ratio", "mode": "min", "bound": self.times}
        found: dict[str, Any] = {"metric": metric, "mode": mode}
        if self.times is not None:
            found["bound"] = {"times": self.times, "to": "source"}
        elif self.bound is not None:
            found["bound"] = self.bound
        return found


@dataclass(frozen=True)
class Request:
    """What a user typed, parsed.

    Attributes:
        model, name, data: as they were typed.
        goals: what is to become small or fast.
        metric, max_loss: of which little may be lost, and how much.
        runtime: of deployment; None: the first that is installed.
        batch_size, threads: of a pass there.
        hours, seed: of the search.
        folder: that the user gets.
        command: what was typed.
        local: whether it is to run on this machine's cores.
    """

    model: str
    name: str | None
    data: str
    goals: tuple[Goal, ...]
    metric: str
    max_loss: str
    runtime: str | None
    batch_size: int
    threads: int
    hours: float
    seed: int
    folder: Path
    command: str
    local: bool = True

    @property
    def title(self) -> str:
        """What the report calls the search: the model, the goals and what may be lost."""
        path = Path(self.model.removeprefix("hf-hub:"))
        name = path.resolve().name if path.is_dir() else path.name
        name = path.stem if path.is_file() else name
        if len(name) > _LONGEST_MODEL:
            name = f"{name[: _LONGEST_MODEL - 1]}…"
        wanted = " and ".join(goal.said for goal in self.goals)
        of = "" if self.metric == "accuracy" else f" of {self.metric}"
        return f"{name}: {wanted}, losing at most {self.max_loss}{of}"

    @property
    def identity(self) -> str:
        """What must be the same for a search to go on: all but the time and the place."""
        facts = (
            self.model,
            self.name,
            self.data,
            [goal.objective for goal in self.goals],
            self.metric,
            self.max_loss,
            self.runtime,
            self.batch_size,
            self.threads,
            self.seed,
        )
        return repr(facts)


def goal(quantity: Quantity, text: str) -> Goal:
    """A goal from an option's value: a number with a unit, or a multiple of the source's (0.5x).

    Raises:
        SpecError: neither.
    """
    place = f"--{quantity}"
    match = _NUMBER.fullmatch(text)
    unit = match[2].lower() if match is not None else ""
    if match is None or not float(match[1]) > 0:
        raise SpecError(
            f"{place}: {text!r} is no amount above 0; write {_EXAMPLES[quantity]}"
        )
    value = float(match[1])
    if unit == "x":
        return _multiple(quantity, value, text)
    units = _UNITS[quantity]
    if unit not in units:
        known = ", ".join(name or "no unit" for name in units)
        raise SpecError(
            f"{place}: {text!r} has no unit that is known here ({known}, or x for a multiple of"
            f" the source's); write {_EXAMPLES[quantity]}"
        )
    return Goal(quantity, bound=value * units[unit])


def _multiple(quantity: Quantity, value: float, text: str) -> Goal:
    """A goal relative to the source; one that asks for nothing is refused."""
    wants_more = _METRICS[quantity][1] == "max"
    if (value <= 1) if wants_more else (value >= 1):
        what = "more" if wants_more else "less"
        raise SpecError(
            f"--{quantity}: {text!r} is not {what} than the source has; write"
            f" {_EXAMPLES[quantity]}"
        )
    return Goal(quantity, times=value)


def goals(
    limits: Mapping[Quantity, str | None], *, fastest: bool, smallest: bool
) -> tuple[Goal, ...]:
    """All that is asked for.

    Args:
        limits: quantity → its option's value, None where it was not given.
        fastest, smallest: goals without a limit, each of which stands alone.

    Raises:
        SpecError: no goal, one that is no amount, or several of which one has no limit.
    """
    found = [goal(key, text) for key, text in limits.items() if text is not None]
    if not (found or fastest or smallest):
        raise SpecError(
            "a goal is missing: give --latency 5ms, --throughput 200/s, --bytes 2MB, --macs"
            " 200M, --memory 50MB, --fastest or --smallest"
        )
    if fastest + smallest + bool(found) > 1:
        raise SpecError(
            "--fastest and --smallest stand alone: as little as it can be, at the loss that"
            " --max-loss allows; leave the other goals out"
        )
    if fastest:
        return (Goal("latency"),)
    return (Goal("bytes"),) if smallest else tuple(found)


def max_loss(text: str, unit: str) -> dict[str, Any]:
    """The bound of a metric that may lose so much.

    Args:
        text: "1%" or "0.01": points of a share. Of a metric in another unit, percent are percent
            of the source's value.
        unit: of the metric.

    Raises:
        SpecError: no number from 0 on, or 100 % and more of a share.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        raise SpecError(f"--max-loss: {text!r} is no loss; write 1% or 0.01")
    value = float(match[1]) / (100 if match[2] else 1)
    if unit == "fraction" and value >= 1:
        raise SpecError(
            f"--max-loss: {text!r} is all that there is; one percent is 1% or 0.01"
        )
    bound: dict[str, Any] = {"loss": value, "to": "source"}
    if match[2] and unit != "fraction":
        bound["relative"] = True
    return bound


def metric_of_loss(name: str) -> tuple[str, Literal["min", "max"], str]:
    """Name, direction and unit of the metric of which little may be lost.

    Raises:
        SpecError: evaluation gives no such metric.
    """
    from trainers.training.epoch_metrics import epoch_metrics

    known = {n: m for n, m in epoch_metrics().items() if m.on_validation}
    if name not in known:
        raise SpecError(
            f"--metric: evaluation gives no {name!r}; {did_you_mean(name, known)}valid:"
            f" {', '.join(known)}"
        )
    return name, known[name].mode, known[name].unit
