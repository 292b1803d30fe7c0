"""The command that replays a search on recorded trials."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.arguments import Overrides, SpecArgument
from sweeps.cli.terminal import console, say, table

if TYPE_CHECKING:
    from sweeps.search.simulate import Replay
    from sweeps.space.sweep import Sweep

PLAIN = ("none", "full", "cached")


def simulate(
    spec: SpecArgument,
    recorded: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help=(
                "Parquet file with config/PARAMETER, metric/NAME and seconds/STAGE of trials"
                " of this space"
            ),
        ),
    ],
    overrides: Overrides = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option("--sampler", help="a short name; may be given several times"),
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
    """Replay searches on a recorded table: how long until most of its front is found?

    Seconds are those that the table records of each stage, none for what the stage cache would
    hold; nothing is trained.
    """
    import pandas as pd

    from sweeps.check import load_spec
    from sweeps.search.simulate import RecordedTable

    sweep = load_spec(spec, overrides or [])
    if not recorded.is_file():
        raise ValueError(f"{recorded}: no such file")
    read = RecordedTable(pd.read_parquet(recorded), sweep.space, sweep.spec)
    names = sampler or [str(sweep.spec.search.sampler)]
    rows = []
    for name in names:
        for each in cost or PLAIN:
            found = [_replayed(sweep, read, name, each, s, share) for s in range(seeds)]
            rows += [
                {"sampler": name, "cost": each, "seed": seed, **_facts(replay, share)}
                for seed, replay in enumerate(found)
            ]
    searches = pd.DataFrame(rows)
    if out is not None:
        searches.to_parquet(out, index=False)
    _print(searches, share)
    say(
        f"{len(read.draws)} recorded configurations, {seeds} seeds; median (quartiles); a search"
        " that never got there counts as infinite"
    )


def _replayed(
    sweep: "Sweep", read: object, sampler: str, cost: str, seed: int, share: float
) -> "Replay":
    from sweeps.search.simulate import RecordedTable, replay
    from sweeps.spec.search_options import Search

    assert isinstance(read, RecordedTable)
    search = sweep.spec.search.model_dump(by_alias=True)
    changed = Search.model_validate(search | {"sampler": sampler, "cost": cost})
    spec = sweep.spec.model_copy(update={"seed": seed, "search": changed})
    return replay(replace(sweep, spec=spec), read, share)


def _facts(found: "Replay", share: float) -> dict[str, float]:
    import numpy as np

    known = np.isfinite(found.predicted)
    errors = np.abs(np.log(found.predicted[known] / found.spent[known]))
    return {
        "seconds": found.until(share),
        "seconds_uncached": found.until(share, cached=False),
        "trials": len(found.seconds),
        "reached": float(found.shares[-1]),
        "cost_error": float(np.expm1(np.median(errors))) if known.any() else np.nan,
    }


def _print(searches: object, share: float) -> None:
    import pandas as pd

    from analysis.numbers import percent

    assert isinstance(searches, pd.DataFrame)
    head = f"seconds to {percent(share, 0)}"
    printed = table("sampler", "cost", head, "trials", "error of the cost model")
    for (name, cost), group in searches.groupby(["sampler", "cost"], sort=False):
        low, middle, high = group["seconds"].quantile([0.25, 0.5, 0.75])
        error = group["cost_error"].median()
        printed.add_row(
            str(name),
            str(cost),
            f"{middle:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{group['trials'].median():.0f}",
            "" if pd.isna(error) else percent(error),
        )
    console.print(printed)
