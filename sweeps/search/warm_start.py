"""Trials of earlier runs as knowledge of a new study."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from analysis.contract import Objective
from sweeps.run.record import trial_records
from sweeps.search.study import placed
from sweeps.space.space import Space
from sweeps.values import excesses, finite_values


def add_earlier_runs(
    study: optuna.Study,
    runs: Sequence[Path],
    space: Space,
    objectives: Sequence[Objective],
) -> list[str]:
    """Add what the complete trials of `runs` tell, once; a line about each run: how many,
    and why not the others.

    A configuration is one trial of the study, with the mean over its complete replicates,
    as in its own run.
    """
    known = {t.user_attrs.get("from") for t in study.get_trials(deepcopy=False)}
    lines = []
    for run in runs:
        taken, refused = 0, Counter[str]()
        for number, records in _configurations(run).items():
            name = f"{run.absolute()}#{number}"
            values = [
                v
                for r in records
                if r["status"] == "complete"
                and (v := finite_values(r["metrics"], objectives))
            ]
            if name in known:
                taken += 1
                continue
            try:
                if not values:
                    raise ValueError(
                        records[0]["status"]
                        if records[0]["status"] != "complete"
                        else "no finite objectives"
                    )
                params, distributions = placed(space, records[0]["params"])
            except ValueError as error:
                refused[str(error)] += 1
                continue
            means = [sum(column) / len(column) for column in zip(*values, strict=True)]
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=means,
                    params=params,
                    distributions=distributions,
                    user_attrs={"from": name},
                    constraints=excesses(means, objectives),
                )
            )
            taken += 1
        why = "; ".join(
            f"{count} × {reason}" for reason, count in refused.most_common()
        )
        lines.append(
            f"{run}: {taken} configurations known"
            + (f", {refused.total()} not ({why})" if refused else "")
        )
    return lines


def _configurations(run: Path) -> dict[int, list[dict[str, Any]]]:
    """Number → records of its replicates, complete ones first; without refined trials,
    which are longer.
    """
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in trial_records(run):
        if record.content.get("refines") is None:
            found[record.content["number"]].append(record.content)
    return {
        n: sorted(records, key=lambda r: r["status"] != "complete")
        for n, records in found.items()
    }
