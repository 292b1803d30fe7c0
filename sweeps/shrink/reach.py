"""Whether a goal can be reached at all, said as soon as it is known.

Before the search: no candidate costs less than a model of one channel without a block
(`refuse_impossible`). While it runs: what a candidate costs depends on what is cut and on how it is
stored, not on training. So one untrained candidate of each kind, cut as far as the plan goes, shows
within seconds what the whole plan can do (`extremes`, `Reach`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.contract import BASELINE, Objective
from analysis.numbers import number, quantity
from compress.measure.latency import times_in_turns
from compress.measure.memory import MEGABYTE, peak_memory_bytes
from compress.measure.model import count_gmacs
from compress.measure.options import RuntimeOptions
from compress.runtimes.onnx_file import example_images
from compress.runtimes.registry import session
from sweeps.run.record import TrialRecord
from sweeps.shrink.look import Look, Speed
from sweeps.shrink.methods import MIXED, TRAINED
from sweeps.shrink.request import Goal, Quantity
from sweeps.space.slots import is_slot
from sweeps.spec.yaml_text import SpecError, Tree
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

_IN_DOUBT = 0.2
"""Of the source's cost: a goal that leaves more is within what a model can be."""
_CERTAIN_MISS = 1.1
"""Times the limit: costs are not quite in the order of the shares that are cut."""
_PATCHES = (32, 16, 14, 8, 7, 4, 2, 1)
_SAID: Mapping[Quantity, tuple[float, str]] = {
    "latency": (1, "ms"),
    "throughput": (1, "images/s"),
    "bytes": (1, "bytes"),
    "macs": (1e9, "multiply-accumulates"),
    "memory": (1, "MB"),
}
"""Quantity → how it is said: factor and unit."""


@dataclass(frozen=True)
class Least:
    """What the runtime takes for a model that does next to nothing, which no candidate is below.

    Attributes:
        latency_ms: of its fastest pass.
        file_bytes, gmacs, peak_memory_mb: of the model.
    """

    latency_ms: float
    file_bytes: float
    gmacs: float
    peak_memory_mb: float


def cost_of(quantity: Quantity, costs: Least | Speed, batch_size: int) -> float:
    """In the unit of the quantity's metric."""
    return {
        "latency": costs.latency_ms,
        "throughput": 1000 * batch_size / costs.latency_ms,
        "bytes": costs.file_bytes,
        "macs": costs.gmacs,
        "memory": costs.peak_memory_mb,
    }[quantity]


def wanted_share(goal: Goal, speed: Speed, batch_size: int) -> float | None:
    """What a goal leaves of the source's cost; None where as little as possible is wanted."""
    times, bound = goal.times, goal.bound
    if times is not None:
        return 1 / times if goal.quantity == "throughput" else times
    if bound is None:
        return None
    has = cost_of(goal.quantity, speed, batch_size)
    return has / bound if goal.quantity == "throughput" else bound / has


def refuse_impossible(
    goals: Sequence[Goal], seen: Look, speed: Speed, options: RuntimeOptions
) -> None:
    """Measure the least that there is where a goal asks for very little.

    Raises:
        SpecError: a goal asks for less than that, or the source keeps all of them.
    """
    batch = options.batch_size
    shares = [wanted_share(goal, speed, batch) for goal in goals]
    if all(share is not None and share >= 1 for share in shares):
        first = goals[0].quantity
        factor, unit = _SAID[first]
        has = number(factor * cost_of(first, speed, batch))
        raise SpecError(
            f"--{first}: the source has {has} {unit} as it is, in {options.runtime}; deploy it,"
            f" or ask for {'more' if first == 'throughput' else 'less'}"
        )
    if not any(share is not None and share < _IN_DOUBT for share in shares):
        return
    least = least_costs(seen, options)
    for goal, share in zip(goals, shares, strict=True):
        if share is not None:
            _refuse(goal, share, least, speed, options)


def _refuse(
    goal: Goal, share: float, costs: Least, speed: Speed, options: RuntimeOptions
) -> None:
    least, has = (
        cost_of(goal.quantity, each, options.batch_size) for each in (costs, speed)
    )
    is_rate = goal.quantity == "throughput"
    limit = goal.bound
    if limit is None:
        limit = has / share if is_rate else share * has
    if (limit <= least) if is_rate else (limit >= least):
        return
    factor, unit = _SAID[goal.quantity]
    said = f"{number(factor * limit)} {unit}"
    if goal.times is not None:
        said = f"{goal.times:g}x, which is {said},"
    most = "at most" if is_rate else "at least"
    raise SpecError(
        f"--{goal.quantity}: {said} is out of reach: even a model of one channel without a"
        f" block has {most} {number(factor * least)} {unit} here, in {options.runtime}; ask for"
        f" {'less' if is_rate else 'more'}"
    )


