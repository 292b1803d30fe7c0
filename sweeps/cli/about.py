"""The commands that say what there is: methods, presets, schema."""

import importlib.metadata
import json
import platform
from typing import Annotated

import typer
from rich.markup import escape

from sweeps import DISTRIBUTION
from sweeps.cli.arguments import Plugins
from sweeps.cli.options import stage_named
from sweeps.cli.terminal import (
    console,
    print_lines,
    say,
    table,
    text_width,
    without_collection,
)


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
    from sweeps.describe import Told, headline, metric_lines
    from sweeps.spec.options import options_of_stage
    from sweeps.spec.plugins import load_plugins, read_plugins

    load_plugins(read_plugins(plugins))
    known = stages()
    if name is not None:
        known = {name: stage_named(name)}
    told, width = Told(), text_width()
    for kind, stage in known.items():
        say("")
        print_lines(headline(kind, stage, width))
        print_lines(told.lines(kind, options_of_stage(stage), width))
    if name is None:
        console.print("\n[bold]metrics[/]  what a trial measures, for `objectives`")
        print_lines(metric_lines(width))


LIBRARIES = ("torch", "timm", "ray", "optuna")
"""Libraries whose version `sweeps --version` tells beside ours."""


def version(asked: bool) -> None:
    """Print our version and those of the main libraries, and end; the option `--version`."""
    if not asked:
        return
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {_version_of(name)}" for name in LIBRARIES]
    say(f"{DISTRIBUTION} {_version_of(DISTRIBUTION)} ({', '.join(found)})")
    raise typer.Exit


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def presets() -> None:
    """The specs that come with the package, and what each is for."""
    from sweeps.spec.load import preset_comment, preset_names

    found = table("preset", "what it does")
    found.columns[0].no_wrap = True
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
