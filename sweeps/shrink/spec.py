"""The spec that `sweeps shrink` writes: plain YAML that a person reads, edits and runs again."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sweeps.shrink.candidates import epoch_seconds, points
from sweeps.shrink.look import Look, Speed
from sweeps.shrink.methods import (
    INTEGER_RUNTIMES,
    LADDER,
    TUNED_EPOCHS,
    Methods,
    methods_for,
)
from sweeps.shrink.wish import Wish
from sweeps.spec.yaml_text import Tree

RUN = "run"
"""Name of the run in the folder that a user gets."""
_SHORT_TUNING = 0.1
"""Share of the time that a short tuning of the whole model takes."""
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


def spec_for(
    wish: Wish, seen: Look, speed: Speed, folder: Path
) -> tuple[Tree, Methods]:
    """The spec as plain values, and the methods that it searches."""
    seconds = 3600 * wish.hours * _SHORT_TUNING
    images = int(seconds / max(speed.train_seconds, 1e-9))
    methods = methods_for(
        seen,
        wish.runtime,
        wish.counted(speed),
        images,
        is_timed=wish.is_timed,
        ladder=_ladder(wish, speed),
    )
    search: Tree = {"hours": wish.hours}
    of_epoch = epoch_seconds({}, methods, speed)
    if of_epoch:
        search["epoch_seconds"] = float(f"{of_epoch:.3g}")
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


def _ladder(wish: Wish, speed: Speed) -> tuple[float, ...]:
    """Shares that may be left by what is cut. Of bytes and operations, with that which just keeps
    the goal: they follow from the share as no time does.
    """
    shares = {*LADDER}
    if wish.hardest(speed).quantity in ("bytes", "macs"):
        stores = ["int8", "int4"] if wish.runtime in INTEGER_RUNTIMES else ["float"]
        for store in stores:
            share = math.floor(100 * (wish.left_to_cut(speed, store) or 0))
            if LADDER[-1] < share / 100 < 1:
                shares.add(share / 100)
    return tuple(sorted(shares, reverse=True))


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
