"""The search space: dotted parameters, slots with alternatives, and what an assignment resolves to.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import optuna

from compress.pipeline import NamedStage
from sweeps.space.dimension import Assignment, Dimension, leaves, parse_dimension
from sweeps.space.layer_maps import is_map, parse_map
from sweeps.spec.model import Spec, build_stage, validated
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, SourceConfig

ROOTS = ("stages", "source", "data")
"""Sections that a dimension may name."""


def is_slot(entry: Any) -> bool:
    return isinstance(entry, dict) and "one_of" in entry


def is_pipeline(config: Any) -> bool:
    """Whether an alternative of a slot is a sub-pipeline."""
    return isinstance(config, dict) and isinstance(config.get("stages"), dict)


def named_alternatives(
    options: Mapping[str, Any], wanted: str, following: str | None
) -> frozenset[str]:
    """The alternatives, not empty ones, that the part `wanted` of a path means; `following`
    is the part after it.

    `*` means the sub-pipelines with a stage of that name, or where there are none, every
    alternative of one stage.
    """
    if wanted != "*":
        return frozenset({wanted} if options.get(wanted) is not None else ())
    nested = frozenset(
        o
        for o, config in options.items()
        if is_pipeline(config) and following in config["stages"]
    )
    return nested or frozenset(
        o
        for o, config in options.items()
        if config is not None and not is_pipeline(config)
    )


def inside_alternative(config: Any, parts: Sequence[str]) -> list[str]:
    """Keys within an alternative's config for what follows it in a path."""
    return (
        ["stages", *parts]
        if is_pipeline(config) and parts and parts[0] != "stages"
        else list(parts)
    )


