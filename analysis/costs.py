"""What a run's stages took, where the stage cache had them from, and what all had taken without."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analysis.numbers import plural
from analysis.run import Run


class Earlier(NamedTuple):
    """A stage whose results the trials found in the stage cache, and none of them computed.

    Attributes:
        name: of the stage.
        results: different ones that it gave.
        seconds: that these took where they were computed.
    """

    name: str
    results: int
    seconds: float


def shared_stages(run: Run) -> set[str]:
    """Names of stages that are the same in all trials of a seed, as a teacher that no searched
    parameter touches. Without the cache it would be trained once for each seed, not once a trial.
    """
    stages = run.stages[run.stages["key"].notna() & run.stages["name"].notna()]
    replicates = run.trials.set_index("trial_id")["replicate"]
    stages = stages.assign(replicate=stages["trial_id"].map(replicates).fillna(0))
    trials = stages["trial_id"].nunique()
    found = set()
    for name, mine in stages.groupby("name"):
        seeds = mine["replicate"].nunique()
        is_one = mine.groupby("replicate")["key"].nunique().max() == 1
        if is_one and seeds < mine["trial_id"].nunique() == trials:
            found.add(str(name))
    return found


def earlier_stages(run: Run) -> list[Earlier]:
    """What was computed before the trials of this run, and not by its baseline either."""
    stages = run.stages[run.stages["key"].notna()]
    own = set(run.baseline.computed) if run.baseline is not None else set()
    own |= set(stages.loc[~stages["cached"].fillna(False).astype(bool), "key"])
    mine = stages[~stages["key"].isin(own) & stages["seconds_full"].notna()]
    once = mine.drop_duplicates("key")
    groups = once.groupby("name", sort=False, dropna=False)["seconds_full"]
    return [
        Earlier("" if pd.isna(name) else str(name), len(seconds), float(seconds.sum()))
        for name, seconds in groups
    ]


def named_earlier(stage: Earlier) -> str:
    """As the cost table names it: 'teacher, computed before this run'."""
    count = f" ({plural(stage.results, 'result')})" if stage.results > 1 else ""
    return f"{stage.name}{count}, computed before this run"


def stage_saving(run: Run) -> pd.Series:
    """For each row of `run.stages` the seconds that reading it from the stage cache saved; 0 of a
    stage that all share (see `shared_stages`).
    """
    stages = run.stages
    saved = (stages["seconds_full"] - stages["seconds"]).clip(lower=0)
    is_hit = stages["cached"].fillna(False).astype(bool)
    is_own = ~stages["name"].isin(shared_stages(run))
    return saved.where(is_hit & is_own, 0.0).fillna(0.0)


def shared_reading(run: Run) -> float:
    """Seconds that the trials would have needed for the stages that all share, had each computed
    them itself.
    """
    stages = run.stages[run.stages["name"].isin(shared_stages(run))]
    stages = stages[stages["cached"].fillna(False).astype(bool)]
    return float((stages["seconds_full"] - stages["seconds"]).clip(lower=0).sum())
