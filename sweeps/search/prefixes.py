"""Which part of a draw decides which stage.

A pipeline is a chain: the result of a stage follows from all that comes before it. Its entries
(stages and slots) in their order cut a draw into parts; two draws that agree in the first parts
share the stages of these entries, and the stage cache computes them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.search.study import Draw
from sweeps.space.slots import is_pipeline, is_slot
from sweeps.space.space import Space

Key = tuple[tuple[str, Any], ...]
"""The parameters of a draw up to an entry; empty where none is searched so far."""

REST = ""
"""Stands in the place of a stage's entry for what is never cached: measuring the final model."""


class Prefixes:
    """The chain of entries of a space.

    Attributes:
        entries: names in their order, as the spec has them under `stages`.
    """

    def __init__(self, space: Space) -> None:
        self._stages = space.spec.stages
        self.entries = list(self._stages)
        places = {name: index for index, name in enumerate(self.entries)}
        # source and data come before everything
        self._place = {d.path: places.get(d.section, 0) for d in space.dimensions}
        self._entry_of: dict[str, str] = {}
        for name, config in space.spec.stages.items():
            self._entry_of[name] = name
            for inner in config["one_of"].values() if is_slot(config) else ():
                stages = inner["stages"] if is_pipeline(inner) else {}
                self._entry_of |= dict.fromkeys(stages, name)

    def place_of(self, parameter: str) -> int:
        """Index of the entry that one of Optuna's parameters belongs to."""
        # the parameters of a layer map are named PATH[...]
        return self._place[parameter.partition("[")[0]]

    def chosen(self, draw: Mapping[str, Any], place: int) -> str | None:
        """The alternative that a draw takes of the slot at `place`; None where no slot is."""
        if place == len(self.entries):
            return None
        found = draw.get(f"stages.{self.entries[place]}")
        return None if found is None else str(found)

    def idle(self, place: int) -> set[str | None]:
        """Alternatives of the slot at `place` that are nothing; none where no slot is."""
        if place == len(self.entries):
            return set()
        entry = self._stages[self.entries[place]]
        if not is_slot(entry):
            return set()
        return {name for name, config in entry["one_of"].items() if config is None}

    def keys(self, draw: Mapping[str, Any]) -> list[Key]:
        """For each entry what draws have in common that share everything up to it."""
        parts: list[list[tuple[str, Any]]] = [[] for _ in self.entries]
        for item in sorted(draw.items()):
            parts[self.place_of(item[0])].append(item)
        found: list[Key] = []
        before: Key = ()
        for part in parts:
            before = (*before, *part)
            found.append(before)
        return found

    def crossed(self, before: Draw, after: Draw, place: int) -> Draw:
        """`before` up to and with the entry at `place`, and `after` from there on."""
        first = {k: v for k, v in before.items() if self.place_of(k) <= place}
        return first | {k: v for k, v in after.items() if self.place_of(k) > place}

    def by_entry(self, seconds: Mapping[str, float]) -> list[float]:
        """Seconds of stages by name, added up for each entry; the last number is `REST`'s."""
        found = dict.fromkeys([*self.entries, REST], 0.0)
        for name, spent in seconds.items():
            found[self._entry_of.get(name, REST)] += spent
        return list(found.values())
