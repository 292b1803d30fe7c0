"""The search space: dotted parameters and slots, and what a draw from it means.

A slot is an entry of `stages` of the form `{one_of: {alternative: config, sub-pipeline or
null}}`; it is a dimension by itself. Under a slot a path names the alternative
(`stages.init.random.args`), or all of them with `*` (`stages.init.*.args`); a dimension is
active only where the chosen alternative is one that it names.

A sub-pipeline is `{stages: {name: config, ...}}`: several stages in the place of one, under
their own names. A path names one of them after the alternative
(`stages.init.sws.sws_expand.depth`).
"""

import copy
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from typing import Any

import optuna
from pydantic import JsonValue

from sweeps.space.dimension import (
    ALWAYS,
    Condition,
    Configuration,
    Dimension,
    Draw,
    parse_dimension,
)
from sweeps.space.layer_maps import is_map, parse_map
from sweeps.space.slots import (
    chosen_stages,
    inside_alternative,
    is_pipeline,
    is_slot,
    named_alternatives,
)
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError, Tree

ROOTS = ("stages", "source", "data")
"""Sections that a dimension may name."""


class Space:
    """All dimensions of a spec, slots first, and the way from a draw to a pipeline.

    Raises:
        SpecError: a path that names nothing, or a dimension that is none.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.dimensions: list[Dimension] = list(self._slots())
        for path, given in spec.search.space.items():
            if any(d.path == path for d in self.dimensions):
                raise SpecError(
                    f"search.space.{path}: a slot is searched by itself; leave it out,"
                    f" or fix it with {path}=ALTERNATIVE"
                )
            parse = parse_map if is_map(given) else parse_dimension
            self.dimensions.append(parse(path, given, self._condition(path)))

    def _slots(self) -> Iterator[Dimension]:
        for name, entry in self.spec.stages.items():
            if not is_slot(entry):
                continue
            place, options = f"stages.{name}", entry["one_of"]
            if set(entry) != {"one_of"} or not isinstance(options, dict) or not options:
                raise SpecError(
                    f"{place}: a slot is {{one_of: {{alternative: config or null,"
                    " ...}} and nothing beside it"
                )
            if "*" in options or not all(isinstance(option, str) for option in options):
                raise SpecError(
                    f"{place}.one_of: alternatives are named by text other than '*';"
                    f" got {list(options)}"
                )
            for option, config in options.items():
                if isinstance(config, dict) and "stages" in config:
                    self._check_pipeline(f"{place}.one_of.{option}", config)
            yield Dimension(
                place, "categorical", choices={o: o for o in options}, is_slot=True
            )

    def _check_pipeline(self, place: str, config: Mapping[str, Any]) -> None:
        stages = config["stages"]
        if set(config) != {"stages"} or not isinstance(stages, dict) or not stages:
            raise SpecError(
                f"{place}: a sub-pipeline is {{stages: {{name: config, ...}}}} and"
                " nothing beside it"
            )
        for name, entry in stages.items():
            if name in self.spec.stages:
                raise SpecError(
                    f"{place}.stages.{name}: a stage of the pipeline has this name too;"
                    " choose another"
                )
            if not name.replace("_", "").replace("-", "").isalnum():
                raise SpecError(
                    f"{place}.stages: the name {name!r} may have letters, digits, _ and"
                    " - only"
                )
            if is_slot(entry):
                raise SpecError(
                    f"{place}.stages.{name}: a slot within a slot's alternative is not"
                    " possible"
                )

    def _condition(self, path: str) -> Condition:
        """When a path counts."""
        parts = path.split(".") if isinstance(path, str) else []
        if len(parts) < 2 or parts[0] not in ROOTS or not all(parts):
            raise SpecError(
                f"search.space.{path}: a dimension is named SECTION.PARAMETER with a"
                f" section of {', '.join(ROOTS)}"
            )
        if parts[0] != "stages":
            return ALWAYS
        if parts[1] not in self.spec.stages:
            raise SpecError(
                f"search.space.{path}: no stage {parts[1]!r}; the stages are"
                f" {', '.join(self.spec.stages)}"
            )
        entry = self.spec.stages[parts[1]]
        if is_slot(entry):
            return _condition_in_slot(path, parts, entry["one_of"])
        if len(parts) < 3:
            raise SpecError(
                f"search.space.{path}: names a stage that is no slot; name one of"
                " its parameters"
            )
        return ALWAYS

    def suggest(self, trial: optuna.trial.BaseTrial) -> Draw:
        """Let an Optuna trial draw: slots first, then what is active under them."""
        draw: Draw = {}
        for dimension in self.dimensions:
            if dimension.active(draw):
                draw |= dimension.suggest(trial)
        return draw

    def decode(self, draw: Mapping[str, JsonValue]) -> Configuration:
        """The configuration that a draw stands for, or the part of it that a part stands for."""
        return {d.path: d.decode(draw) for d in self.dimensions if d.is_drawn(draw)}

    def encode(self, configuration: Mapping[str, Any]) -> Draw:
        """A draw that stands for a configuration, or for a part of one (`search.points`).

        Raises:
            SpecError: a name that is no dimension, or a value outside it.
        """
        known = {d.path: d for d in self.dimensions}
        for path in configuration:
            if path not in known:
                raise SpecError(
                    f"search.points: {path!r} is no dimension; valid:"
                    f" {', '.join(known) or 'none'}"
                )
        slots = {p: v for p, v in configuration.items() if known[p].is_slot}
        for path in configuration:
            slot = known[path].slot
            if slot in slots and not known[path].active(slots):
                raise SpecError(
                    f"search.points: {path!r} means nothing where {slot} is"
                    f" {slots[slot]!r}; leave one of them out"
                )
        return _joined(
            *[known[path].encode(value) for path, value in configuration.items()]
        )

    def resolve(self, draw: Mapping[str, JsonValue]) -> Tree:
        """The raw spec with values in place and slots replaced by what was chosen.

        Raises:
            SpecError: a path leads through something that is no mapping.
        """
        raw = copy.deepcopy(self.spec.raw)
        for dimension in self.dimensions:
            if dimension.is_slot or not dimension.is_drawn(draw):
                continue
            parts = dimension.path.split(".")
            if dimension.slot is not None:
                alternative = str(draw[dimension.slot])
                config = raw["stages"][parts[1]]["one_of"][alternative]
                parts = [
                    *parts[:2],
                    "one_of",
                    alternative,
                    *inside_alternative(config, parts[3:]),
                ]
            set_path(raw, parts, dimension.value(draw), dimension.path)
        stages: Tree = {}
        for name, entry in raw["stages"].items():
            chosen = (
                chosen_stages(name, entry, str(draw[f"stages.{name}"]))
                if is_slot(entry)
                else {name: entry}
            )
            twice = [inner for inner in chosen if inner in stages]
            if twice:
                raise SpecError(
                    f"stages.{name}: a stage {twice[0]!r} comes from another slot too;"
                    " choose another name"
                )
            stages |= chosen
        raw["stages"] = stages
        return raw

    def grid(self) -> list[Draw] | None:
        """Every draw, or None where a dimension is a continuum."""
        draws: list[Draw] = []
        for chosen in self._alternatives():
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            axes = [d.draws() for d in free]
            if any(axis is None for axis in axes):
                return None
            for values in product(*[axis for axis in axes if axis is not None]):
                draws.append(_joined(chosen, *values))
        return draws

    def identity(self, draw: Mapping[str, JsonValue]) -> str:
        """The same text for draws that mean the same: layer maps are decoded, and numbers may
        be rounded differently.
        """
        return json.dumps(
            {
                path: f"{value:.12g}" if isinstance(value, float) else value
                for path, value in self.decode(draw).items()
            }
        )

    def size(
        self,
        stages: Sequence[str] | None = None,
        within: tuple[str, str, Sequence[str]] | None = None,
    ) -> int | None:
        """Number of draws (of what concerns the named stages, source and data); None
        is a continuum.

        Args:
            stages: names of the pipeline's entries; default: all.
            within: (slot's entry, alternative, stages of its sub-pipeline): beside
                `stages`, with that alternative.
        """
        mine = [
            d
            for d in self.dimensions
            if stages is None or d.section in (*stages, "source", "data")
        ]
        fixed: Draw = {}
        if within is not None:
            slot, alternative, inner = within
            fixed = {f"stages.{slot}": alternative}
            mine += [
                d for d in self.dimensions if d.section == slot and d.stage in inner
            ]
        slots = [d for d in mine if d.is_slot]
        total = 0
        for labels in product(*[d.samples() for d in slots]):
            chosen = fixed | {
                d.path: label for d, label in zip(slots, labels, strict=True)
            }
            axes = [d.num_draws() for d in mine if not d.is_slot and d.active(chosen)]
            if any(axis is None for axis in axes):
                return None
            total += math.prod(axis for axis in axes if axis is not None)
        return total

    def probes(self) -> Iterator[Draw]:
        """Draws that between them use every alternative and every dimension's samples."""
        for chosen in self._alternatives():
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            base = _joined(chosen, *[d.probes()[0] for d in free])
            yield base
            for dimension in free:
                for probe in dimension.probes()[1:]:
                    yield _joined(base, probe)

    def corners(self) -> Iterator[Draw]:
        """`probes`, and under every alternative the draw of all other ends together."""
        yield from self.probes()
        for chosen in self._alternatives():
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            yield _joined(chosen, *[d.probes()[-1] for d in free])

    def interior(self, total: int, least: int) -> Iterator[Draw]:
        """Draws from within the space, the same each time: a Latin hypercube for every choice of
        the slots.

        The values of a dimension are cut into as many parts as there are draws, all alike, and
        each part is drawn once: of a dimension with fewer values each one occurs.

        Args:
            total: draws in all.
            least: draws for a choice of the slots, where that is more.
        """
        alternatives = list(self._alternatives())
        count = max(total // len(alternatives), least)
        for chosen in alternatives:
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            for number in range(count if free else 0):
                quantile = partial(_quantile, number, count)
                yield _joined(chosen, *[d.at(quantile) for d in free])

    def completed(self, part: Draw, place: float = 0.0) -> Draw:
        """A whole draw that contains this part.

        Args:
            place: of each dimension's range, where what is lacking is taken from: 0 is the first
                value, just below 1 the last.
        """
        draw: Draw = {}
        for dimension in self.dimensions:
            if dimension.active(draw):
                added = dimension.at(lambda name: place)
                draw |= {name: part.get(name, value) for name, value in added.items()}
        return draw

    def _alternatives(self) -> Iterator[Draw]:
        """Every choice of the slots."""
        slots = [d for d in self.dimensions if d.is_slot]
        for labels in product(*[d.samples() for d in slots]):
            yield {d.path: label for d, label in zip(slots, labels, strict=True)}


def _quantile(number: int, count: int, name: str) -> float:
    """In [0, 1), of a parameter in draw `number` of `count`: the middle of its part then."""
    return (_order_of_parts(name, count)[number] + 0.5) / count


@lru_cache(maxsize=256)
def _order_of_parts(name: str, count: int) -> list[int]:
    """0 to count - 1 in an order of this parameter's own, the same in every process."""
    return random.Random(name).sample(range(count), count)


def _condition_in_slot(
    path: str, parts: Sequence[str], options: Mapping[str, Any]
) -> Condition:
    """When a path into a slot with these alternatives counts."""
    wanted, following = (*parts[2:4], "", "")[:2]
    filled = named_alternatives(options, wanted, following)
    nested = bool(filled) and all(is_pipeline(options[o]) for o in filled)
    if not filled or len(parts) < (5 if nested else 4):
        deeper = ""
        if any(map(is_pipeline, options.values())):
            deeper = "; ALTERNATIVE.STAGE.PARAMETER in a sub-pipeline"
        raise SpecError(
            f"search.space.{path}: stages.{parts[1]} is a slot; write"
            f" stages.{parts[1]}.ALTERNATIVE.PARAMETER with an alternative of"
            f" {', '.join(options)}, or * for all{deeper}"
        )
    for option in filled if nested else ():
        if following not in options[option]["stages"]:
            known = ", ".join(options[option]["stages"])
            raise SpecError(
                f"search.space.{path}: no stage {following!r} in {option}; its"
                f" stages are {known}"
            )
    return Condition(f"stages.{parts[1]}", filled, following if nested else None)


def _joined(*parts: Draw) -> Draw:
    return {name: drawn for part in parts for name, drawn in part.items()}


def set_path(raw: Tree, parts: Sequence[str], value: Any, shown: str) -> None:
    """Set a nested value, making the mappings on the way; a mapping is laid over the one
    that stands there.

    Raises:
        SpecError: the way leads through a plain value.
    """
    node: Any = raw
    for i, part in enumerate(parts[:-1]):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise SpecError(
                f"{shown}: {'.'.join(parts[: i + 1])} is {node!r}, not a mapping with"
                " parameters"
            )
    before = node.get(parts[-1])
    node[parts[-1]] = (
        {**before, **value}
        if isinstance(before, dict) and isinstance(value, dict)
        else value
    )
