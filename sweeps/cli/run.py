"""The commands that run a sweep, here or on a cluster: run, resume, stop, reproduce."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from sweeps.space.sweep import Sweep
    from sweeps.trial.reproduce import Reproduction

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help=(
            "local: a private Ray here; auto: the cluster of this machine; host:port of"
            " a head; ray://host:port from outside"
        ),
    ),
]
NoShip = Annotated[
    bool,
    typer.Option(
        "--no-ship",
        help="do not send this checkout to the nodes: their image has the package",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides: search.trials=24"),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="a run folder, or the name of one under runs/"),
]

Request = dict[str, Any]
"""What to run, as plain values, so that it can travel: spec (raw) or run with overrides and
retry, overwrite, command.
"""


def run(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="a YAML file or the name of a preset (`sweeps presets`)",
        ),
    ],
    overrides: Overrides = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="the preset's tiny CPU variant")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="delete what the run folder holds (the stage cache stays)",
        ),
    ] = False,
    address: Address = "local",
    no_ship: NoShip = False,
) -> None:
    """Run a sweep, or go on with one that was interrupted; then print the front."""
    from sweeps.check import raw_spec
    from sweeps.cli.main import fail
    from sweeps.spec.yaml_text import SpecError

    try:
        raw = raw_spec(spec, overrides or [], tiny=tiny)
    except SpecError as error:
        raise fail(str(error)) from None
    _start(
        {"spec": raw, "overwrite": overwrite, "retry": None, "command": _command()},
        address,
        ship=not no_ship,
    )


def resume(
    run: RunName,
    overrides: Overrides = None,
    retry: Annotated[
        Literal["failed", "pruned"] | None,
        typer.Option("--retry", help="run these trials again, under their numbers"),
    ] = None,
    address: Address = "local",
    no_ship: NoShip = False,
) -> None:
    """Go on with a run; its budget and space may change: search.trials=200
    search.space.stages.x.lr=[...]
    """
    request = {
        "run": run,
        "overrides": overrides or [],
        "retry": retry,
        "overwrite": False,
        "command": _command(),
    }
    _start(request, address, ship=not no_ship)


def stop(run: RunName) -> None:
    """Let the running trials finish and start no more; `sweeps resume RUN` goes on."""
    from sweeps.cli.main import console, fail
    from sweeps.run.driving import request_stop
    from sweeps.run.storage import find_run
    from sweeps.spec.yaml_text import SpecError

    try:
        folder = find_run(run)
        request_stop(folder)
    except SpecError as error:
        raise fail(str(error)) from None
    console.print(
        f"{folder}: starts no more trials; those that run finish",
        highlight=False,
        soft_wrap=True,
    )


def reproduce(
    run: RunName,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="a trial's id, for example 00007")
    ],
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="default: that of the trial")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            help=(
                "|new - old| / max(1, |old|) where bits may differ: another device,"
                " library, world size"
            ),
        ),
    ] = 0.05,
) -> None:
    """Run a trial again on this machine, from its record alone, and compare.

    Exit code 0: the same; 1: different; 2: it cannot be run here.
    """
    from sweeps.cli.main import fail
    from sweeps.run.storage import find_run
    from sweeps.spec.yaml_text import SpecError
    from sweeps.trial.reproduce import CannotReproduceError, read_record
    from sweeps.trial.reproduce import reproduce as again

    try:
        record = read_record(find_run(run), trial)
        found = again(record, device=device, tolerance=tolerance)
    except (SpecError, CannotReproduceError) as error:
        raise fail(str(error)) from None
    _print_reproduction(record, found)
    raise typer.Exit(0 if found.same else 1)


def _command() -> list[str]:
    return ["sweeps", *sys.argv[1:]]


def _start(request: Request, address: str, *, ship: bool) -> None:
    """Perform a request here, or on the head of a cluster that is reached from outside."""
    from sweeps.cli.main import fail
    from sweeps.spec.yaml_text import SpecError

    try:
        if address.startswith("ray://"):
            from sweeps.drive.cluster import run_on_head

            _refuse_own_folders(request)
            code = run_on_head(address, perform, request, ship=ship)
        else:
            code = perform(request, address, ship)
    except SpecError as error:
        raise fail(str(error)) from None
    raise typer.Exit(code)


def _refuse_own_folders(request: Request) -> None:
    """Raises SpecError where a run is to lie in a folder that only this machine knows."""
    from sweeps.spec.yaml_text import SpecError
    from trainers.remote import is_uri

    storage = (
        request["spec"].get("storage", "runs") if "spec" in request else request["run"]
    )
    if not is_uri(str(storage)) and not Path(str(storage)).is_absolute():
        raise SpecError(
            f"storage: {storage} is a folder of this machine; with ray:// give a path"
            " that the cluster's nodes share, from /, or a URI"
        )


def perform(request: Request, address: str = "auto", ship: bool = False) -> int:
    """Check and run what a request asks for, and print what came of it.

    Returns:
        Exit code: 0, 1 where no trial is complete, 2 for a mistake, 130 after Ctrl-C.
    """
    from sweeps.cli.main import console, fail, print_front
    from sweeps.drive.progress import Progress
    from sweeps.spec.yaml_text import SpecError

    try:
        checked = _checked(request, local=address == "local")
        from sweeps.drive.driver import run_sweep  # Ray: only now

        outcome = run_sweep(
            checked,
            overwrite=request["overwrite"],
            command=request["command"],
            address=address,
            ship=ship,
            retry=request["retry"],
            progress=Progress(checked, console),
        )
    except SpecError as error:
        return fail(str(error)).exit_code
    found = print_front(outcome.folder)
    console.print(
        f"\nrun     {outcome.folder}\ntables  {outcome.folder / 'parquet'}\nreport "
        f" {outcome.report}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.interrupted:
        console.print(
            "[yellow]interrupted[/]: everything so far is recorded; the same command"
            " goes on from here"
        )
        return 130
    if outcome.stopped:
        console.print("[yellow]stopped[/] as asked; `sweeps resume` goes on from here")
    elif found.complete().empty:
        console.print("[red]no trial is complete[/]; `sweeps status` says what failed")
        return 1
    return 0


def _checked(request: Request, *, local: bool) -> "Sweep":
    from sweeps.check import check_spec
    from sweeps.resume import resumed_spec
    from sweeps.run.storage import find_run
    from sweeps.spec.load import spec_from

    if "spec" in request:
        return check_spec(spec_from(request["spec"]), local=local)
    return resumed_spec(find_run(request["run"]), request["overrides"], local=local)


def _print_reproduction(record: dict[str, Any], found: "Reproduction") -> None:
    from sweeps.cli.main import console

    table = Table(
        "metric",
        "then",
        "now",
        "difference",
        "",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for row in found.rows:
        difference = "" if row.difference is None else f"{row.difference:.3g}"
        mark = "[green]same[/]" if row.same else "[red]different[/]"
        table.add_row(
            escape(row.name),
            escape(repr(row.old)),
            escape(repr(row.new)),
            difference,
            mark,
        )
    console.print(table)
    lines: Sequence[str] = found.notes
    if found.conditions:
        lines = [
            *lines,
            *found.conditions,
            f"so equal within {found.tolerance:g} x max(1, |then|) counts as the same",
        ]
    else:
        lines = [
            *lines,
            "same device, threads and libraries: equal to the last bit is what counts",
        ]
    for line in lines:
        console.print(f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True)
    different = [row.name for row in found.rows if not row.same]
    verdict = (
        f"[red]differs[/] in {', '.join(different)}"
        if different
        else "[green]reproduced[/]"
    )
    console.print(
        f"trial {record['trial_id']}: {verdict}", highlight=False, soft_wrap=True
    )


def add_commands(app: typer.Typer) -> None:
    """Hook these commands in."""
    for command in (run, resume, stop, reproduce):
        app.command()(command)
