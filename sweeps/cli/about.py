"""The commands that say what there is: methods, presets, schema."""

import json
from typing import Annotated

import typer
from rich.markup import escape

from sweeps.cli.arguments import Plugins
from sweeps.cli.terminal import console, table, without_collection

TRAINING = "finetune"
"""The stage that is nothing but training; the list of all methods shows its options once."""


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="only this one")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """The methods with their parameters, defaults and papers; then all metrics."""
    with without_collection():
        _print_methods(name, plugin or [])


def _print_methods(name: str | None, plugins: list[str]) -> None:
    from compress.pipeline import stages
    from sweeps.describe import metric_table, shared_options, stage_table
    from sweeps.spec.plugins import load_plugins, read_plugins
    from sweeps.spec.yaml_text import did_you_mean
    from trainers.plugins import plugin_of

    load_plugins(read_plugins(plugins))
    known = stages()
    if name is not None and name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(
            f"there is no method {name!r}; {hint}valid: {', '.join(known)}"
        )
    for kind, stage in known.items():
        if name not in (None, kind):
            continue
        origin = plugin_of(stage)
        headline = escape((stage.__doc__ or "").strip().partition("\n")[0])
        console.print(f"\n[bold]{kind}[/] [dim]({stage.phase})[/]  {headline}")
        if origin is not None:
            console.print(f"[dim]from the plugin {escape(origin.name)}[/]")
        if stage.paper:
            console.print(f"[dim]{escape(stage.paper)}[/]", soft_wrap=True)
        if stage.metrics:
            reported = ", ".join(metric.name for metric in stage.metrics)
            console.print(f"[dim]reports {reported}[/]", soft_wrap=True)
        # what all training stages have is said once
        briefly = name is None and kind != TRAINING and bool(shared_options(stage))
        if briefly:
            console.print(
                f"[dim]and the options of training, as {TRAINING} has them[/]"
            )
        console.print(stage_table(stage, briefly))
    if name is None:
        console.print("\n[bold]metrics[/]  what a trial measures, for `objectives`")
        console.print(metric_table())


def presets() -> None:
    """The specs that come with the package, and what each is for."""
    from sweeps.spec.load import preset_comment, preset_names

    found = table("preset", "what it does")
    for name in preset_names():
        found.add_row(f"[bold]{name}[/]", escape(preset_comment(name)))
    console.print(found)


def schema(plugin: Plugins = None) -> None:
    """The spec's JSON schema, for editors."""
    with without_collection():
        from sweeps.spec.plugins import load_plugins, read_plugins
        from sweeps.spec.schema import spec_schema

        load_plugins(read_plugins(plugin or []))
        print(json.dumps(spec_schema(), indent=1))
