"""A searcher without Ray, and trials that end as a test says."""

from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from sweeps.check import check_spec
from sweeps.run.record import TrialRecord, trial_folder, trial_records
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from

COMMON: dict[str, Any] = {
    "run": "",
    "cache": "",
    "data_cache": "",
    "measure": {},
    "device": "cpu",
    "threads": 1,
    "max_failures": 0,
    "remote": None,
}


def searcher(raw: dict[str, Any], run: Path, **search: Any) -> StudySearch:
    """A searcher of the small spec with these changes under `search`."""
    checked = check_spec(spec_from(raw | {"search": raw["search"] | search}))
    run.mkdir(parents=True, exist_ok=True)
    return StudySearch(checked, run, COMMON | {"run": str(run)})


def begin(search: StudySearch, run: Path, tune_id: str) -> TrialRecord:
    """Suggest, and begin the trial's record."""
    suggestion = search.suggest(tune_id)
    assert isinstance(suggestion, dict)
    plan = suggestion["plan"]
    facts = {"refines": None} | plan | {"pipeline": plan["stages"]}
    return TrialRecord.begin(trial_folder(run, plan["trial_id"]), facts)


def finish(
    search: StudySearch,
    run: Path,
    tune_id: str,
    status: Any = "complete",
    **metrics: float,
) -> dict[str, Any]:
    """Suggest, and pretend that the trial ended like this; its plan."""
    record = begin(search, run, tune_id)
    record.finish(status, metrics=metrics)
    search.on_trial_complete(tune_id, {"status": status})
    return record.content


def states(search: StudySearch) -> list[TrialState]:
    return [t.state for t in search.study.get_trials()]


def contents(run: Path) -> dict[str, dict[str, Any]]:
    """Trial id → record."""
    return {r.content["trial_id"]: r.content for r in trial_records(run)}
