"""Several sweeps, or several groups of one, on one axis set: common reference, equal
budget, equal time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.merging import RUN_PARAMETER
from analysis.pareto import Floats
from analysis.run import Run

Curve = tuple[list[float], list[float]]
"""x and y of a rising curve, where it rises."""


@dataclass(frozen=True)
class Group:
    """One run, or the configurations with one value of a parameter, against the others.

    Volumes are shares of the box between the best values of all groups and the common
    reference point.

    Attributes:
        name: the run's name or the parameter's value.
        configurations: how many count.
        front: how many are on the group's own front; on_front: on the front of all groups.
        volume: share of the box that its front dominates; spread: standard deviation of
            that over seeds, NaN of one.
        best: best value of each objective.
        seconds: wall time of its trials together.
        budget: volume after as many configurations as the smallest group has.
        at_time: volume after as much time of trials as the smallest group took.
        by_seed: replicate → share of the box that its trials alone dominate.
        curves: "configurations", "compute" (seconds of trials) and "wall" (seconds since the
            first start) → rising (x, volume).
    """

    name: str
    configurations: int
    front: int
    on_front: int
    volume: float
    spread: float
    best: tuple[float, ...]
    seconds: float
    budget: float
    at_time: float
    by_seed: dict[int, float]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Comparison:
    """Groups by falling volume, the reference point (metric → value) and the common budgets
    (configurations, seconds).
    """

    by: str
    groups: list[Group]
    reference: dict[str, float]
    budget: int
    time: float


@dataclass(frozen=True)
class _Compared:
    """What all groups share: the eligible configurations in the order in which they ended.

    Attributes:
        rows: (n) of `Run.configurations`; values: (n, k) their objectives.
        seconds: (n,) wall time of each with its replicates.
        on_front: (n,) whether it is on the front of all groups.
        reference: (k,) the reference point; box: volume between it and the best values.
    """

    run: Run
    rows: pd.DataFrame
    values: Floats
    seconds: Floats
    on_front: np.ndarray
    reference: Floats
    box: float


def compare_groups(run: Run, by: str = RUN_PARAMETER) -> Comparison:
    """Compare the groups of `run` (see `merge`) that parameter `by` makes.

    Raises ValueError where there is no such parameter, or no eligible configuration.
    """
    column = f"config/{by}"
    if column not in run.trials:
        known = ", ".join(run.parameters) or "none"
        raise ValueError(f"no parameter {by!r} to compare by; valid: {known}")
    shared = _compared(run)
    names = shared.rows[column].astype("string").fillna("not set").to_numpy()
    sizes = pd.Series(names).value_counts()
    budget = int(sizes.min())
    time = min(float(shared.seconds[names == name].sum()) for name in sizes.index)
    groups = [
        _group(shared, str(name), names == name, budget, time, by)
        for name in sizes.index
    ]
    reference = {
        objective.metric: float(value)
        for objective, value in zip(run.objectives, shared.reference, strict=True)
    }
    return Comparison(
        by, sorted(groups, key=lambda g: -g.volume), reference, budget, time
    )


def _compared(run: Run) -> _Compared:
    rows = run.configurations()
    values = run.values(rows)
    keep = pareto.eligible(values, run.objectives)
    if not keep.any():
        raise ValueError(
            "no complete trial has finite objectives within the bounds, so there is"
            " nothing to compare"
        )
    rows, values = rows[keep], values[keep]
    order = np.argsort(rows["ended"].to_numpy(), kind="stable")
    rows, values = rows.iloc[order], values[order]
    reference = pareto.reference_point(values, run.objectives)
    signs = np.array([objective.sign for objective in run.objectives])
    return _Compared(
        run=run,
        rows=rows,
        values=values,
        seconds=_trial_seconds(run, rows),
        on_front=pareto.front_mask(values, run.objectives),
        reference=reference,
        box=float(np.prod(reference * signs - (values * signs).min(axis=0))),
    )


def _group(
    shared: _Compared, name: str, mine: np.ndarray, budget: int, time: float, by: str
) -> Group:
    """The group of the configurations that `mine` (n,) marks."""
    run, values = shared.run, shared.values[mine]
    volumes = (
        pareto.hypervolume_over_time(values, run.objectives, shared.reference)
        / shared.box
    )
    clock = np.cumsum(shared.seconds[mine])
    within = np.flatnonzero(clock <= time * (1 + 1e-9))
    curves = {
        "configurations": _steps(np.arange(1.0, len(values) + 1), volumes),
        "compute": _steps(clock, volumes),
    }
    if by == RUN_PARAMETER and run.members:
        curves["wall"] = _steps(_wall(run, name, shared.rows[mine]), volumes)
    by_seed = {
        seed: volume / shared.box
        for seed, volume in _by_seed(run, shared.rows[mine], shared.reference).items()
    }
    signs = np.array([objective.sign for objective in run.objectives])
    best = (values * signs).min(axis=0) * signs
    return Group(
        name=name,
        configurations=len(values),
        front=int(pareto.front_mask(values, run.objectives).sum()),
        on_front=int(shared.on_front[mine].sum()),
        volume=float(volumes[-1]),
        spread=(
            float(np.std([*by_seed.values()], ddof=1))
            if len(by_seed) > 1
            else float("nan")
        ),
        best=tuple(float(v) for v in best),
        seconds=float(shared.seconds[mine].sum()),
        budget=float(volumes[budget - 1]),
        at_time=float(volumes[within[-1]]) if len(within) else 0.0,
        by_seed=by_seed,
        curves=curves,
    )


def _trial_seconds(run: Run, rows: pd.DataFrame) -> Floats:
    """Wall time of each configuration's replicates together; trials without one count as 0."""
    known = run.trials["seconds"].fillna(0.0)
    seconds = dict(zip(run.trials["trial_id"], known, strict=True))
    return np.array([sum(seconds[trial] for trial in ids) for ids in rows["trial_ids"]])


def _wall(run: Run, label: str, rows: pd.DataFrame) -> Floats:
    """Seconds from the run's first start to the end of each configuration; 0 where times are
    unknown.
    """
    start = run.members[label].trials["started"].min()
    seconds = (rows["ended"] - start).dt.total_seconds().fillna(0.0)
    return np.maximum.accumulate(np.maximum(seconds.to_numpy(dtype=np.float64), 0.0))


def _steps(x: Floats, y: Floats) -> Curve:
    """The points of a rising curve where it rises, and its end."""
    keep = np.diff(y, prepend=-1.0) > 0
    keep[-1] = True
    return [float(v) for v in x[keep]], [float(v) for v in y[keep]]


def _by_seed(run: Run, rows: pd.DataFrame, reference: Floats) -> dict[int, float]:
    """Replicate → the volume that its trials dominate."""
    ids = {trial for trials in rows["trial_ids"] for trial in trials}
    trials = run.trials[run.trials["trial_id"].isin(ids)]
    groups: list[tuple[Any, pd.DataFrame]] = list(trials.groupby("replicate"))
    return {
        int(replicate): pareto.hypervolume(run.values(part), run.objectives, reference)
        for replicate, part in groups
    }
