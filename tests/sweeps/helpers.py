"""A searcher without Ray, and trials that end as a test says."""

from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from sweeps.check import check_spec
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from


def site(run: Path, **fields: Any) -> Site:
    """A site of one process on this machine, with its caches beside the run folder."""
    folders = {"cache": run.parent / "_cache", "data_cache": run.parent / "_data"}
    return Site(run=run, **(folders | fields))


def plan(trial_id: str = "00000", **fields: Any) -> TrialPlan:
    """A plan of a trial that trains nothing."""
    empty: dict[str, Any] = {
        "number": 0,
        "replicate": 0,
        "seed": 0,
        "configuration": {},
        "draw": {},
        "source": {"model": "resnet20_cifar"},
        "data": {},
        "stages": (),
        "measure": {"latency": False},
    }
    return TrialPlan.model_validate({"trial_id": trial_id} | empty | fields)


def searcher(raw: dict[str, Any], run: Path, **search: Any) -> StudySearch:
    """A searcher of the small spec with these changes under `search`."""
    sweep = check_spec(spec_from(raw | {"search": raw["search"] | search}))
    run.mkdir(parents=True, exist_ok=True)
    return StudySearch(sweep, RunStorage(run))


def begin(search: StudySearch) -> TrialRecord:
    """Ask for a trial, and begin its record."""
    plan = search.ask()
    assert plan is not None
    return TrialRecord.begin(trial_folder(search.run, plan.trial_id), plan)


def finish(
    search: StudySearch, status: Any = "complete", **metrics: float
) -> TrialRecord:
    """Ask for a trial, and pretend that it ended like this; its record."""
    record = begin(search)
    record.finish(status, metrics=metrics)
    search.tell(record)
    return record


def states(search: StudySearch) -> list[TrialState]:
    return [t.state for t in search.study.get_trials()]


def records(run: Path) -> dict[str, TrialRecord]:
    """Trial id → record."""
    return {record.trial_id: record for record in trial_records(run)}
