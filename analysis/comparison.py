"""Several sweeps, or several groups of one, on one axis set: common reference, equal
budget, equal time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.contract import Objective
from analysis.pareto import Floats
from analysis.run import Run

RUN_COLUMN = "config/run"
"""Column of a merged run that names the run that a trial came from."""
TABLE_NAMES = ("trials", "epochs", "stages", "layers")


def merge(runs: Sequence[Run]) -> Run:
    """The runs as one: trial ids become `<run>/<id>`, parameter `run` says which,
    objectives are those they share.

    A bound holds where all runs have it. Raises ValueError where there are fewer than two
    runs, or no shared objective.
    """
    if len(runs) < 2:
        raise ValueError("give two runs or more to compare")
    objectives = _shared_objectives(runs)
    members = dict(zip(_labels(runs), runs, strict=True))
    tables: dict[str, Any] = {}
    for name in TABLE_NAMES:
        parts = []
        for label, run in members.items():
            data: pd.DataFrame = getattr(run, name)
            part = data.assign(
                trial_id=(f"{label}/" + data["trial_id"]).astype(data["trial_id"].dtype)
            )
            parts.append(
                part.assign(**{RUN_COLUMN: label}) if name == "trials" else part
            )
        tables[name] = _stacked(parts)
    trials = tables["trials"]
    # numbers count configurations of one sweep: make them count those of all
    known = trials["number"].notna()
    keys = (
        trials.loc[known, RUN_COLUMN].astype(str)
        + "/"
        + trials.loc[known, "number"].astype(str)
    )
    trials.loc[known, "number"] = pd.factorize(keys)[0]
    trials[RUN_COLUMN] = trials[RUN_COLUMN].astype("string")
    first = runs[0]
    return replace(
        first,
        name=" and ".join(members) if len(members) < 4 else f"{len(members)} runs",
        objectives=objectives,
        params=[
            "run",
            *dict.fromkeys(p for run in runs for p in run.params if p != "run"),
        ],
        command="",
        spec={},
        seed=None,
        problems=[
            f"{label}: {problem}"
            for label, run in members.items()
            for problem in run.problems
        ],
        members=members,
        **tables,
    )


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all parts; a column whose types differ becomes text."""
    for column in dict.fromkeys(c for part in parts for c in part):
        kinds = {
            part[column].dtype
            for part in parts
            if column in part and part[column].notna().any()
        }
        numbers = all(
            pd.api.types.is_numeric_dtype(k) and not pd.api.types.is_bool_dtype(k)
            for k in kinds
        )
        wanted: Any = next(iter(kinds), "string")
        if len(kinds) > 1:
            wanted = "float64" if numbers else "string"
        parts = [
            p.assign(**{str(column): p[column].astype(wanted)}) if column in p else p
            for p in parts
        ]
    return pd.concat(parts, ignore_index=True)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names of the runs, numbered where they repeat."""
    labels: list[str] = []
    for run in runs:
        label, number = run.name, 2
        while label in labels:
            label, number = f"{run.name} ({number})", number + 1
        labels.append(label)
    return labels


def _shared_objectives(runs: Sequence[Run]) -> list[Objective]:
    found = []
    for objective in runs[0].objectives:
        theirs = [
            next((o for o in run.objectives if o.metric == objective.metric), None)
            for run in runs
        ]
        measured = all(f"metric/{objective.metric}" in run.trials for run in runs)
        if measured and all(o is None or o.mode == objective.mode for o in theirs):
            same = all(o is not None and o.bound == objective.bound for o in theirs)
            found.append(objective if same else replace(objective, bound=None))
    if not found:
        names = "; ".join(
            f"{run.name}: {', '.join(o.metric for o in run.objectives) or 'none'}"
            for run in runs
        )
        raise ValueError(
            f"the runs share no objective ({names}); compare runs that measured the"
            " same"
        )
    return found


@dataclass(frozen=True)
class Group:
    """One run, or the points with one value of a parameter, against the others.

    Volumes are shares of the box between the best values of all groups and the common
    reference point.

    Attributes:
        name: the run's name or the parameter's value.
        points: configurations that count; front: those on its own front; on_front: those on
            the front of all groups.
        volume: share of the box that its front dominates; spread: standard deviation of
            that over seeds, NaN of one.
        best: best value of each objective.
        seconds: wall time of its trials together.
        budget: volume after as many points as the smallest group has.
        at_time: volume after as much time of trials as the smallest group took.
        curves: "points", "compute" (seconds of trials) and "wall" (seconds since the first
            start) → rising (x, volume).
    """

    name: str
    points: int
    front: int
    on_front: int
    volume: float
    spread: float
    best: tuple[float, ...]
    seconds: float
    budget: float
    at_time: float
    curves: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Comparison:
    """Groups by falling volume, the reference point (metric → value) and the common budgets
    (points, seconds).
    """

    by: str
    groups: list[Group]
    reference: dict[str, float]
    budget: int
    time: float


def compare(run: Run, by: str = "run") -> Comparison:
    """Compare the groups of `run` (see `merge`) that parameter `by` makes.

    Raises ValueError where there is no such parameter, or no eligible point.
    """
    column = f"config/{by}"
    if column not in run.trials:
        raise ValueError(
            f"no parameter {by!r} to compare by; valid:"
            f" {', '.join(run.params) or 'none'}"
        )
    points = run.points()
    values = run.values(points)
    keep = pareto.eligible(values, run.objectives)
    if not keep.any():
        raise ValueError(
            "no complete trial has finite objectives within the bounds, so there is"
            " nothing to compare"
        )
    points, values = points[keep], values[keep]
    # in the order that points ended, which budgets count
    order = np.argsort(points["ended"].to_numpy(), kind="stable")
    points, values = points.iloc[order], values[order]
    reference = pareto.reference_point(values, run.objectives)
    signs = np.array([objective.sign for objective in run.objectives])
    box = float(np.prod(reference * signs - (values * signs).min(axis=0)))
    names = points[column].astype("string").fillna("not set").to_numpy()
    on_front = pareto.front_mask(values, run.objectives)
    sizes = pd.Series(names).value_counts()
    spent = _trial_seconds(run, points)
    totals = {name: float(spent[names == name].sum()) for name in sizes.index}
    budget, time = int(sizes.min()), min(totals.values())
    groups = []
    for name in sizes.index:
        mine = names == name
        volumes = (
            pareto.hypervolume_over_time(values[mine], run.objectives, reference) / box
        )
        clock = np.cumsum(spent[mine])
        within = np.flatnonzero(clock <= time * (1 + 1e-9))
        curves = {
            "points": _steps(np.arange(1, mine.sum() + 1), volumes),
            "compute": _steps(clock, volumes),
        }
        if by == "run" and run.members:
            curves["wall"] = _steps(_wall(run, str(name), points[mine]), volumes)
        groups.append(
            Group(
                name=str(name),
                points=int(mine.sum()),
                front=int(pareto.front_mask(values[mine], run.objectives).sum()),
                on_front=int(on_front[mine].sum()),
                volume=float(volumes[-1]),
                spread=_spread(run, points[mine], reference) / box,
                best=tuple(
                    float(v) for v in (values[mine] * signs).min(axis=0) * signs
                ),
                seconds=totals[name],
                budget=float(volumes[budget - 1]),
                at_time=float(volumes[within[-1]]) if len(within) else 0.0,
                curves=curves,
            )
        )
    known = {o.metric: float(v) for o, v in zip(run.objectives, reference, strict=True)}
    return Comparison(by, sorted(groups, key=lambda g: -g.volume), known, budget, time)


def _trial_seconds(run: Run, points: pd.DataFrame) -> Floats:
    """Wall time of each point's replicates together; trials without one count as 0."""
    seconds = dict(
        zip(run.trials["trial_id"], run.trials["seconds"].fillna(0.0), strict=True)
    )
    return np.array(
        [sum(seconds[trial] for trial in ids) for ids in points["trial_ids"]]
    )


def _wall(run: Run, label: str, points: pd.DataFrame) -> Floats:
    """Seconds from the run's first start to the end of each point; 0 where times are unknown."""
    start = run.members[label].trials["started"].min()
    seconds = (points["ended"] - start).dt.total_seconds().fillna(0.0)
    return np.maximum.accumulate(np.maximum(seconds.to_numpy(dtype=np.float64), 0.0))


def _steps(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """The points of a rising curve where it rises, and its end."""
    keep = np.diff(y, prepend=-1.0) > 0
    keep[-1] = True
    return [float(v) for v in x[keep]], [float(v) for v in y[keep]]


def _spread(run: Run, points: pd.DataFrame, reference: Floats) -> float:
    """Standard deviation over seeds of the volume that one seed's trials dominate; NaN of
    one seed.
    """
    ids = {trial for trials in points["trial_ids"] for trial in trials}
    trials = run.trials[run.trials["trial_id"].isin(ids)]
    volumes = [
        pareto.hypervolume(run.values(part), run.objectives, reference)
        for _, part in trials.groupby("replicate")
    ]
    return float(np.std(volumes, ddof=1)) if len(volumes) > 1 else float("nan")
