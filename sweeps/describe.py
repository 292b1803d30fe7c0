"""What the system says about itself on a terminal: stages, metrics, a checked sweep."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.contract import Objective, RelativeBound
from analysis.numbers import plain
from compress.metrics import metrics
from trainers.config import FitOptions, TrainConfig
from trainers.training.epoch_metrics import epoch_metrics

if TYPE_CHECKING:
    from compress.stage import Stage
    from sweeps.space.sweep import Sweep


def stage_table(stage: "type[Stage]", briefly: bool = False) -> Table:
    """Parameters of a stage: name, type, default, meaning; nested configs as dotted names.

    Args:
        briefly: leave out the options of training that the stage takes over unchanged.
    """
    shared = shared_options(stage) if briefly else set()
    rows = table("parameter", "type", "default", "meaning")
    for name, field, kind in _parameters(stage):
        if name.partition(".")[0] in shared:
            continue
        default = "[red]required[/]" if field.is_required() else escape(_default(field))
        rows.add_row(
            f"  {name}",
            f"[cyan]{escape(kind)}[/]",
            default,
            escape(field.description or ""),
        )
    return rows


def shared_options(stage: "type[Stage]") -> set[str]:
    """The options of training that a stage takes over as they are in `TrainConfig`."""
    common = TrainConfig.model_fields
    if not issubclass(stage, FitOptions):
        return set()
    return {
        name
        for name, field in stage.model_fields.items()
        if name in common and repr(field) == repr(common[name])
    }


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


def metric_table() -> Table:
    """The metrics of a final model: name, unit, meaning; and those of an epoch."""
    rows = table("metric", "unit", "of an epoch too", "meaning")
    of_epochs = epoch_metrics()
    for name, metric in metrics().items():
        unit = "" if metric.unit == "1" else metric.unit
        early = "yes" if name in of_epochs else ""
        rows.add_row(f"  {name}", f"[cyan]{unit}[/]", early, escape(metric.description))
    for name, epoch_metric in of_epochs.items():
        if name not in metrics():
            rows.add_row(
                f"  {name}",
                f"[cyan]{epoch_metric.unit}[/]",
                "only",
                escape(epoch_metric.description),
            )
    return rows


def print_sweep(sweep: "Sweep", console: Console) -> None:
    """The resolved pipeline, the space, and how much work it is."""
    spec, search = sweep.spec, sweep.spec.search
    console.print(f"[bold]{escape(spec.name)}[/]  is valid", highlight=False)
    source = escape(str(spec.source.model or spec.source.checkpoint))
    console.print(f"source     {source}", highlight=False)
    print_facts(sweep, console)
    if sweep.plugins:
        names = ", ".join(plugin.name for plugin in sweep.plugins)
        console.print(f"plugins    {escape(names)}", highlight=False)
    _print_stages(sweep, console)
    if sweep.space.dimensions:
        console.print(_space_table(sweep))
    size = sweep.space.size()
    amount = "a continuum" if size is None else f"{size:,} configurations"
    configurations = sweep.num_configurations
    for line in (
        f"objectives {', '.join(_goal(o) for o in spec.objectives)}",
        f"space      {amount}, searched by {search.sampler}",
        f"trials     {configurations * search.replicates} = {configurations}"
        f" configurations × {search.replicates} seeds",
        f"run folder {spec.run_folder}",
    ):
        console.print(escape(line), highlight=False, soft_wrap=True)


def print_facts(sweep: "Sweep", console: Console) -> None:
    """The data set in a line, and what a user must know about source and data."""
    lines = [f"data       {sweep.data}", *(f"note: {text}" for text in sweep.remarks)]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _print_stages(sweep: "Sweep", console: Console) -> None:
    """The stages of one configuration, and those that other alternatives have."""
    counts = dict(sweep.distinct_stages())
    rows = table("stage", "kind", "phase", "model after it", "computed at most")
    for stage, arch in zip(sweep.example, sweep.archs, strict=True):
        args = " ".join(f"{key}={plain(value)}" for key, value in arch.args.items())
        rows.add_row(
            stage.name,
            stage.kind,
            stage.config.phase,
            escape(f"{arch.name} {args}"),
            _times(counts.get(stage.name, 0)),
        )
    console.print(rows)
    printed = {stage.name for stage in sweep.example} | set(sweep.spec.stages)
    others = [
        f"{name} {_times(n)}" for name, n in counts.items() if name not in printed
    ]
    if others:
        console.print(
            f"in other alternatives, at most: {escape(', '.join(others))}",
            highlight=False,
        )


def _space_table(sweep: "Sweep") -> Table:
    rows = table("dimension", "values", "when")
    for dimension in sweep.space.dimensions:
        alternatives = ", ".join(sorted(dimension.alternatives))
        when = f"{dimension.slot} in {alternatives}" if dimension.slot else ""
        rows.add_row(dimension.path, escape(dimension.describe()), escape(when))
    return rows


def _goal(objective: Objective) -> str:
    bound = objective.bound
    if isinstance(bound, RelativeBound):
        return f"{objective.mode} {objective.metric} (bound: {bound.said()})"
    shown = "" if bound is None else f" (bound {bound:g})"
    return f"{objective.mode} {objective.metric}{shown}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def table(*columns: str) -> Table:
    """An empty table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style="dim")
