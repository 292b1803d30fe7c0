"""`sweeps shrink`: a model, data, a goal and hours; out comes the file to deploy."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.terminal import (
    INTERRUPTED,
    TRY_AGAIN,
    console,
    lasting_output,
    say,
    warn,
    without_collection,
)

if TYPE_CHECKING:
    from analysis.run import Run
    from sweeps.drive.driver import SweepResult
    from sweeps.shrink.outcome import Pick
    from sweeps.shrink.plan import Plan
    from sweeps.shrink.request import Goal

NOT_REACHED = 1
"""Exit code where the search ended and nothing keeps the goal; the nearest is in the folder."""
_LONGEST_HOURS = 24 * 365


def shrink(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=(
                "a file of weights (safetensors, .pth), a folder with a model, or a name:"
                " timm's, or hf-hub:OWNER/NAME"
            ),
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help=(
                "class folders, Parquet, the name of a data set, or a YAML file with a"
                " spec's section `data`"
            ),
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="what a file is: resnet18"),
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="at most: 5ms, or 0.5x of the source's")
    ] = None,
    throughput: Annotated[
        str | None, typer.Option(help="at least, images a second: 200/s, or 2x")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", help="of the file at most: 2MB, or 0.25x")
    ] = None,
    macs: Annotated[
        str | None,
        typer.Option(help="multiply-accumulates of an image: 200M, or 0.5x"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="at the peak of a pass: 50MB, or 0.5x")
    ] = None,
    fastest: Annotated[
        bool, typer.Option("--fastest", help="as fast as it can")
    ] = False,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="as few bytes as it can")
    ] = False,
    max_loss: Annotated[
        str,
        typer.Option("--max-loss", help="of the metric, against the source: 1%, 0.01"),
    ] = "1%",
    metric: Annotated[
        str, typer.Option(help="accuracy, auroc, balanced_accuracy, f1_macro, …")
    ] = "accuracy",
    runtime: Annotated[
        str | None,
        typer.Option(help="of deployment: openvino, onnxruntime, torch, …"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="images of a pass there")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU there")] = 1,
    hours: Annotated[float, typer.Option(help="for the search: 1, 0.25")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="of the search")] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the plan and its seconds; run nothing"),
    ] = False,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="of a Ray cluster, host:port or auto; default: this machine",
        ),
    ] = "local",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="the folder to make; default: ./shrunk"),
    ] = None,
) -> None:
    """Make a model small or fast at little loss, and leave the file to deploy.

    It measures the source, tries cheap methods first (integers, fewer channels,
    low rank), then trains what is worth it, and ends when the goal is met with
    certainty or the time is up. The same command goes on where it ended.
    """
    with without_collection():
        from sweeps.shrink.plan import Request, plan
        from sweeps.shrink.request import Quantity, goal

        given: dict[Quantity, str | None] = {
            "latency": latency,
            "throughput": throughput,
            "bytes": size,
            "macs": macs,
            "memory": memory,
        }
        goals = [goal(key, text) for key, text in given.items() if text is not None]
        goals += _open_goals(fastest, smallest, bool(goals))
        _check(hours, cluster)
        request = Request(
            model=model,
            name=name,
            data=data,
            goals=tuple(goals),
            metric=metric,
            max_loss=max_loss,
            runtime=runtime,
            batch_size=batch,
            threads=threads,
            hours=hours,
            seed=seed,
            folder=out or Path("shrunk"),
            command=shlex.join(["sweeps", *sys.argv[1:]]),
            local=cluster == "local",
        )
        planned = plan(request)
        for line in planned.lines:
            say(line)
    if dry_run:
        say("\nnothing was run, nothing was written (--dry-run)")
        return
    raise typer.Exit(_search(planned, request.folder, cluster))


def _open_goals(fastest: bool, smallest: bool, has_limit: bool) -> "list[Goal]":
    """Goals without a limit; one of all the kinds of goals must be given."""
    from sweeps.shrink.request import Goal
    from sweeps.spec.yaml_text import SpecError

    if fastest + smallest + has_limit == 0:
        raise SpecError(
            "a goal is missing: give --latency 5ms, --throughput 200/s, --bytes 2MB, --macs"
            " 200M, --memory 50MB, --fastest or --smallest"
        )
    if fastest + smallest + has_limit > 1:
        raise SpecError(
            "--fastest and --smallest stand alone: as little as it can be, at the loss that"
            " --max-loss allows; leave the other goals out"
        )
    if fastest:
        return [Goal("latency")]
    return [Goal("bytes")] if smallest else []


def _check(hours: float, cluster: str) -> None:
    """Refuse a time that is none, and a cluster that cannot be reached so."""
    from sweeps.spec.yaml_text import SpecError

    if not 0 < hours <= _LONGEST_HOURS:
        raise SpecError(f"--hours: {hours:g} is no time; 0.5 is half an hour")
    if cluster.startswith("ray://"):
        raise SpecError(
            "--cluster: give the head node's host:port, or auto on a machine of the cluster;"
            " ray:// is for `sweeps run shrink.yaml --address`"
        )


def _search(planned: "Plan", folder: Path, cluster: str) -> int:
    """Run the search and leave the folder; the exit code."""
    from sweeps.drive.metrics import units
    from sweeps.shrink.deliver import SPEC
    from sweeps.shrink.progress import GoalProgress
    from sweeps.shrink.reach import Reach
    from trainers.files import write_atomic

    sweep = planned.sweep
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SPEC, planned.text.encode())
    say(f"spec     {folder / SPEC}\n")
    # Ray: only when the sweep is known to hold
    from sweeps.drive.driver import run_sweep

    with lasting_output():
        progress = GoalProgress(
            sweep.spec.objectives,
            units(sweep),
            console,
            hours=planned.hours,
            reach=Reach(sweep.spec.raw),
        )
        done = run_sweep(
            sweep,
            command=["sweeps", *sys.argv[1:]],
            address=cluster,
            progress=progress,
        )
        return _told(planned, done, folder, progress.verdict)


def _told(
    planned: "Plan", done: "SweepResult", folder: Path, verdict: str | None = None
) -> int:
    """Deliver what was found and say it; the exit code.

    Args:
        verdict: that the goal is out of reach, in a sentence.
    """
    import analysis
    from sweeps.shrink.deliver import MODEL, SPEC, deliver
    from sweeps.shrink.outcome import pick, prices

    run = analysis.load(done.folder)
    chosen = pick(run)
    if chosen is None:
        warn("no candidate has ended; the same command goes on from here")
        return _code(done, reached=False)
    lines = _result(run, chosen)
    costs = [] if chosen.is_certain else prices(run)
    for line in lines:
        say(line)
    if costs:
        say("what was found, by what it loses:")
    for line in costs:
        say(f"  {line}")
    said = [*lines, *([] if verdict is None else [verdict]), *costs]
    files = deliver(run, chosen, planned.runtime, folder, said)
    say(f"\nmodel    {folder / MODEL}")
    for path in files:
        say(f"         {path.name}  {path.stat().st_size:,} bytes")
    say(f"report   {folder / done.report.name}\nnext     {folder / 'README.md'}")
    if done.interrupted:
        say("interrupted: this is the best so far; the same command goes on from here")
    elif verdict is not None:
        say(f"to search on all the same: sweeps run {folder / SPEC}")
    elif done.fault is not None:
        warn(f"{done.fault}; the same command goes on from here")
    return _code(done, reached=chosen.is_within)


def _result(run: "Run", chosen: "Pick") -> list[str]:
    """The outcome in lines."""
    from analysis.numbers import percent
    from sweeps.run.record import named_record
    from sweeps.shrink.outcome import figures, on_test
    from sweeps.shrink.progress import said

    plan = named_record(run.path, chosen.trial_id).plan
    head = f"the goal is met by trial {chosen.trial_id}"
    if not chosen.is_within:
        head = f"the goal is not met; the nearest is trial {chosen.trial_id}"
    elif not chosen.is_certain:
        head += f", with a probability of {percent(chosen.probability, 0)}"
    test = on_test(run, chosen)
    return [
        f"{head}: {said(plan.configuration)}",
        *figures(run, chosen),
        *([test] if test else []),
    ]


def _code(done: "SweepResult", *, reached: bool) -> int:
    if done.interrupted:
        return INTERRUPTED
    if done.fault is not None:
        return TRY_AGAIN
    return 0 if reached else NOT_REACHED
