"""The command `sweeps reproduce`: a trial once more, and what differs."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from sweeps.cli.arguments import Plugins, RunArgument, TrialArgument
from sweeps.cli.terminal import console, table

if TYPE_CHECKING:
    from sweeps.trial.reproduce import Reproduction


def reproduce(
    run: RunArgument,
    trial: TrialArgument,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="default: that of the trial")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=(
                "how large |new - old| / max(1, |old|) of every metric may be where the last"
                " bits may differ: on another device, with other libraries or numbers of"
                " workers; default: what follows from each metric"
            ),
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Run a trial again on this machine, from its record alone, and compare.

    Exit code 0: the same; 1: different; 2: it cannot be run here.
    """
    from sweeps.run.storage import find_run
    from sweeps.spec.plugins import load_plugins, read_plugins
    from sweeps.trial.reproduce import read_record
    from sweeps.trial.reproduce import reproduce as again

    load_plugins(read_plugins(plugin or []))
    record = read_record(find_run(run), trial)
    found = again(record, device=device, tolerance=tolerance)
    _print_comparison(trial, found)
    raise typer.Exit(0 if found.same else 1)


def _print_comparison(trial: str, found: "Reproduction") -> None:
    rows = table("metric", "then", "now", "difference", "", "rule", header_style="bold")
    for row in found.rows:
        rows.add_row(
            escape(row.name),
            escape(repr(row.old)),
            escape(repr(row.new)),
            "" if row.difference is None else f"{row.difference:.3g}",
            "[green]same[/]" if row.same else "[red]different[/]",
            escape(row.rule),
        )
    console.print(rows)
    rule = "same device, threads and libraries: equal to the last bit is what counts"
    if not found.is_exact:
        rule = (
            "so what counts as the same follows from each metric, or from --tolerance"
        )
    for line in [*found.notes, *found.conditions, rule]:
        console.print(f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True)
    different = [row.name for row in found.rows if not row.same]
    verdict = "[green]reproduced[/]"
    if different:
        verdict = f"[red]differs[/] in {escape(', '.join(different))}"
    console.print(f"trial {escape(trial)}: {verdict}", highlight=False, soft_wrap=True)
