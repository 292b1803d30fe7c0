"""What the system says about itself: stages, presets, the spec's schema, a checked spec."""

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.numbers import plain
from compress.metrics import metrics
from compress.pipeline import STAGES
from compress.stage import Stage
from sweeps.space.sweep import Sweep
from sweeps.spec.load import preset_text
from sweeps.spec.model import Spec


def stage_table(stage: type[Stage]) -> Table:
    """Parameters of a stage: name, type, default, meaning; nested configs as dotted names."""
    table = Table(
        "parameter",
        "type",
        "default",
        "meaning",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for name, field, kind in _parameters(stage):
        default = "[red]required[/]" if field.is_required() else escape(_default(field))
        table.add_row(
            f"  {name}",
            f"[cyan]{escape(kind)}[/]",
            default,
            escape(field.description or ""),
        )
    return table


def _parameters(
    model: type[BaseModel], prefix: str = ""
) -> list[tuple[str, FieldInfo, str]]:
    rows = []
    for name, field in model.model_fields.items():
        kind = _type_name(field.annotation)
        nested = [
            a
            for a in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        rows.append((prefix + name, field, kind))
        if nested:
            rows += _parameters(nested[0], f"{prefix}{name}.")
    return rows


def _type_name(annotation: Any) -> str:
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not getattr(annotation, "__args__", ())
        else str(annotation)
    )
    for noise in ("typing.", "pathlib.", "trainers.config.", "NoneType", "Literal"):
        text = text.replace(noise, "None" if noise == "NoneType" else "")
    return text.replace("_local.", "")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return "null" if value is None else str(value)


def preset_comment(name: str) -> str:
    """The first paragraph of a preset's comment."""
    lines = []
    for line in preset_text(name).splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)


def spec_schema() -> dict[str, Any]:
    """JSON schema of a spec; stages by their kind."""
    from trainers.data.open import openers

    schema = Spec.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions["DataConfig"]["properties"]["dataset"]["enum"] = list(openers())
    branches, by_name = [], {}
    for kind, stage in STAGES.items():
        own = stage.model_json_schema()
        definitions |= own.pop("$defs", {})
        own["properties"] = {"stage": {"const": kind}, **own["properties"]}
        own.pop("required", None)  # a required parameter may come from search.space
        definitions[f"stage_{kind}"] = own
        is_kind = {"properties": {"stage": {"const": kind}}, "required": ["stage"]}
        branches.append({"if": is_kind, "then": {"$ref": f"#/$defs/stage_{kind}"}})
        # an entry named like a stage is one, unless it says otherwise
        other = {"anyOf": [{"required": ["stage"]}, {"required": ["one_of"]}]}
        by_name[kind] = {
            "if": other,
            "then": {"$ref": "#/$defs/entry"},
            "else": {"$ref": f"#/$defs/stage_{kind}"},
        }
    kinds = {"properties": {"stage": {"enum": list(STAGES)}}, "required": ["stage"]}
    definitions["stage"] = {"type": "object", **kinds, "allOf": branches}
    inner = {
        "type": "object",
        "properties": by_name,
        "additionalProperties": {"$ref": "#/$defs/stage"},
    }
    definitions["pipeline"] = {
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {"stages": inner},
    }
    alternative = {
        "anyOf": [
            {"$ref": "#/$defs/stage"},
            {"$ref": "#/$defs/pipeline"},
            {"type": "null"},
        ]
    }
    several = {
        "anyOf": [{"required": ["stages"]}, {"required": ["stage"]}, {"type": "null"}]
    }
    named = {
        kind: {
            "if": several,
            "then": alternative,
            "else": {"$ref": f"#/$defs/stage_{kind}"},
        }
        for kind in by_name
    }
    options = {
        "type": "object",
        "properties": named,
        "additionalProperties": alternative,
    }
    definitions["slot"] = {
        "type": "object",
        "required": ["one_of"],
        "additionalProperties": False,
        "properties": {"one_of": options},
    }
    definitions["entry"] = {
        "anyOf": [{"$ref": "#/$defs/slot"}, {"$ref": "#/$defs/stage"}]
    }
    schema["properties"]["stages"] |= {
        "properties": by_name,
        "additionalProperties": {"$ref": "#/$defs/entry"},
    }
    objective = definitions["Objective"]["properties"]["metric"]
    objective["anyOf"] = [{"enum": sorted(metrics())}, {"type": "string"}]
    objective.pop("type", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def print_sweep(sweep: Sweep, console: Console) -> None:
    """The resolved pipeline, the space, and how much work it is."""
    spec, search = sweep.spec, sweep.spec.search
    console.print(f"[bold]{escape(spec.name)}[/]  is valid", highlight=False)
    console.print(
        f"source     {escape(str(spec.source.model or spec.source.checkpoint))}   data"
        f" {spec.data.dataset}",
        highlight=False,
    )
    counts = dict(sweep.distinct_stages())
    table = Table(
        "stage",
        "kind",
        "phase",
        "model after it",
        "computed at most",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for stage, arch in zip(sweep.example, sweep.archs, strict=True):
        n = counts.get(stage.name, 0)
        args = " ".join(f"{k}={plain(v)}" for k, v in arch.args.items())
        table.add_row(
            stage.name,
            stage.kind,
            stage.config.phase,
            escape(f"{arch.name} {args}"),
            _times(n),
        )
    console.print(table)
    example = {stage.name for stage in sweep.example}
    others = [
        f"{name} {_times(n)}"
        for name, n in counts.items()
        if name not in example | set(spec.stages)
    ]
    if others:
        console.print(
            f"in other alternatives, at most: {escape(', '.join(others))}",
            highlight=False,
        )
    space = Table(
        "dimension", "values", "when", box=None, pad_edge=False, header_style="dim"
    )
    for dimension in sweep.space.dimensions:
        when = (
            f"{dimension.slot} in {', '.join(sorted(dimension.alternatives))}"
            if dimension.slot
            else ""
        )
        space.add_row(dimension.path, escape(dimension.describe()), escape(when))
    if sweep.space.dimensions:
        console.print(space)
    size = sweep.space.size()
    trials = sweep.num_configurations * search.replicates
    goals = ", ".join(
        f"{o.mode} {o.metric}"
        + (f" (bound {o.bound:g})" if o.bound is not None else "")
        for o in spec.objectives
    )
    console.print(
        f"objectives {goals}\nspace     "
        f" {'a continuum' if size is None else f'{size:,} configurations'}, searched by"
        f" {search.sampler}\ntrials     {trials} = {sweep.num_configurations}"
        f" configurations × {search.replicates} seeds\nrun folder {spec.run_folder}",
        highlight=False,
        soft_wrap=True,
    )
