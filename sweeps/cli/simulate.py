"""The command that replays a search on recorded trials."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.arguments import Overrides, SpecArgument
from sweeps.cli.terminal import console, say, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sweeps.search.simulate import RecordedTable, Replay
    from sweeps.space.sweep import Sweep
    from sweeps.spec.search_options import Search

COSTS = ("none", "full", "cached")
"""Values of `search.cost`, in the order in which they are compared."""


def simulate(
    spec: SpecArgument,
    recorded: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE|RUN",
            help=(
                "Parquet file with config/PARAMETER, metric/NAME and seconds/STAGE of trials"
                " of this space, or a run of it"
            ),
        ),
    ],
    overrides: Overrides = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler",
            help="a short name; may be given several times; default: that of the spec",
        ),
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option("--cost", help="none, full or cached; default: all three"),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1)] = 5,
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="of the hypervolume")
    ] = 0.95,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="a Parquet file, a row a search")
    ] = None,
) -> None:
    """Replay searches on recorded trials: how long until most of its front is found?

    Seconds are those that were recorded of each stage, none for what the stage cache would
    hold; nothing is trained.
    """
    import pandas as pd

    from sweeps.check import load_spec
    from sweeps.spec.search_options import SHORT_SAMPLERS

    _check("sampler", sampler or [], SHORT_SAMPLERS)
    _check("cost", cost or [], COSTS)
    sweep = load_spec(spec, overrides or [])
    read = _read(recorded, sweep)
    rows = []
    for search in _searches(sweep.spec.search, sampler, cost):
        what = {"sampler": str(search.sampler), "cost": search.cost}
        for seed in range(seeds):
            replay = _replayed(sweep, read, search, seed, share)
            rows.append({**what, "seed": seed, **_facts(replay, share)})
    searches = pd.DataFrame(rows)
    if out is not None:
        searches.to_parquet(out, index=False)
    _print(searches, share)
    say(
        f"{len(read.draws)} recorded configurations, {seeds} seeds; median (quartiles); a search"
        " that never got there counts as longer than all others"
    )


def _check(option: str, given: "Sequence[str]", valid: "Sequence[str]") -> None:
    """Raises ValueError: one of the values of an option is none that it takes."""
    from sweeps.spec.yaml_text import did_you_mean

    for name in given:
        if name not in valid:
            hint = did_you_mean(name, valid)
            raise ValueError(
                f"--{option}: there is no {option} {name!r}; {hint}valid: {', '.join(valid)}"
            )


def _read(recorded: Path, sweep: "Sweep") -> "RecordedTable":
    """Raises ValueError: neither a table nor a run of this space."""
    import pandas as pd

    from sweeps.run.storage import find_run
    from sweeps.search.simulate import RecordedTable

    if not recorded.is_file():
        if recorded.suffix == ".parquet":
            raise ValueError(f"{recorded}: no such file")
        folder = find_run(str(recorded), to_read=True)
        return RecordedTable(folder, sweep.space, sweep.spec)
    try:
        return RecordedTable(pd.read_parquet(recorded), sweep.space, sweep.spec)
    except ValueError as error:
        raise ValueError(f"{recorded}: {error}") from error


def _searches(
    given: "Search", samplers: list[str] | None, costs: list[str] | None
) -> "list[Search]":
    """The spec's section `search` with each sampler and each cost; `sampler_options` are those of
    the spec's own sampler.
    """
    from sweeps.spec.load import validated
    from sweeps.spec.search_options import Search

    written = given.model_dump(by_alias=True)
    chosen = [
        written
        if name == given.sampler
        else {**written, "sampler": name, "sampler_options": {}}
        for name in samplers or []
    ]
    return [
        validated(Search, {**search, "cost": cost}, "search")
        for search in chosen or [written]
        for cost in costs or COSTS
    ]


def _replayed(
    sweep: "Sweep", read: "RecordedTable", search: "Search", seed: int, share: float
) -> "Replay":
    from sweeps.search.simulate import replay

    spec = sweep.spec.model_copy(update={"seed": seed, "search": search})
    return replay(replace(sweep, spec=spec), read, share)


def _facts(found: "Replay", share: float) -> dict[str, float]:
    import numpy as np

    known = np.isfinite(found.predicted) & (found.predicted > 0) & (found.spent > 0)
    errors = np.abs(np.log(found.predicted[known] / found.spent[known]))
    return {
        "seconds": found.until(share),
        "seconds_uncached": found.until(share, cached=False),
        "trials": len(found.seconds),
        "reached": float(found.shares[-1]),
        "cost_error": float(np.expm1(np.median(errors))) if known.any() else np.nan,
    }


def _print(searches: "pd.DataFrame", share: float) -> None:
    import pandas as pd

    from analysis.numbers import percent

    head = f"seconds to {percent(share, 0)}"
    printed = table("sampler", "cost", head, "trials", "error of the cost model")
    for (name, cost), group in searches.groupby(["sampler", "cost"], sort=False):
        error = group["cost_error"].median()
        printed.add_row(
            str(name),
            str(cost),
            _quartiles_text(group["seconds"].tolist()),
            f"{group['trials'].median():.0f}",
            "" if pd.isna(error) else percent(error),
        )
    console.print(printed)


def _quartiles_text(seconds: "Sequence[float]") -> str:
    """'1,200 (900 to not reached)': the median and the quartiles, each one of the values itself,
    since nothing lies between a number and what was never reached.
    """
    ordered = sorted(seconds)
    low, middle, high = (
        _seconds_text(ordered[math.ceil(part * len(ordered)) - 1])
        for part in (0.25, 0.5, 0.75)
    )
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def _seconds_text(seconds: float) -> str:
    return f"{seconds:,.0f}" if math.isfinite(seconds) else "not reached"
