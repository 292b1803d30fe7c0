"""The command that says what every option of a spec means: options."""

from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.arguments import Plugins
from sweeps.cli.terminal import (
    print_lines,
    say,
    text_width,
    without_collection,
)

if TYPE_CHECKING:
    from compress.stage import Stage
    from sweeps.spec.options import Option

SECTIONS = (
    "source",
    "data",
    "objectives",
    "search",
    "resources",
    "measure",
    "trackers",
)
"""Sections of a spec, for completion, which cannot wait for the spec's classes."""


def options(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION|STAGE][.OPTION]",
            help=(
                f"{', '.join(SECTIONS)}, or a stage, and what of it: data.image_size;"
                " without it, the keys of a spec"
            ),
            autocompletion=lambda: list(SECTIONS),
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="as a table in Markdown")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Every option of a section of the spec, or of a stage: type, default, unit, meaning."""
    with without_collection():
        from sweeps.describe import option_lines, options_as_markdown

        found = _options_of(name, plugin or [])
        if markdown:
            print(options_as_markdown(found), end="")
            return
        print_lines(option_lines(found, text_width()))
        if name is None:
            say("")
            say("sweeps options SECTION lists what is below: " + ", ".join(SECTIONS))
            say("sweeps options STAGE lists a stage, sweeps methods lists all of them")


def _options_of(name: str | None, plugins: list[str]) -> "list[Option]":
    from sweeps.spec.options import (
        options_of_section,
        options_of_spec,
        options_of_stage,
    )

    if name is None:
        return options_of_spec()
    whole, _, inner = name.removeprefix("stages.").partition(".")
    if whole in SECTIONS:
        return _below(inner, options_of_section(whole), whole)
    from sweeps.spec.plugins import load_plugins, read_plugins

    load_plugins(read_plugins(plugins))
    found = options_of_stage(stage_named(whole, SECTIONS))
    return _below(inner, found, whole)


def _below(inner: str, options: "list[Option]", whole: str) -> "list[Option]":
    """The option with this name and those below it; all, where the name is empty.

    Raises:
        ValueError: there is none.
    """
    from sweeps.spec.yaml_text import did_you_mean

    found = [each for each in options if f"{each.name}.".startswith(f"{inner}.")]
    if inner and not found:
        hint = did_you_mean(inner, [each.name for each in options])
        raise ValueError(
            f"{whole} has no option {inner!r}; {hint}`sweeps options {whole}` lists all"
        )
    return found if inner else options


def stage_named(name: str, further: tuple[str, ...] = ()) -> "type[Stage]":
    """A stage's class.

    Args:
        further: other names that would have been valid.

    Raises:
        ValueError: there is none with this name.
    """
    from compress.pipeline import stages
    from sweeps.spec.yaml_text import did_you_mean

    known = stages()
    if name in known:
        return known[name]
    valid = [*further, *known]
    what = "section or method" if further else "method"
    hint = did_you_mean(name, valid)
    raise ValueError(f"there is no {what} {name!r}; {hint}valid: {', '.join(valid)}")