def least_costs(seen: Look, options: RuntimeOptions) -> Least:
    """Measure a ViT of one channel without a block, for the same images and classes."""
    size = seen.info.image_size
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=seen.info.num_classes,
        image_size=size,
        args={
            "embed_dim": 1,
            "num_heads": 1,
            "depth": 0,
            "patch_size": next(patch for patch in _PATCHES if size % patch == 0),
            "in_chans": seen.arch.args.get("in_chans", 3),
        },
    )
    state = ModelState.initialised(arch, 0)
    images = example_images(state, size, options.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        there = session(state, size, options, Path(folder))
        total = sum(path.stat().st_size for path in Path(folder).iterdir())
        timed = there.timed_pass(images.numpy())
        (times,) = times_in_turns([timed], warmup=5, rounds=50, max_seconds=2)
    memory = peak_memory_bytes(
        state.build(), size, "cpu", batch_size=options.batch_size
    )
    return Least(float(min(times)), total, count_gmacs(arch, size), memory / MEGABYTE)


def extremes(slots: Mapping[str, Tree], space: Mapping[str, Any]) -> list[Tree]:
    """A point for each way to cut and each to store: untrained, and cut as far as it goes.

    The last of the values that are searched cuts most. What is cut while it is trained costs what
    fewer channels of the same share cost; these stand for it.

    Args:
        slots: name → alternative → config.
        space: parameter → values.
    """
    # layers that stay in float save nothing
    stores = [n for n in slots["store"] if not n.endswith((TRAINED, MIXED))]
    cuts = {name: config for name, config in slots["cut"].items() if config is not None}
    found = []
    for cut, config in cuts.items():
        if config.get("epochs") and "channels" in cuts:
            continue
        for store in reversed(stores):  # integers first
            chosen = {"cut": cut, "tune": "none", "store": store}
            most = {
                parameter: values_of(values)[-1]
                for parameter, values in space.items()
                if parameter.startswith(
                    (f"stages.cut.{cut}.", f"stages.store.{store}.")
                )
            }
            found.append({f"stages.{k}": v for k, v in chosen.items()} | most)
    return found or [
        {"stages.cut": "none", "stages.tune": "none", "stages.store": store}
        for store in stores
    ]


def values_of(searched: Any) -> list[Any]:
    """Values of a parameter as a spec lists them, or their labels; none of a range."""
    if isinstance(searched, Mapping):
        return list(searched.get("choices", ()))
    return list(searched)


class Reach:
    """What the trials so far show of the least that a plan can reach.

    Args:
        spec: the plan, as plain values.
    """

    def __init__(self, spec: Tree) -> None:
        stages = spec["stages"]
        slots = {k: v["one_of"] for k, v in stages.items() if is_slot(v)}
        space = spec["search"].get("space", {})
        self._unseen: list[Tree] = []
        self._unmeasured: set[str] = set()  # ways to cut
        self._trials: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        # a person may have edited the plan, so that its kinds are not known any more
        searched = [v for k, v in space.items() if k.startswith("stages.cut.")]
        self._is_known = {*slots} == {*stages} == {"cut", "tune", "store"} and all(
            map(values_of, searched)
        )
        if self._is_known:
            self._unseen = extremes(slots, space)
            self._unmeasured = {str(each["stages.cut"]) for each in self._unseen}

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended."""
        if record.trial_id == BASELINE or record.status not in ("complete", "failed"):
            return
        configuration = record.plan.configuration
        shown = [e for e in self._unseen if _stands_for(configuration, e)]
        self._unseen = [each for each in self._unseen if each not in shown]
        if record.status == "complete":
            self._trials.append((configuration, record.outcome.metrics))
            self._unmeasured -= {str(each["stages.cut"]) for each in shown}

    def verdict(
        self, objectives: Sequence[Objective], units: Mapping[str, str]
    ) -> str | None:
        """A sentence where a cost's bound is out of reach, as far as this plan goes; None where it
        is not, or where that is not known: not yet, or since all of a kind failed.

        Args:
            objectives: of the sweep; the first one is no cost.
            units: metric → unit.
        """
        if not self._is_known or self._unseen or self._unmeasured or not self._trials:
            return None
        for objective in objectives[1:]:
            said = self._missed(objective, units.get(objective.metric, ""))
            if said is not None:
                return said
        return None

    def _missed(self, objective: Objective, unit: str) -> str | None:
        limit, metric = objective.limit, objective.metric
        values = [m[metric] for _, m in self._trials if metric in m]
        if limit is None or not _misses_by_far(objective, values):
            return None
        least = objective.mode == "min"
        best = min(values) if least else max(values)
        word = "at most" if least else "at least"
        return (
            f"the goal is out of reach, as far as this plan goes: {metric} is to be {word}"
            f" {quantity(limit, unit)}, and the best of every kind of candidate, cut as far as"
            f" it goes, is {quantity(best, unit)}"
        )


def _misses_by_far(objective: Objective, values: Sequence[float]) -> bool:
    """Whether the best of some values lies beyond the bound by more than a tenth; False without a
    bound that is known, or without values.
    """
    limit = objective.limit
    if limit is None or not math.isfinite(limit) or not values:
        return False
    if objective.mode == "min":
        return min(values) > _CERTAIN_MISS * limit
    return max(values) * _CERTAIN_MISS < limit


def _stands_for(configuration: Mapping[str, Any], extreme: Tree) -> bool:
    """Whether a trial costs what this candidate costs; training changes nothing of that."""
    stored = str(configuration.get("stages.store"))
    chosen = {
        name.replace(f".{stored}.", f".{stored.removesuffix(TRAINED)}."): value
        for name, value in configuration.items()
    }
    chosen["stages.store"] = stored.removesuffix(TRAINED)
    costs = {name: v for name, v in extreme.items() if name != "stages.tune"}
    return all(chosen.get(name) == value for name, value in costs.items())
