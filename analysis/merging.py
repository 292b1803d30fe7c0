"""Several runs as one, so that they can be shown and compared together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.baseline import Baseline
from analysis.configurations import is_numeric
from analysis.contract import Objective
from analysis.metrics import Metrics
from analysis.run import Run
from analysis.tables.schema import TABLES

RUN_PARAMETER = "run"
"""Parameter of a merged run that names the run that a trial came from."""
_RUN_COLUMN = f"config/{RUN_PARAMETER}"


def merge(runs: Sequence[Run]) -> Run:
    """The runs as one: trial ids become `<run>/<id>`, parameter `run` says which, and the
    objectives are those that they share.

    A bound holds where all runs have it. Raises ValueError where there are fewer than two
    runs, or no shared objective.
    """
    if len(runs) < 2:
        raise ValueError("give two runs or more to compare")
    objectives = _shared_objectives(runs)
    members = dict(zip(_labels(runs), runs, strict=True))
    tables: dict[str, Any] = {name: _table(name, members) for name in TABLES}
    _number_anew(tables["trials"])
    parameters = [p for run in runs for p in run.parameters if p != RUN_PARAMETER]
    metrics = Metrics()
    for run in reversed(runs):
        metrics |= run.metrics
    return replace(
        runs[0],
        title="",
        name=" and ".join(members) if len(members) < 4 else f"{len(members)} runs",
        objectives=objectives,
        parameters=[RUN_PARAMETER, *dict.fromkeys(parameters)],
        command="",
        spec={},
        data="",
        remarks=[
            f"{label}: {text}"
            for label, run in members.items()
            for text in [run.data, *run.remarks]
            if text
        ],
        seed=None,
        baseline=_shared_baseline(runs, objectives),
        metrics=Metrics(metrics),
        problems=[
            f"{label}: {problem}"
            for label, run in members.items()
            for problem in run.problems
        ],
        members=members,
        notes={
            f"{label}/{trial}": note
            for label, run in members.items()
            for trial, note in run.notes.items()
        },
        **tables,
    )


def _table(name: str, members: dict[str, Run]) -> pd.DataFrame:
    """Rows of one table of all runs, with trial ids of their own."""
    parts = []
    for label, run in members.items():
        data: pd.DataFrame = getattr(run, name)
        ids = (f"{label}/" + data["trial_id"]).astype(data["trial_id"].dtype)
        part = data.assign(trial_id=ids)
        if name == "trials":
            part = part.assign(**{_RUN_COLUMN: label})
        parts.append(part)
    return _stacked(parts)


def _number_anew(trials: pd.DataFrame) -> None:
    """Numbers count the configurations of one sweep: make them count those of all."""
    known = trials["number"].notna()
    run, number = trials.loc[known, _RUN_COLUMN], trials.loc[known, "number"]
    keys = run.astype(str) + "/" + number.astype(str)
    trials.loc[known, "number"] = pd.factorize(keys)[0]
    trials[_RUN_COLUMN] = trials[_RUN_COLUMN].astype("string")


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all parts; a column whose types differ becomes text, or of numbers a float."""
    for column in dict.fromkeys(str(c) for part in parts for c in part):
        present = [part[column] for part in parts if column in part]
        filled = [series for series in present if series.notna().any()]
        kinds = {series.dtype for series in filled}
        wanted: Any = next(iter(kinds), "string")
        if len(kinds) > 1:
            wanted = "float64" if all(map(is_numeric, filled)) else "string"
        parts = [
            part.assign(**{column: part[column].astype(wanted)})
            if column in part
            else part
            for part in parts
        ]
    return pd.concat(parts, ignore_index=True)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Headings of the runs, numbered where they repeat; a slash would end them in a trial's id."""
    labels: list[str] = []
    for run in runs:
        heading = run.heading.replace("/", " per ")
        label, number = heading, 2
        while label in labels:
            label, number = f"{heading} ({number})", number + 1
        labels.append(label)
    return labels


def _shared_baseline(
    runs: Sequence[Run], objectives: Sequence[Objective]
) -> Baseline | None:
    """The runs' baseline, where all measured the same model's: equal in every objective."""
    first = runs[0].baseline
    names = [objective.metric for objective in objectives]
    for run in runs:
        if first is None or run.baseline is None or run.baseline.name != first.name:
            return None
        if any(run.baseline.metrics.get(n) != first.metrics.get(n) for n in names):
            return None
    return first


def _shared_objectives(runs: Sequence[Run]) -> list[Objective]:
    """The first run's objectives that all have measured, and that none wants the other way."""
    found = []
    for objective in runs[0].objectives:
        theirs = [
            next((o for o in run.objectives if o.metric == objective.metric), None)
            for run in runs
        ]
        measured = all(f"metric/{objective.metric}" in run.trials for run in runs)
        if measured and all(o is None or o.mode == objective.mode for o in theirs):
            same = all(o is not None and o.limit == objective.limit for o in theirs)
            found.append(objective if same else replace(objective, bound=None))
    if not found:
        names = "; ".join(
            f"{run.heading}: {', '.join(o.metric for o in run.objectives) or 'none'}"
            for run in runs
        )
        raise ValueError(
            f"the runs share no objective ({names}); compare runs that measured the same"
        )
    return found
