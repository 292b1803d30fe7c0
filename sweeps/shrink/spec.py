"""The spec that `sweeps shrink` writes: plain YAML that a person reads, edits and runs again."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress.measure.options import RuntimeName
from sweeps.shrink.look import Look, Speed
from sweeps.shrink.methods import (
    INTEGER_RUNTIMES,
    LADDER,
    MIXED,
    TRAINED,
    TUNED_EPOCHS,
    Methods,
    methods_for,
)
from sweeps.shrink.reach import extremes, values_of, wanted_share
from sweeps.shrink.request import Goal
from sweeps.spec.yaml_text import Tree

RUN = "run"
"""Name of the run in the folder that a user gets."""
_SHORT_TUNING = 0.1
"""Share of the time that a short tuning of the whole model takes."""
_LONG_TUNING = 0.45
"""Share of the time that a long tuning takes, of whatever is left of the model."""
_MOST_EPOCHS = 100
"""Of a long tuning."""
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
_STRIDE = 2
"""Rungs of the ladder between the shares that are tried first."""
_DEEP_CUTS = 3
"""Of those that are stored in float, beside integers: what costs too much is not trained."""
_TIMED_MS = 2000.0
"""What the timed passes of the source take, about."""
_REPEATS = (30, 500)
"""Fewest and most timed passes."""
_COMMENTS = {
    "source": "The model as it is. What it may lose is relative to it.",
    "data": "Trials train on the training part and are compared on the validation part.",
    "stages": "Cut (nvit while it trains), tune with the original as the teacher, store.",
    "objectives": "The goal. A trial beyond a bound never counts as a result.",
    "measure": "How the deployed file is executed; accuracies are those of the file.",
    "resources": "What a trial takes of memory, so that as many run at a time as fit.",
    "search": "What is tried first, cheap things before dear ones, and what may vary.",
}


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
            share = _left_to_cut(goal, speed, self, self.store)
            return 0.0 if share is None else share

        return min(self.goals, key=left)


def _left_to_cut(goal: Goal, speed: Speed, wish: Wish, store: str) -> float | None:
    """The share of the source that a goal leaves to what is cut, after this way to store: 1 or more
    where nothing must be cut, None where as little as possible is wanted.
    """
    share = wanted_share(goal, speed, wish.batch_size)
    if share is None:
        return None
    is_time = goal.quantity in _TIMES
    if goal.quantity != "bytes":
        return share / _TIME_OF_INTEGERS if is_time and store != "float" else share
    weights = min(4.0 * speed.weights, speed.file_bytes)
    beside = speed.file_bytes - weights
    if store != "float":
        of_layer = _QUANTISER_BYTES.get(wish.runtime, {}).get(store, 0)
        beside += 4 * speed.channels + of_layer * speed.layers
    allowed = _WITHIN * share * speed.file_bytes
    return max(0.0, (allowed - beside) / (weights * _BITS[store] / 32))


def _counted(goal: Goal) -> str:
    """What cutting stages count for a goal."""
    return "params" if goal.quantity == "bytes" else "macs"


def spec_for(
    wish: Wish, seen: Look, speed: Speed, folder: Path
) -> tuple[Tree, Methods]:
    """The spec as plain values, and the methods that it searches."""
    seconds = 3600 * wish.hours * _SHORT_TUNING
    images = int(seconds / max(speed.train_seconds, 1e-9))
    quantity = _counted(wish.hardest(speed))
    methods = methods_for(
        seen,
        wish.runtime,
        quantity,
        images,
        is_timed=wish.is_timed,
        ladder=_ladder(wish, speed),
    )
    search: Tree = {"hours": wish.hours}
    if not wish.is_open:
        search["stop_when"] = "goal"
    first = points(methods, wish, speed)
    epochs = {point[TUNED_EPOCHS] for point in first if TUNED_EPOCHS in point}
    if methods.has("tune", "tuned"):
        methods.space[TUNED_EPOCHS] = sorted(epochs | {methods.short_epochs})
    search |= {"space": methods.space, "points": first}
    raw: Tree = {
        "name": RUN,
        "storage": str(folder.absolute()),
        "source": seen.source,
        "data": seen.data,
        "stages": {name: {"one_of": slot} for name, slot in methods.slots.items()},
        "objectives": wish.objectives,
        "measure": wish.measure
        | {"evaluate_in": "runtime", "repeats": _repeats(speed)},
        "search": search,
    }
    return raw, methods


def _repeats(speed: Speed) -> int:
    """Passes that take about so long that their median is steady, of a fast model many."""
    fewest, most = _REPEATS
    return int(min(most, max(fewest, _TIMED_MS / speed.latency_ms)))


class _Points:
    """Candidates to try first, those that the model can take, each once.

    Attributes:
        in_order: the candidates.
    """

    def __init__(self, methods: Methods, wish: Wish, speed: Speed) -> None:
        self._methods, self._wish, self._speed = methods, wish, speed
        self._quantity = _counted(wish.hardest(speed))
        self.in_order: list[Tree] = []

    def add(
        self,
        cut: str,
        nth: int,
        tune: str,
        stored: str,
        which_store: int = -1,
        *,
        is_long: bool = False,
    ) -> None:
        """A candidate.

        Args:
            nth: the share of the ladder that the cut leaves, or the method's own value.
            which_store: the value of what is searched in the way to store.
            is_long: whether it is tuned for long.
        """
        methods = self._methods
        chosen = _chosen(methods, self._quantity, cut, nth)
        has_all = (
            methods.has("cut", cut)
            and methods.has("tune", tune)
            and methods.has("store", stored)
        )
        is_source = (cut, tune, stored) == ("none", "none", "float")
        if chosen is None or not has_all or is_source:
            return
        slots = {"cut": cut, "tune": tune, "store": stored}
        found = {f"stages.{slot}": name for slot, name in slots.items()} | chosen
        for parameter, values in methods.space.items():
            if parameter.startswith(f"stages.store.{stored}."):
                found[parameter] = values[which_store]
        if tune == "tuned":
            epochs = self._long_epochs(found) if is_long else methods.short_epochs
            found |= methods.tuning(epochs)
        self.extend([found])

    def _long_epochs(self, point: Tree) -> int:
        """As many as fill a long tuning of what a candidate leaves of the model."""
        seconds = 3600 * self._wish.hours * _LONG_TUNING
        of_epoch = epoch_seconds(point, self._methods, self._speed)
        epochs = int(seconds / max(of_epoch, 1e-9))
        return max(self._methods.short_epochs, min(_MOST_EPOCHS, epochs))

    def extend(self, candidates: Iterable[Tree]) -> None:
        """Take candidates as they are."""
        for each in candidates:
            if each not in self.in_order:
                self.in_order.append(each)


def epoch_seconds(point: Tree, methods: Methods, speed: Speed) -> float:
    """Of tuning what a candidate leaves of the model: training takes as much less as its cut leaves
    of the cost. The teacher's pass, which no cut makes shorter, comes beside each step.
    """
    targets = (
        v for k, v in point.items() if k.startswith("stages.cut.") and ".target." in k
    )
    of_image = next(targets, 1.0) * speed.train_seconds + speed.pass_seconds
    return float(of_image * methods.epoch_images)


def points(methods: Methods, wish: Wish, speed: Speed) -> list[Tree]:
    """What is tried first: from what takes seconds to what is trained."""
    quantity = _counted(wish.hardest(speed))
    store = wish.store if methods.has("store", wish.store) else "float"
    ladder = methods.ladder
    first = _first_rung(wish, speed, store, ladder)
    found = _Points(methods, wish, speed)
    in_int4 = _first_rung(wish, speed, "int4", ladder)
    is_cut_in_int4 = (_left_by_cut(wish, speed, "int4") or 1.0) < 1.0
    # deep cuts in float, for what integers make little faster, or harm
    floats = range(_first_rung(wish, speed, "float", ladder), len(ladder))
    if store == "float":
        floats = range(0)
    _add_untrained(found, store, first, is_timed=wish.is_timed)
    if wish.is_timed:
        for nth in floats[: _STRIDE + 1 : _STRIDE]:
            found.add("channels", nth, "none", "float")
    if is_cut_in_int4:
        found.add("channels", in_int4, "none", "int4")
    if first == len(ladder) - 2:
        # the goal asks for what the plan may not have: the least of each kind says so
        found.extend(extremes(methods.slots, methods.space))
    is_soon = wish.is_timed  # of bytes, integers of one share take a quarter
    if is_soon:
        found.add("channels", first, "tuned", store, is_long=True)
        _add_deep_cuts(found, floats)
        # what integers take away, training with their rounding gives back
        found.add("channels", first, "tuned", f"{store}{TRAINED}", is_long=True)
        found.add("none", 0, "none", f"{store}{TRAINED}")
    else:
        found.add("channels", first, "none", f"{store}{TRAINED}")
    if wish.is_timed or quantity == "params":  # integers have as many operations
        smallest = "int4" if methods.has("store", "int4") else "int8"
        found.add("none", 0, "tuned", smallest)
    if is_cut_in_int4:
        found.add("channels", in_int4, "none", f"int4{TRAINED}")
    # integers may make a model faster than is thought, so that a smaller cut is enough
    least = max(0, first - 1) if wish.is_timed else first
    _add_trained(found, store, least, first, in_int4, len(ladder))
    if not is_soon:
        _add_deep_cuts(found, floats)
    return found.in_order


def _add_deep_cuts(found: _Points, rungs: Sequence[int]) -> None:
    for nth in rungs[:_DEEP_CUTS]:
        found.add("channels", nth, "tuned", "float", is_long=True)


def _add_untrained(found: _Points, store: str, first: int, *, is_timed: bool) -> None:
    found.add("none", 0, "none", store)
    for which_store in (-1, 0):
        found.add("none", 0, "none", "int4", which_store)
    for nth in (first, first + _STRIDE):
        found.add("channels", nth, "none", store)
    if is_timed:
        if first >= _STRIDE:  # enough where integers take more than is thought
            found.add("channels", first - _STRIDE, "none", store)
        found.add("none", 0, "none", MIXED, which_store=0)
    found.add("low_rank", first, "none", store)
    found.add("tokens", 0, "none", store)


def _add_trained(
    found: _Points, store: str, least: int, first: int, first_in_int4: int, rungs: int
) -> None:
    cuts = range(least, rungs)
    # of a time, one of them is the least cut that keeps the goal
    for nth in cuts[:3]:
        found.add("channels", nth, "tuned", store, is_long=True)
    for stored in ("int8", "int4") if store != "float" else ():
        found.add("none", 0, "none", stored + TRAINED)
    for nth in range(first_in_int4, rungs, _STRIDE)[:2]:
        found.add("channels", nth, "tuned", "int4")
    found.add("low_rank", first + _STRIDE, "tuned", store)
    found.add("nvit", first, "none", store)
    for nth in range(rungs):
        found.add("smaller", nth, "tuned", store)
    for nth in cuts[3:5]:
        found.add("channels", nth, "tuned", store, is_long=True)


def _chosen(methods: Methods, quantity: str, cut: str, nth: int) -> Tree | None:
    """The value of what is cut; None where the method has no such value."""
    shares = f"stages.cut.{cut}.target.{quantity}"
    if shares in methods.space:
        share = methods.ladder[min(nth, len(methods.ladder) - 1)]
        return {shares: share} if share in methods.space[shares] else None
    own = [p for p in methods.space if p.startswith(f"stages.cut.{cut}.")]
    if not own:
        return {}
    values = values_of(methods.space[own[0]])
    return {own[0]: values[nth]} if nth < len(values) else None


def is_trained(point: Tree) -> bool:
    """Whether a candidate is trained."""
    return (
        point["stages.tune"] != "none"
        or point["stages.store"].endswith(TRAINED)
        or point["stages.cut"] == "nvit"
    )


def _left_by_cut(wish: Wish, speed: Speed, store: str) -> float | None:
    """What the hardest goal leaves to what is cut (`_left_to_cut`)."""
    return _left_to_cut(wish.hardest(speed), speed, wish, store)


def _ladder(wish: Wish, speed: Speed) -> tuple[float, ...]:
    """Shares that may be left by what is cut. Of bytes and operations, with that which just keeps
    the goal: they follow from the share as no time does.
    """
    shares = {*LADDER}
    if wish.hardest(speed).quantity in ("bytes", "macs"):
        stores = ["int8", "int4"] if wish.runtime in INTEGER_RUNTIMES else ["float"]
        for store in stores:
            share = math.floor(100 * (_left_by_cut(wish, speed, store) or 0))
            if LADDER[-1] < share / 100 < 1:
                shares.add(share / 100)
    return tuple(sorted(shares, reverse=True))


def _first_rung(wish: Wish, speed: Speed, store: str, ladder: tuple[float, ...]) -> int:
    """Index of the first share on the ladder that may reach the goal."""
    wanted = _left_by_cut(wish, speed, store)
    if wanted is None:
        return 1
    rungs = [i for i, share in enumerate(ladder) if share <= wanted]
    return min(rungs[0] if rungs else len(ladder) - 2, len(ladder) - 2)


def text_of(raw: Tree, command: str, remarks: Sequence[str]) -> str:
    """The spec as YAML, with a line of comment for each section."""
    lines = [f"# Written by: {command}", "# Edit it and run it again: sweeps run FILE"]
    for remark in remarks:
        lines += textwrap.wrap(
            remark,
            96,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    for key, value in raw.items():
        comment = _COMMENTS.get(key)
        lines += ["", f"# {comment}"] if comment else []
        dumped = yaml.dump(
            {key: value}, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=96
        )
        lines.append(dumped.rstrip())
    return "\n".join(lines) + "\n"


class _Plain(yaml.SafeDumper):
    """Writes a value that stands in several places each time, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
