"""A spec from a file, a preset or plain values: read and validated, with mistakes explained."""

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from analysis.text import without_credentials
from sweeps.spec.model import Spec
from sweeps.spec.search_options import UNION_TAGS
from sweeps.spec.yaml_text import (
    SpecError,
    Tree,
    did_you_mean,
    parse_yaml,
    plain,
    read_text,
)

RENAMED = {"watch": "trackers"}
"""Old keys of a spec and what they are called now. Version 0.2 accepts both."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def spec_from(raw: Tree) -> Spec:
    """A valid spec from plain values; its plugins must have been loaded before.

    Raises:
        SpecError: one line per mistake.
    """
    values = renamed(plain(raw, ""))[0]
    _refuse_credentials(values, "")
    return validated(Spec, values, "")


def _refuse_credentials(value: Any, place: str) -> None:
    """A spec is copied into records, tables and reports, so no password may stand in it.

    Raises:
        SpecError: an address holds one; it is not repeated in the message.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_credentials(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_credentials(item, f"{place}.{index}")
    elif isinstance(value, str) and without_credentials(value) != value:
        raise SpecError(
            f"{place}: {without_credentials(value)} holds a user, a password or a key;"
            " credentials come from the environment (for example AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
        )


def renamed(raw: Tree) -> tuple[Tree, list[str]]:
    """The plain values of a spec with today's keys, and a line for each old key in it.

    Raises:
        SpecError: a key is given under its old name and under its new one.
    """
    notes = []
    for old, new in RENAMED.items():
        if old not in raw:
            continue
        if new in raw:
            raise SpecError(f"{old}: is the old name of {new}; give {new} alone")
        raw = {new if key == old else key: value for key, value in raw.items()}
        notes.append(
            f"{old}: this key is called {new} now; version 0.3 will refuse the old name"
        )
    return raw, notes


def validated(model: type[AnyModel], value: Any, place: str) -> AnyModel:
    """`model` from `value`, with mistakes explained in the spec's terms.

    Raises:
        SpecError: one line per mistake, each with its place, the rule and the valid choices.
    """
    try:
        found = model.model_validate(value)
    except ValidationError as error:
        lines = [
            _explain(model, detail, place) for detail in error.errors(include_url=False)
        ]
        raise SpecError("\n".join(dict.fromkeys(lines))) from error
    lines = [
        f"{where}: a number is needed; {str(given).lower()} is none"
        for where, given in _truths_as_numbers(found, value, place)
    ]
    if lines:
        raise SpecError("\n".join(lines))
    return found


def _truths_as_numbers(
    found: Any, given: Any, place: str
) -> Iterator[tuple[str, bool]]:
    """Places of a validated value where true or false was given, which pydantic takes for 1 and 0
    where a number is wanted.
    """
    if isinstance(given, bool) and not isinstance(found, bool):
        if isinstance(found, int | float):
            yield place, given
    elif isinstance(given, dict) and isinstance(found, BaseModel):
        for name, field in type(found).model_fields.items():
            key = name if name in given else field.alias
            if key in given:
                where = f"{place}.{key}" if place else str(key)
                yield from _truths_as_numbers(getattr(found, name), given[key], where)
    elif isinstance(given, list) and isinstance(found, list | tuple):
        for i, (inner, item) in enumerate(zip(found, given, strict=False)):
            yield from _truths_as_numbers(inner, item, f"{place}.{i}")


def _explain(model: type[BaseModel], detail: Any, place: str) -> str:
    names_a_key = detail["type"] in ("extra_forbidden", "missing")
    inner = detail["loc"][:-1] if names_a_key else detail["loc"]
    location = [str(part) for part in inner if not _is_of_pydantic(str(part))]
    if names_a_key:  # as the user wrote it, whatever it looks like
        location.append(str(detail["loc"][-1]))
    where = ".".join([place, *location] if place else location) or "spec"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        hint = did_you_mean(location[-1], fields)
        return f"{where}: unknown key; {hint}valid keys: {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{where}: required, but not given"
    message = (
        detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    )
    message = message[:1].lower() + message[1:]
    if detail["type"] == "int_from_float":
        return (
            f"{where}: a whole number is needed, an integer; got {shown}. A range of whole"
            " numbers has a low, a high and a step without a decimal point"
        )
    return (
        f"{where}: {message}"
        if shown in message or len(location) == 0
        else f"{where}: {message}; got {shown}"
    )


def _is_of_pydantic(part: str) -> bool:
    """Whether a part of an error's place is the name of a validator or of a union's member."""
    return part.startswith(("function-", "tuple[")) or part in UNION_TAGS


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


def portable(config: BaseModel) -> Tree:
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


def read_spec(source: str) -> tuple[Tree, Tree]:
    """(spec, tiny overrides) as plain values from a YAML file or a preset's name.

    Raises:
        SpecError: no such file or preset, not YAML, not a mapping.
    """
    presets = preset_names()
    if os.sep not in source and source in presets:
        documents = parse_yaml(preset_text(source), f"preset {source}")
    elif Path(source).is_file():
        documents = parse_yaml(read_text(Path(source)), source)
    elif Path(source).is_dir():
        raise SpecError(
            f"{source}: a folder, and a spec is a YAML file or a preset; a run goes on with"
            " `sweeps resume FOLDER`"
        )
    else:
        hint = did_you_mean(source, presets)
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


def preset_comment(name: str) -> str:
    """The first paragraph of a preset's comment."""
    lines = []
    for line in preset_text(name).splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)
