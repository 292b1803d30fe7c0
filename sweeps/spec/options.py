"""Every option of a spec in words: name, type, default, unit and meaning.

All of it comes from the JSON schema of the validated classes, so that a new option is described
by the field that declares it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any

from pydantic import BaseModel, TypeAdapter

from analysis.contract import Objective
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import Tree, did_you_mean

OBJECTIVES = "objectives"
UNIT = "unit"
"""Key of a field's `json_schema_extra` for a unit that its name does not say."""
UNITS = {
    "batch": "images",
    "bits": "bits",
    "cpus": "cores",
    "epochs": "epochs",
    "gpus": "GPUs",
    "hours": "hours",
    "images": "images",
    "ms": "ms",
    "px": "px",
    "seconds": "s",
    "steps": "steps",
    "threads": "threads",
    "trials": "trials",
    "workers": "processes",
}
"""Word in the name of a number → its unit."""
_PLAIN_TYPES = {
    "array": "list",
    "boolean": "bool",
    "integer": "int",
    "number": "float",
    "object": "mapping",
    "string": "str",
}
_LIMITS = {
    "minimum": "≥ ",
    "exclusiveMinimum": "> ",
    "maximum": "≤ ",
    "exclusiveMaximum": "< ",
}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: dotted below its section or stage.
        type: what it takes, with its limits.
        default: as YAML writes it; None where a value is required.
        unit: of a number; "" where it has none.
        meaning: its description.
    """

    name: str
    type: str
    default: str | None
    unit: str
    meaning: str

    def is_like(self, other: "Option") -> bool:
        """Whether the two differ in their default at most."""
        mine = (self.name, self.type, self.unit, self.meaning)
        return mine == (other.name, other.type, other.unit, other.meaning)


def sections() -> dict[str, str]:
    """The sections of a spec that have options, and what each is for."""
    return {
        name: field.description or ""
        for name, field in Spec.model_fields.items()
        if name == OBJECTIVES or _is_config(field.annotation)
    }


def options_of_spec() -> list[Option]:
    """The keys of a spec itself."""
    return [option for option in _options(Spec) if "." not in option.name]


def options_of_section(name: str) -> list[Option]:
    """The options of a section.

    Raises:
        ValueError: a spec has no such section.
    """
    known = sections()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(
            f"a spec has no section {name!r}; {hint}valid: {', '.join(known)}"
        )
    if name == OBJECTIVES:
        return list(_walk(TypeAdapter(Objective).json_schema(), {}))
    return _options(Spec.model_fields[name].annotation)


def options_of_stage(stage: type[BaseModel]) -> list[Option]:
    """The options of a stage."""
    return _options(stage)


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _options(model: Any) -> list[Option]:
    """A class's options: those that it declares itself before those of its base classes."""
    schema = model.model_json_schema()
    declared = (name for base in model.__mro__ for name in get_annotations(base))
    order = {name: place for place, name in enumerate(dict.fromkeys(declared))}
    shapes = schema["properties"].items()
    by_place = sorted(shapes, key=lambda item: order.get(item[0], len(order)))
    return list(_walk(schema | {"properties": dict(by_place)}, _inherited(model)))


def _inherited(model: type[BaseModel]) -> dict[str, str]:
    """Name → meaning that a base class gives: a stage that changes only a default is silent."""
    found: dict[str, str] = {}
    for base in model.__mro__:
        if issubclass(base, BaseModel):
            for name, field in base.model_fields.items():
                if field.description:
                    found.setdefault(name, field.description)
    return found


def _walk(schema: Tree, inherited: Mapping[str, str]) -> Iterator[Option]:
    """The options of an object's schema, those of nested objects after their own."""
    definitions = schema.get("$defs", {})
    yield from _of_object(schema, definitions, "", inherited)


def _of_object(
    schema: Tree, definitions: Tree, prefix: str, inherited: Mapping[str, str]
) -> Iterator[Option]:
    required = schema.get("required", ())
    for name, shape in schema["properties"].items():
        nested = dict(_nested(shape, definitions))
        yield Option(
            prefix + name,
            _type(shape, definitions),
            None if name in required else _default(shape, bool(nested)),
            _unit(name, shape, definitions),
            shape.get("description") or inherited.get(name, ""),
        )
        for inner, definition in nested.items():
            begin = f"{prefix}{name}.{inner}"
            yield from _of_object(definition, definitions, begin, {})


def _nested(shape: Tree, definitions: Tree) -> Iterator[tuple[str, Tree]]:
    """What begins the names below an option, and the schemas of the objects that it may hold."""
    for branch in _branches(shape):
        target = _resolved(branch, definitions)
        if "properties" in target:
            yield "", target
        patterns = branch.get("patternProperties", {}).values()
        for further in (branch.get("additionalProperties"), *patterns):
            named = _resolved(further, definitions) if isinstance(further, dict) else {}
            if "properties" in named:
                yield "NAME.", named


def _branches(shape: Tree) -> Sequence[Tree]:
    return shape.get("anyOf") or shape.get("oneOf") or [shape]


def _resolved(shape: Tree, definitions: Tree) -> Tree:
    name = shape.get("$ref", "").rpartition("/")[2]
    target: Tree = definitions.get(name, {}) if name else shape
    return target


def _type(shape: Tree, definitions: Tree) -> str:
    parts = [_one_type(branch, definitions) for branch in _branches(shape)]
    return " or ".join(dict.fromkeys(part for part in parts if part != "null"))


def _one_type(branch: Tree, definitions: Tree) -> str:
    target = _resolved(branch, definitions)
    if "enum" in target:
        return " | ".join(str(value) for value in target["enum"])
    if "const" in target:
        return str(target["const"])
    kind = target.get("type")
    if kind == "array":
        return _type_of_list(target, definitions)
    if target.get("format") == "path":
        return "path"
    if kind is None:
        return "any value" if "anyOf" not in target else _type(target, definitions)
    limits = [f"{sign}{target[key]}" for key, sign in _LIMITS.items() if key in target]
    name = _PLAIN_TYPES.get(kind, str(kind))
    return f"{name} {', '.join(limits)}" if limits else name


def _type_of_list(target: Tree, definitions: Tree) -> str:
    if "prefixItems" in target:
        parts = [_type(item, definitions) for item in target["prefixItems"]]
        if len(set(parts)) == 1:
            return f"{len(parts)} × {parts[0]}"
        return f"[{', '.join(parts)}]"
    items = target.get("items")
    if not items:
        return "list"
    each = _type(items, definitions)
    return f"list of ({each})" if " | " in each else f"list of {each}"


def _default(shape: Tree, is_nested: bool) -> str:
    """The default as YAML writes it; "" where the options below have their own."""
    value = shape.get("default", _EMPTY.get(shape.get("type", ""), ""))
    return "" if is_nested and isinstance(value, dict) else as_yaml(value)


_EMPTY: dict[str, Any] = {"array": [], "object": {}}
"""What a factory makes as a default; a schema does not tell it."""


def as_yaml(value: Any) -> str:
    """A plain value on one line, as a spec may say it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(each) for each in value)}]"
    if isinstance(value, dict):
        return (
            f"{{{', '.join(f'{key}: {as_yaml(each)}' for key, each in value.items())}}}"
        )
    return '""' if value == "" else str(value)


def _unit(name: str, shape: Tree, definitions: Tree) -> str:
    if UNIT in shape:
        return str(shape[UNIT])
    kinds = {_resolved(branch, definitions).get("type") for branch in _branches(shape)}
    if not kinds & {"integer", "number"}:
        return ""
    return next((UNITS[word] for word in name.split("_") if word in UNITS), "")
