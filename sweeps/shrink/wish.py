"""The goal of a `sweeps shrink` as a whole, and what it leaves to what is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.measure.options import RuntimeName
from sweeps.shrink.look import Speed
from sweeps.shrink.methods import INTEGER_RUNTIMES
from sweeps.shrink.reach import wanted_share
from sweeps.shrink.request import Goal
from sweeps.spec.yaml_text import Tree

_TIMES = ("latency", "throughput")
_TIME_OF_INTEGERS = 0.5
"""What integers leave of a time, about: 0.33 to 0.65 were seen."""
_BITS = {"float": 32, "int8": 8, "int4": 4}
"""Of a weight, by the way to store."""
_QUANTISER_BYTES: Mapping[str, Mapping[str, int]] = {
    "openvino": {"int8": 2900, "int4": 3400},
    "onnxruntime": {"int8": 700},
}
"""What the quantisers of a layer add to a file, about: five models are foretold within 2 %."""
_WITHIN = 0.98
"""Of the bytes that are allowed, for what the estimate leaves out."""


@dataclass(frozen=True)
class Wish:
    """The goal as a whole.

    Attributes:
        goals: what is to become small or fast.
        metric: the objective of which little may be lost: metric, mode, bound.
        runtime: of deployment.
        batch_size, threads: of a pass there.
        hours: for the search.
    """

    goals: tuple[Goal, ...]
    metric: Tree
    runtime: RuntimeName
    batch_size: int
    threads: int
    hours: float

    @property
    def is_open(self) -> bool:
        """Whether as much as possible is asked for, so that only the time ends the search."""
        return all(goal.bound is None and goal.times is None for goal in self.goals)

    @property
    def measure(self) -> Tree:
        return {
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "threads": self.threads,
        }

    @property
    def objectives(self) -> list[Tree]:
        return [self.metric, *(goal.objective for goal in self.goals)]

    @property
    def is_timed(self) -> bool:
        """Whether a time is to become short."""
        return any(goal.quantity in _TIMES for goal in self.goals)

    @property
    def store(self) -> str:
        """How what is cut is stored, first of all: in integers where these bring a goal nearer."""
        is_nearer = any(goal.quantity in (*_TIMES, "bytes") for goal in self.goals)
        return "int8" if is_nearer and self.runtime in INTEGER_RUNTIMES else "float"

    def hardest(self, speed: Speed) -> Goal:
        """The goal that asks for the deepest cut, once integers have taken their part."""

        def left(goal: Goal) -> float:
            share = self._left_by(goal, speed, self.store)
            return 0.0 if share is None else share

        return min(self.goals, key=left)

    def counted(self, speed: Speed) -> str:
        """What cutting stages count: a key of `compress.budget.Target`."""
        return "params" if self.hardest(speed).quantity == "bytes" else "macs"

    def left_to_cut(self, speed: Speed, store: str) -> float | None:
        """The share of the source that the hardest goal leaves to what is cut, after this way to
        store: 1 or more where nothing must be cut, None where as little as possible is wanted.
        """
        return self._left_by(self.hardest(speed), speed, store)

    def _left_by(self, goal: Goal, speed: Speed, store: str) -> float | None:
        share = wanted_share(goal, speed, self.batch_size)
        if share is None:
            return None
        is_time = goal.quantity in _TIMES
        if goal.quantity != "bytes":
            return share / _TIME_OF_INTEGERS if is_time and store != "float" else share
        weights = min(4.0 * speed.weights, speed.file_bytes)
        beside = speed.file_bytes - weights
        if store != "float":
            of_layer = _QUANTISER_BYTES.get(self.runtime, {}).get(store, 0)
            beside += 4 * speed.channels + of_layer * speed.layers
        allowed = _WITHIN * share * speed.file_bytes
        return max(0.0, (allowed - beside) / (weights * _BITS[store] / 32))
