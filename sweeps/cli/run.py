"""The commands about a sweep that runs, here or on a cluster: validate, run, resume, stop."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from analysis.contract import TABLES_FOLDER
from sweeps.cli.arguments import Overrides, Plugins, RunArgument, SpecArgument, Tiny
from sweeps.cli.results import load_run, print_front
from sweeps.cli.terminal import (
    TRY_AGAIN,
    console,
    handled,
    lasting_output,
    say,
    warn,
    without_collection,
)
from sweeps.drive.interrupt import INTERRUPTED

if TYPE_CHECKING:
    from analysis.run import Run
    from sweeps.drive.driver import SweepResult
    from sweeps.space.sweep import Sweep
    from sweeps.spec.yaml_text import Tree
    from trainers.plugins import PluginFile

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help=(
            "where Ray runs. local: a private one on this machine; auto: the cluster that"
            " this machine belongs to; host:port of a head node; ray://host:port from"
            " outside the cluster"
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


AsJson = Annotated[
    bool,
    typer.Option("--json", help="tell what happens as JSON, an object a line"),
]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run, in values that can travel to another machine.

    Attributes:
        command: the command line, for the run's own files.
        spec: plain values of the spec of a new sweep; None to go on with `run`.
        run: the run to go on with, as the user named it.
        overrides: changes of that run's spec.
        retry: trials that ended like this run again.
        overwrite: delete what the run folder holds.
        plugins: those that the user gave, or that the spec names.
        as_json: what happens is told as JSON, an object a line.
    """

    command: tuple[str, ...]
    spec: "Tree | None" = None
    run: str = ""
    overrides: tuple[str, ...] = ()
    retry: Literal["failed", "pruned"] | None = None
    overwrite: bool = False
    plugins: "tuple[PluginFile, ...]" = ()
    as_json: bool = False


def validate(
    spec: SpecArgument, overrides: Overrides = None, tiny: Tiny = False
) -> None:
    """Check a spec and print its pipeline, its search space and its number of trials.

    Nothing is run.
    """
    with without_collection():
        from sweeps.describe import print_sweep

        request = _request_of(spec, overrides, tiny=tiny)
        print_sweep(_checked(request, local=True), console)


def run(
    spec: SpecArgument,
    overrides: Overrides = None,
    tiny: Tiny = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="delete what the run folder holds (the stage cache stays)",
        ),
    ] = False,
    address: Address = "local",
    no_ship: NoShip = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep, or go on with one that was interrupted; then print the front."""
    request = _request_of(spec, overrides, tiny=tiny)
    request = dataclasses.replace(request, overwrite=overwrite, as_json=as_json)
    _start(request, address, ship=not no_ship)


def resume(
    run: RunArgument,
    overrides: Overrides = None,
    retry: Annotated[
        Literal["failed", "pruned"] | None,
        typer.Option("--retry", help="run these trials again, under their numbers"),
    ] = None,
    plugin: Plugins = None,
    address: Address = "local",
    no_ship: NoShip = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run. Its budget and its space may change: search.trials=200
    search.space.stages.x.lr=[...]
    """
    from sweeps.spec.plugins import read_plugins

    request = Request(
        command=_command(),
        run=run,
        overrides=tuple(overrides or ()),
        retry=retry,
        plugins=read_plugins(plugin or []),
        as_json=as_json,
    )
    _start(request, address, ship=not no_ship)


def stop(run: RunArgument) -> None:
    """Start no more trials and let those that run finish; `sweeps resume RUN` goes on."""
    from sweeps.run.driving import request_stop
    from sweeps.run.storage import find_run

    folder = find_run(run)
    request_stop(folder)
    say(f"{folder}: no more trials start; those that run will finish")


def _command() -> tuple[str, ...]:
    return ("sweeps", *sys.argv[1:])


def _request_of(spec: str, overrides: list[str] | None, *, tiny: bool) -> Request:
    """A new sweep; notes about old keys are printed."""
    from sweeps.check import raw_spec
    from sweeps.spec.load import renamed
    from sweeps.spec.plugins import plugins_of

    raw, notes = renamed(raw_spec(spec, overrides or [], tiny=tiny))
    for note in notes:
        warn(note)
    return Request(command=_command(), spec=raw, plugins=plugins_of(raw))


