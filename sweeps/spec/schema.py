"""The JSON schema of a spec, for editors: what `Spec` says, and the stages by their kind."""

from typing import Any

from compress.metrics import metrics
from compress.pipeline import stages
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import Tree
from trainers.data.open import openers
from trainers.training.epoch_metrics import epoch_metrics

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema() -> Tree:
    """The schema, with the stages, data sets and metrics of loaded plugins."""
    schema = Spec.model_json_schema()
    definitions: Tree = schema.setdefault("$defs", {})
    kinds = list(stages())
    for kind in kinds:
        definitions |= _stage_definitions(kind)
    definitions |= _entry_definitions(kinds)
    schema["properties"]["stages"] |= {
        "properties": {kind: _entry_named_like(kind) for kind in kinds},
        "additionalProperties": _ref("entry"),
    }
    _suggest(definitions["DataConfig"], "dataset", openers(), only=True)
    _suggest(definitions["Objective"], "metric", sorted(metrics()))
    _suggest(definitions["EarlyStopping"], "metric", epoch_metrics())
    return {"$schema": DRAFT, **schema}


def _ref(name: str) -> Tree:
    return {"$ref": f"#/$defs/{name}"}


def _stage_definitions(kind: str) -> Tree:
    """A stage's parameters as `stage_KIND`, and what these refer to."""
    own = stages()[kind].model_json_schema()
    inner: Tree = own.pop("$defs", {})
    own["properties"] = {"stage": {"const": kind}, **own["properties"]}
    own.pop("required", None)  # a required parameter may come from search.space
    return inner | {f"stage_{kind}": own}


def _entry_definitions(kinds: list[str]) -> Tree:
    """What an entry of `stages` may be: a stage, or a slot with alternatives."""
    branches = [
        {
            "if": {"properties": {"stage": {"const": kind}}, "required": ["stage"]},
            "then": _ref(f"stage_{kind}"),
        }
        for kind in kinds
    ]
    alternative = {"anyOf": [_ref("stage"), _ref("pipeline"), {"type": "null"}]}
    return {
        "stage": {
            "type": "object",
            "properties": {"stage": {"enum": kinds}},
            "required": ["stage"],
            "allOf": branches,
        },
        "pipeline": _object_with(
            "stages",
            {kind: _entry_named_like(kind) for kind in kinds},
            _ref("stage"),
        ),
        "slot": _object_with(
            "one_of",
            {kind: _alternative_named_like(kind, alternative) for kind in kinds},
            alternative,
        ),
        "entry": {"anyOf": [_ref("slot"), _ref("stage")]},
    }


def _object_with(key: str, named: Tree, other: Tree) -> Tree:
    """A mapping with one key, whose value maps names to these schemas."""
    inner = {"type": "object", "properties": named, "additionalProperties": other}
    return {
        "type": "object",
        "required": [key],
        "additionalProperties": False,
        "properties": {key: inner},
    }


def _entry_named_like(kind: str) -> Tree:
    """An entry with the name of a stage is that stage, unless it says otherwise."""
    return {
        "if": {"anyOf": [{"required": ["stage"]}, {"required": ["one_of"]}]},
        "then": _ref("entry"),
        "else": _ref(f"stage_{kind}"),
    }


def _alternative_named_like(kind: str, alternative: Tree) -> Tree:
    """As `_entry_named_like`, in a slot."""
    return {
        "if": {
            "anyOf": [
                {"required": ["stages"]},
                {"required": ["stage"]},
                {"type": "null"},
            ]
        },
        "then": alternative,
        "else": _ref(f"stage_{kind}"),
    }


def _suggest(definition: Tree, field: str, names: Any, only: bool = False) -> None:
    """Let an editor complete a text field; `only`: other texts are wrong."""
    schema = definition["properties"][field]
    if only:
        schema["enum"] = list(names)
        return
    schema.pop("type", None)
    schema["anyOf"] = [{"enum": list(names)}, {"type": "string"}]
