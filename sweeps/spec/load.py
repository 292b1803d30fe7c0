"""A spec from a file, a preset or plain values: read and validated, with mistakes explained."""

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError, parse_yaml, plain, read_text


def spec_from(raw: dict[str, Any]) -> Spec:
    """A valid spec from plain values.

    Raises:
        SpecError: one line per mistake.
    """
    spec: Spec = validated(Spec, plain(raw, ""), "")
    return spec


def validated(model: type[BaseModel], value: Any, place: str) -> Any:
    """`model` from `value`, with mistakes told in the spec's terms.

    Raises:
        SpecError: one line per mistake, each with its place, the rule and the valid choices.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [
            _explain(model, detail, place) for detail in error.errors(include_url=False)
        ]
        raise SpecError("\n".join(dict.fromkeys(lines))) from error


def _explain(model: type[BaseModel], detail: Any, place: str) -> str:
    location = [
        str(part)
        for part in detail["loc"]
        if not str(part).startswith(("function-", "tuple["))
    ]
    where = ".".join([place, *location] if place else location) or "spec"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], fields, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: unknown key; {hint}valid keys: {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{where}: required, but not given"
    message = (
        detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    )
    message = message[:1].lower() + message[1:]
    return (
        f"{where}: {message}"
        if shown in message or len(location) == 0
        else f"{where}: {message}; got {shown}"
    )


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    current: Any = model
    for part in location:
        candidates = (
            _models_in(current.model_fields[part].annotation)
            if part in getattr(current, "model_fields", {})
            else []
        )
        if not candidates:
            if part.isdigit():  # an item of a list of models
                continue
            return []
        current = candidates[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [
        found
        for argument in getattr(annotation, "__args__", ())
        for found in _models_in(argument)
    ]


def portable(config: BaseModel) -> dict[str, Any]:
    """A config as JSON values, its paths absolute: nodes and later runs work in other folders."""
    return _absolute(config.model_dump(), config.model_dump(mode="json"))


def _absolute(value: Any, as_json: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, dict):
        return {
            key: _absolute(inner, as_json[str(key)]) for key, inner in value.items()
        }
    return as_json


def preset_names() -> list[str]:
    """Names of the shipped specs."""
    folder = resources.files("sweeps.presets")
    return sorted(
        Path(entry.name).stem
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """The YAML text of a shipped spec."""
    return (resources.files("sweeps.presets") / f"{name}.yaml").read_text(
        encoding="utf-8"
    )


def read_spec(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec, tiny overrides) as plain values from a YAML file or a preset's name.

    Raises:
        SpecError: no such file or preset, not YAML, not a mapping.
    """
    presets = preset_names()
    if os.sep not in source and source in presets:
        documents = parse_yaml(preset_text(source), f"preset {source}")
    elif Path(source).is_file():
        documents = parse_yaml(read_text(Path(source)), source)
    else:
        close = difflib.get_close_matches(source, presets, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(
            f"{source}: no such file or preset; {hint}presets: {', '.join(presets)}"
        )
    if (
        not documents
        or len(documents) > 2
        or not all(isinstance(d, dict) for d in documents)
    ):
        raise SpecError(
            f"{source}: a spec is one mapping (and, after ---, one mapping of overrides"
            " for --tiny)"
        )
    return documents[0], documents[1] if len(documents) == 2 else {}