def _start(request: Request, address: str, *, ship: bool) -> None:
    """Perform a request here, or on the head of a cluster that is reached from outside."""
    if address.startswith("ray://"):
        from sweeps.drive.cluster import run_on_head

        _refuse_own_folders(request)
        raise typer.Exit(run_on_head(address, perform_there, request, ship=ship))
    raise typer.Exit(perform(request, address, ship))


def _refuse_own_folders(request: Request) -> None:
    """Raises SpecError where a run is to lie in a folder that only this machine knows."""
    from sweeps.spec.yaml_text import SpecError
    from trainers.remote import is_uri

    storage = request.run
    if request.spec is not None:
        storage = str(request.spec.get("storage", "runs"))
    if not is_uri(storage) and not Path(storage).is_absolute():
        raise SpecError(
            f"storage: {storage} is a folder of this machine; with ray:// give a path"
            " that the cluster's nodes share, from /, or a URI"
        )


def perform_there(request: Request) -> int:
    """`perform` on the head node of a cluster; mistakes are printed there."""
    try:
        return int(handled(lambda: perform(request)))
    except typer.Exit as error:
        return error.exit_code


def perform(request: Request, address: str = "auto", ship: bool = False) -> int:
    """Check and run what a request asks for, and print what came of it.

    Returns:
        Exit code: 0; 1 where no trial is complete; 130 after Ctrl-C, SIGTERM or SIGHUP; 75 where
        Ray or the machine failed, and the same command goes on.

    Raises:
        SpecError: a mistake, found before anything starts.
    """
    from sweeps.describe import print_facts
    from sweeps.drive.interrupt import decided
    from sweeps.drive.json_lines import JsonLines
    from sweeps.drive.metrics import units
    from sweeps.drive.progress import Progress

    sweep = _checked(request, local=address == "local")
    if not request.as_json:
        print_facts(sweep, console)
    # Ray: only when the sweep is known to hold
    from sweeps.drive.driver import run_sweep

    kind = JsonLines if request.as_json else Progress
    progress = kind(sweep.spec.objectives, units(sweep), console)
    with lasting_output():
        outcome = run_sweep(
            sweep,
            overwrite=request.overwrite,
            command=request.command,
            address=address,
            ship=ship,
            retry=request.retry,
            progress=progress,
        )
        with decided():
            if not isinstance(progress, JsonLines):
                return _tell(outcome)
            code = _exit_code(outcome, load_run(str(outcome.folder)))
            paths = {"folder": str(outcome.folder), "report": str(outcome.report)}
            progress.tell("end", **paths, fault=outcome.fault, exit_code=code)
            return code


def _tell(outcome: "SweepResult") -> int:
    """Print how a sweep ended; its exit code."""
    found = print_front(outcome.folder)
    say(f"\nrun     {outcome.folder}")
    say(f"tables  {outcome.folder / TABLES_FOLDER}\nreport  {outcome.report}")
    if outcome.interrupted:
        console.print(
            "[yellow]interrupted[/]: everything so far is recorded; the same command"
            " goes on from here"
        )
    elif outcome.fault is not None:
        warn(
            f"{outcome.fault}; everything so far is recorded, and the same command goes on"
            " from here"
        )
    elif outcome.stopped:
        console.print("[yellow]stopped[/] as asked; `sweeps resume` goes on from here")
    elif found.complete().empty:
        console.print("[red]no trial is complete[/]; `sweeps status` says what failed")
    return _exit_code(outcome, found)


def _exit_code(outcome: "SweepResult", found: "Run") -> int:
    """That of a sweep that has ended like this."""
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.fault is not None:
        return TRY_AGAIN
    return int(found.complete().empty and not outcome.stopped)


def _checked(request: Request, *, local: bool) -> "Sweep":
    from sweeps.check import check_spec
    from sweeps.resume import resumed_spec
    from sweeps.run.storage import find_run
    from sweeps.spec.load import spec_from
    from sweeps.spec.plugins import load_plugins

    plugins = request.plugins
    load_plugins(plugins)
    if request.spec is not None:
        return check_spec(spec_from(request.spec), local=local, plugins=plugins)
    sweep = resumed_spec(find_run(request.run), request.overrides, local=local)
    return dataclasses.replace(sweep, plugins=plugins)
