"""`sweeps shrink`: a model, data, a goal and hours; out comes the file to deploy."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sweeps.cli import shrink_arguments as of
from sweeps.cli.terminal import (
    TRY_AGAIN,
    console,
    lasting_output,
    say,
    warn,
    without_collection,
)
from sweeps.console import print_text
from sweeps.drive.interrupt import INTERRUPTED

if TYPE_CHECKING:
    from analysis.goal import Pick
    from analysis.run import Run
    from sweeps.drive.driver import SweepResult
    from sweeps.shrink.plan import Plan
    from sweeps.shrink.request import Request

NOT_REACHED = 1
"""Exit code where the search ended and nothing keeps the goal; the nearest is in the folder."""
_LONGEST_HOURS = 24 * 365


def shrink(
    model: of.Model,
    data: of.Data,
    name: of.Architecture = None,
    latency: of.Latency = None,
    throughput: of.Throughput = None,
    size: of.Bytes = None,
    macs: of.Macs = None,
    memory: of.Memory = None,
    fastest: of.Fastest = False,
    smallest: of.Smallest = False,
    max_loss: of.MaxLoss = "1%",
    metric: of.Metric = "accuracy",
    runtime: of.Runtime = None,
    batch: of.Batch = 1,
    threads: of.Threads = 1,
    hours: of.Hours = 1.0,
    seed: of.Seed = 0,
    dry_run: of.DryRun = False,
    cluster: of.Cluster = "local",
    out: of.Out = None,
) -> None:
    """Make a model small or fast at little loss, and leave the file to deploy.

    It measures the source, tries cheap methods first (integers, fewer channels,
    low rank), then trains what is worth it, and ends when the goal is met with
    certainty or the time is up. The same command goes on where it ended.

    sweeps shrink model.pth --model resnet18 --data photos/ --latency 5ms
    """
    from sweeps.shrink.request import Quantity, Request, goals

    _check(hours, cluster)
    limits: dict[Quantity, str | None] = {
        "latency": latency,
        "throughput": throughput,
        "bytes": size,
        "macs": macs,
        "memory": memory,
    }
    request = Request(
        model=model,
        name=name,
        data=data,
        goals=goals(limits, fastest=fastest, smallest=smallest),
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
    planned = _planned(request)
    if dry_run:
        say("\nnothing was run, nothing was written (--dry-run)")
        return
    raise typer.Exit(_search(planned, request.folder, cluster))


def _planned(request: "Request") -> "Plan":
    """The plan, which has been printed."""
    with without_collection():
        # torch: only when the goal is known to be one
        from sweeps.shrink.plan import plan

        planned = plan(request)
    for line in planned.lines:
        print_text(console, line, indent=9)
    return planned


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
    from sweeps.check_pipelines import known_info
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
    from sweeps.drive.interrupt import Interrupt

    info = known_info(sweep.spec.data.model_dump_json())
    with lasting_output():
        progress = GoalProgress(
            sweep.spec.objectives,
            units(sweep),
            console,
            hours=planned.hours,
            reach=Reach(sweep.spec.raw),
            classes=info.num_classes,
            val_images=info.num_val,
            test_images=info.num_test,
        )
        done = run_sweep(
            sweep,
            command=["sweeps", *sys.argv[1:]],
            address=cluster,
            progress=progress,
        )
        with Interrupt("the model is being written; that ends in a moment"):
            return _told(planned, done, folder, progress.verdict)


def _told(
    planned: "Plan", done: "SweepResult", folder: Path, verdict: str | None = None
) -> int:
    """Deliver what was found and say it; the exit code.

    Args:
        verdict: that the goal is out of reach, in a sentence.
    """
    import analysis
    from analysis.goal import pick
    from sweeps.shrink.deliver import BY_LOSS, MODEL, SPEC, deliver
    from sweeps.shrink.outcome import prices

    run = analysis.load(done.folder)
    chosen = pick(run)
    if chosen is None:
        warn(_nothing(run, done, folder))
        return _code(done, reached=False)
    lines = _result(run, chosen)
    costs = [] if chosen.is_certain else prices(run)
    if chosen.is_within and len(costs) == 1:
        costs = []  # nothing that is cheaper at any loss
    for line in lines:
        say(line)
    if costs:
        say(BY_LOSS)
    for line in costs:
        say(f"  {line}")
    said = [*lines, *([] if verdict is None else [verdict])]
    files = deliver(run, chosen, planned.runtime, folder, said, costs)
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


def _nothing(run: "Run", done: "SweepResult", folder: Path) -> str:
    """Why there is nothing to deliver, and what to do."""
    if done.interrupted or done.stopped or done.fault is not None:
        return "no candidate has ended; the same command goes on from here"
    if run.baseline is None:
        failed = "the source could not be measured"
    elif len(run.trials):
        failed = "every candidate failed"
    else:
        return (
            "no candidate ended in the time; the same command with more --hours goes on"
        )
    return (
        f"{failed}, for the reason above; mend that, then `sweeps resume {run.path} --retry"
        f" failed`, or remove {folder} and begin anew"
    )


def _result(run: "Run", chosen: "Pick") -> list[str]:
    """The outcome in lines."""
    from sweeps.run.record import named_record
    from sweeps.shrink.outcome import figures, on_test, verdict
    from sweeps.shrink.progress import said

    plan = named_record(run.path, chosen.trial_id).plan
    test = on_test(run, chosen)
    return [
        f"{verdict(run, chosen)}: {said(plan.configuration)}",
        *figures(run, chosen),
        *([test] if test else []),
    ]


def _code(done: "SweepResult", *, reached: bool) -> int:
    if done.interrupted:
        return INTERRUPTED
    if done.fault is not None:
        return TRY_AGAIN
    return 0 if reached else NOT_REACHED
