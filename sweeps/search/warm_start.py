"""Trials of earlier runs as knowledge of a new study."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.contract import Objective
from sweeps.run.record import TrialRecord, trial_records
from sweeps.search.study import checked_draw
from sweeps.space.space import Space


def add_earlier_runs(
    study: optuna.Study,
    runs: Sequence[Path],
    space: Space,
    objectives: Sequence[Objective],
) -> list[str]:
    """Add what the complete trials of `runs` say, once.

    A configuration is one trial of the study, with the mean over its complete replicates, as in
    its own run.

    Returns:
        A line about each run: how many configurations are known, and why not the others.
    """
    known = {t.user_attrs.get("from") for t in study.get_trials(deepcopy=False)}
    lines = []
    for run in runs:
        taken, refused = 0, Counter[str]()
        for number, records in configurations_of(run).items():
            name = f"{run.absolute()}#{number}"
            try:
                if name not in known:
                    study.add_trial(_as_trial(name, records, space, objectives))
                taken += 1
            except ValueError as error:
                refused[str(error)] += 1
        why = "; ".join(
            f"{count} × {reason}" for reason, count in refused.most_common()
        )
        others = f", {refused.total()} not ({why})" if refused else ""
        lines.append(f"{run}: {taken} configurations known{others}")
    return lines


def _as_trial(
    name: str,
    records: Sequence[TrialRecord],
    space: Space,
    objectives: Sequence[Objective],
) -> FrozenTrial:
    """A configuration as a complete trial of the study.

    Raises:
        ValueError: why it says nothing, or lies outside the space.
    """
    values = complete_values(records, objectives)
    first = records[0]
    if not values:
        is_complete = first.status == "complete"
        raise ValueError("no finite objectives" if is_complete else first.status)
    params, distributions = checked_draw(space, first.plan.draw)
    means = mean_values(values)
    return create_trial(
        state=TrialState.COMPLETE,
        values=means,
        params=params,
        distributions=distributions,
        user_attrs={"from": name},
        constraints=constraints_of(means, objectives),
    )


def complete_values(
    records: Iterable[TrialRecord], objectives: Sequence[Objective]
) -> list[list[float]]:
    """The objectives of each trial that is complete with all of them."""
    found = (record.values(objectives) for record in records)
    return [values for values in found if values is not None]


def mean_values(values: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each objective over replicates."""
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def constraints_of(
    values: Sequence[float], objectives: Sequence[Objective]
) -> dict[str, float]:
    """For each bound how far its value lies beyond it: what Optuna calls constraints."""
    return {
        f"bound.{objective.metric}": objective.excess(value)
        for objective, value in zip(objectives, values, strict=True)
        if objective.bound is not None
    }


def enumerate_earlier(runs: Sequence[Path]) -> Iterator[tuple[int, list[TrialRecord]]]:
    """The configurations of earlier runs, with numbers below 0."""
    found = [records for run in runs for records in configurations_of(run).values()]
    yield from ((-1 - index, records) for index, records in enumerate(found))


def configurations_of(run: Path) -> dict[int, list[TrialRecord]]:
    """Number → records of its replicates, complete ones first.

    Refined trials are left out, as they were trained for longer.
    """
    found: defaultdict[int, list[TrialRecord]] = defaultdict(list)
    for record in trial_records(run):
        if record.plan.refines is None:
            found[record.plan.number].append(record)
    return {
        number: sorted(records, key=lambda r: r.status != "complete")
        for number, records in found.items()
    }