class Space:
    """All dimensions of a spec, slots first, and the way from an assignment to a pipeline.

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
            where = self._condition(path)
            parse = parse_map if is_map(given) else parse_dimension
            self.dimensions.append(parse(path, given, **where))

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

    def _condition(self, path: str) -> dict[str, Any]:
        """Where a path leads: its slot, the alternatives under which it counts, its stage
        of their sub-pipelines.
        """
        parts = path.split(".") if isinstance(path, str) else []
        if len(parts) < 2 or parts[0] not in ROOTS or not all(parts):
            raise SpecError(
                f"search.space.{path}: a dimension is named SECTION.PARAMETER with a"
                f" section of {', '.join(ROOTS)}"
            )
        if parts[0] != "stages":
            return {}
        if parts[1] not in self.spec.stages:
            raise SpecError(
                f"search.space.{path}: no stage {parts[1]!r}; the stages are"
                f" {', '.join(self.spec.stages)}"
            )
        entry = self.spec.stages[parts[1]]
        if not is_slot(entry):
            if len(parts) < 3:
                raise SpecError(
                    f"search.space.{path}: names a stage that is no slot; name one of"
                    " its parameters"
                )
            return {}
        options = entry["one_of"]
        wanted, following = (*parts[2:4], "", "")[:2]
        filled = named_alternatives(options, wanted, following)
        nested = bool(filled) and all(is_pipeline(options[o]) for o in filled)
        if not filled or len(parts) < (5 if nested else 4):
            raise SpecError(
                f"search.space.{path}: stages.{parts[1]} is a slot; write"
                f" stages.{parts[1]}.ALTERNATIVE.PARAMETER with an alternative of"
                f" {', '.join(options)}, or * for all"
                + (
                    "; ALTERNATIVE.STAGE.PARAMETER in a sub-pipeline"
                    if any(map(is_pipeline, options.values()))
                    else ""
                )
            )
        for option in filled if nested else ():
            if following not in options[option]["stages"]:
                known = ", ".join(options[option]["stages"])
                raise SpecError(
                    f"search.space.{path}: no stage {following!r} in {option}; its"
                    f" stages are {known}"
                )
        return {
            "slot": f"stages.{parts[1]}",
            "alternatives": filled,
            "stage": following if nested else None,
        }

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """A valid assignment: slots first, then what is active under them."""
        drawn: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.active(drawn):
                drawn |= dimension.draw(trial)
        return drawn

    def resolve(self, assignment: Assignment) -> dict[str, Any]:
        """The raw spec with values in place and slots replaced by what was chosen.

        Raises:
            SpecError: a path leads through something that is no mapping.
        """
        raw = copy.deepcopy(self.spec.raw)
        for dimension in self.dimensions:
            if dimension.is_slot or not dimension.is_drawn(assignment):
                continue
            parts = dimension.path.split(".")
            if dimension.slot is not None:
                alternative = assignment[dimension.slot]
                config = raw["stages"][parts[1]]["one_of"][alternative]
                parts = [
                    *parts[:2],
                    "one_of",
                    alternative,
                    *inside_alternative(config, parts[3:]),
                ]
            set_path(raw, parts, dimension.drawn_value(assignment), dimension.path)
        stages: dict[str, Any] = {}
        for name, entry in raw["stages"].items():
            chosen = (
                chosen_stages(name, entry, assignment[f"stages.{name}"])
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

    def grid(self) -> list[dict[str, Any]] | None:
        """Every assignment, or None where a dimension is a continuum."""
        slots = [d for d in self.dimensions if d.is_slot]
        points: list[dict[str, Any]] = []
        for labels in product(*[d.samples() for d in slots]):
            chosen = {d.path: label for d, label in zip(slots, labels, strict=True)}
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            axes = [d.draws() for d in free]
            if any(axis is None for axis in axes):
                return None
            for values in product(*[axis for axis in axes if axis is not None]):
                points.append(_joined(chosen, *values))
        return points

    def identity(self, assignment: Mapping[str, Any]) -> str:
        """The same text for assignments that mean the same: maps are decoded, numbers may
        be rounded otherwise.
        """
        shown = {
            d.path: d.shown(assignment)
            for d in self.dimensions
            if d.is_drawn(assignment)
        }
        return json.dumps(
            {
                path: f"{v:.12g}" if isinstance(v, float) else v
                for path, v in shown.items()
            }
        )

    def size(
        self,
        stages: Sequence[str] | None = None,
        within: tuple[str, str, Sequence[str]] | None = None,
    ) -> int | None:
        """Number of assignments (of what concerns the named stages, source and data); None
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
        fixed: dict[str, Any] = {}
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

    def probes(self) -> Iterator[dict[str, Any]]:
        """Assignments that between them use every alternative and every dimension's samples."""
        slots = [d for d in self.dimensions if d.is_slot]
        for labels in product(*[d.samples() for d in slots]):
            chosen = {d.path: label for d, label in zip(slots, labels, strict=True)}
            free = [d for d in self.dimensions if not d.is_slot and d.active(chosen)]
            base = _joined(chosen, *[d.probes()[0] for d in free])
            yield base
            for dimension in free:
                for probe in dimension.probes()[1:]:
                    yield _joined(base, probe)

    def point(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A user's point with labels for values.

        Raises:
            SpecError: a name that is no dimension, or a value outside it.
        """
        known = {d.path: d for d in self.dimensions}
        for path in given:
            if path not in known:
                raise SpecError(
                    f"search.points: {path!r} is no dimension; valid:"
                    f" {', '.join(known) or 'none'}"
                )
        return _joined(*[known[path].placed(value) for path, value in given.items()])


def _joined(*parts: Assignment) -> dict[str, Any]:
    return {name: drawn for part in parts for name, drawn in part.items()}


def chosen_stages(
    slot: str, entry: Mapping[str, Any], alternative: str
) -> dict[str, Any]:
    """The stages that a slot's alternative stands for: none, one under the slot's name, or
    a sub-pipeline's.
    """
    config = entry["one_of"][alternative]
    if config is None:
        return {}
    if is_pipeline(config):
        return dict(config["stages"])
    return {
        slot: {"stage": alternative, **config} if isinstance(config, dict) else config
    }


def set_path(raw: dict[str, Any], parts: Sequence[str], value: Any, shown: str) -> None:
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


@dataclass(frozen=True)
class Resolved:
    """A trial's part of the spec, validated: source, data, stages, and the flat config for
    its record.
    """

    source: SourceConfig
    data: DataConfig
    stages: tuple[NamedStage, ...]
    config: dict[str, Any]


def resolved_trial(space: Space, assignment: Assignment) -> Resolved:
    """Validate what an assignment resolves to.

    Raises:
        SpecError: with the place in the spec.
    """
    raw = space.resolve(assignment)
    source = validated(SourceConfig, raw["source"], "source")
    data = validated(DataConfig, raw["data"], "data")
    stages: list[NamedStage] = []
    for name, entry in raw["stages"].items():
        if not isinstance(entry, dict):
            raise SpecError(
                f"stages.{name}: a stage is a mapping of its parameters; got {entry!r}"
            )
        kind = entry.get("stage", name)
        place = f"stages.{name}"
        if not isinstance(kind, str):
            raise SpecError(f"{place}.stage: the name of a stage; got {kind!r}")
        config = {key: value for key, value in entry.items() if key != "stage"}
        stages.append(NamedStage(name, kind, build_stage(kind, config, place)))
    return Resolved(
        source,
        data,
        tuple(stages),
        _flat_config(space, assignment, source, data, stages),
    )


def _flat_config(
    space: Space,
    assignment: Assignment,
    source: SourceConfig,
    data: DataConfig,
    stages: Sequence[NamedStage],
) -> dict[str, Any]:
    flat: dict[str, Any] = {
        d.path.removeprefix("stages."): assignment[d.path]
        for d in space.dimensions
        if d.is_slot
    }
    sections = {
        "source": source,
        "data": data,
        **{stage.name: stage.config for stage in stages},
    }
    for name, section in sections.items():
        flat |= dict(leaves(name, section.model_dump(mode="json")))
    return flat
