"""What trials are compared with: which model it is, and that the search hears nothing of it."""

import math
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.contract import BASELINE, Objective, RelativeBound, resolved
from sweeps.check import check_spec
from sweeps.drive.interrupted import mark_interrupted
from sweeps.resume import reopen
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.run.storage import RunStorage
from sweeps.search.baseline import baseline_plan
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, finish, searcher, states
from trainers.config import SourceConfig
from trainers.models.source import load_source


def plan_of(raw: dict[str, Any], **search: Any) -> TrialPlan | None:
    changed = raw["search"] | {"baseline": True} | search
    return baseline_plan(check_spec(spec_from(raw | {"search": changed})))


def test_a_random_source_is_measured_after_its_unsearched_training(
    raw: dict[str, Any],
) -> None:
    plan = plan_of(raw)
    assert plan is not None
    assert [stage.name for stage in plan.stages] == ["teacher"]
    assert (plan.trial_id, plan.configuration, plan.seed) == (BASELINE, {}, 0)


def test_alternatives_that_leave_a_stage_out_are_no_baseline(
    raw: dict[str, Any],
) -> None:
    """The first configuration is then the baseline's own pipeline, and others are not."""
    store = {"one_of": {"float": None, "rounded": {"stage": "uniform_quant"}}}
    stages = {"teacher": raw["stages"]["teacher"], "store": store}
    search = {"trials": 2, "baseline": True}
    plan = baseline_plan(
        check_spec(spec_from(raw | {"stages": stages, "search": search}))
    )
    assert plan is not None
    assert [stage.name for stage in plan.stages] == ["teacher"]
    alone = raw | {"stages": {"teacher": stages["teacher"]}, "search": search}
    assert baseline_plan(check_spec(spec_from(alone))) is None


def test_the_first_searched_stage_ends_the_baseline(raw: dict[str, Any]) -> None:
    space = raw["search"]["space"] | {"stages.teacher.lr": [1e-3, 1e-2]}
    assert plan_of(raw, space=space) is None


def test_a_searched_source_or_data_set_has_no_baseline(raw: dict[str, Any]) -> None:
    for place, values in {"source.args.depth": [1, 2], "data.limit": [60, 120]}.items():
        space = raw["search"]["space"] | {place: values}
        assert plan_of(raw, space=space) is None


def test_no_baseline_where_every_trial_is_it(raw: dict[str, Any]) -> None:
    assert plan_of(raw, baseline=False) is None
    raw["stages"] = {"teacher": raw["stages"]["teacher"]}
    assert plan_of(raw, space={}) is None


def test_a_trained_source_is_the_baseline_itself(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    source = SourceConfig.model_validate(raw["source"])
    load_source(source, num_classes=10, image_size=32, seed=0).save(
        tmp_path / "trained"
    )
    raw["source"] = {"checkpoint": str(tmp_path / "trained")}
    plan = plan_of(raw)
    assert plan is not None
    assert plan.stages == ()


def test_the_baseline_comes_first_and_the_study_hears_nothing_of_it(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    search = searcher(raw, tmp_path / "run", trials=2, baseline=True)
    assert (search.num_trials, search.asks_baseline) == (2, True)
    baseline = finish(search, accuracy=0.9, gmacs=5.0)
    assert baseline.trial_id == BASELINE
    assert states(search) == []
    trials = [finish(search, accuracy=0.5, gmacs=1.0) for _ in range(2)]
    assert [trial.trial_id for trial in trials] == ["00000", "00001"]
    assert search.ask() is None
    again = searcher(raw, tmp_path / "run", trials=3, baseline=True)
    assert (again.num_trials, again.asks_baseline) == (1, False)


def test_an_interrupted_baseline_is_asked_for_again(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begin(searcher(raw, run, trials=2, baseline=True))
    mark_interrupted(RunStorage(run))
    record = TrialRecord.read(trial_folder(run, BASELINE))
    assert record is not None
    assert record.status == "interrupted"
    again = searcher(raw, run, trials=2, baseline=True)
    plan = again.ask()
    assert plan is not None
    assert plan.trial_id == BASELINE


def test_reports_compare_with_it_and_tables_alone_keep_it(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    from sweeps.drive.driver import run_header
    from sweeps.run.record import to_json
    from trainers.files import write_atomic

    run = tmp_path / "run"
    search = searcher(raw, run, trials=1, baseline=True)
    write_atomic(run / "run.json", to_json(run_header(search.sweep, [])))
    finish(search, accuracy=0.9, gmacs=5.0)
    finish(search, accuracy=0.875, gmacs=2.0)
    found = analysis.gather(run)
    assert len(found.trials) == 1
    assert found.baseline is not None
    assert found.baseline.name == "the source"  # this record names no stage
    assert analysis.baseline_figures(found) == "accuracy 90.00 %, gmacs 5"
    page = analysis.write_report(found).read_text()
    assert "accuracy −2.5 points, gmacs 2.5 × lower against the source." in page
    markdown = analysis.write_markdown(found, run / "run.md").read_text()
    assert "accuracy −2.5 points, gmacs 2.5 × lower" in markdown
    for folder in ("trials", BASELINE):
        (run / folder).rename(tmp_path / folder)
    kept = analysis.load(run).baseline
    assert kept == found.baseline


def test_a_damaged_baseline_is_named_and_the_rest_loads(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    search = searcher(raw, run, trials=1, baseline=True)
    finish(search, accuracy=0.9, gmacs=5.0)
    finish(search, accuracy=0.875, gmacs=2.0)
    (run / BASELINE / "record.json").write_text("{half")
    found = analysis.load(run)
    assert found.baseline is None
    assert any(BASELINE in problem for problem in found.problems)
    assert len(found.trials) == 1


LOSS = {"metric": "accuracy", "mode": "max", "bound": {"loss": 0.01, "to": "source"}}
HALF = {"metric": "gmacs", "mode": "min", "bound": {"times": 0.5, "to": "source"}}


def test_only_the_baseline_runs_until_the_bounds_are_known(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    raw["objectives"] = [LOSS, HALF]
    search = searcher(raw, tmp_path / "run", trials=3, baseline=True)
    record = begin(search)
    assert record.trial_id == BASELINE
    assert search.ask() is None
    assert search.is_waiting
    record.finish("complete", metrics={"accuracy": 0.9, "gmacs": 4.0})
    search.tell(record)
    assert [o.bound for o in search.spec.objectives] == pytest.approx([0.89, 2.0])
    plan = finish(search, accuracy=0.8, gmacs=1.0).plan
    assert plan.bounds == pytest.approx({"accuracy": 0.89, "gmacs": 2.0})
    constraints = search.study.get_trials()[0].constraints
    assert constraints == pytest.approx({"bound.accuracy": 0.09, "bound.gmacs": -1})
    again = searcher(raw, tmp_path / "run", trials=3, baseline=True)
    assert again.spec.objectives == search.spec.objectives
    found = analysis.load(tmp_path / "run")
    assert found.trials["trial_id"].tolist() == ["00000"]


def test_nothing_runs_where_the_baseline_gave_no_bound(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    raw["objectives"] = [LOSS]
    search = searcher(raw, tmp_path / "run", trials=3, baseline=True)
    record = begin(search)
    record.finish("failed", error=ValueError("no such picture"))
    search.tell(record)
    assert search.ask() is None
    assert not search.is_waiting
    assert "no such picture" in search.notes[-1]
    assert reopen(tmp_path / "run", "failed") == 1
    again = begin(searcher(raw, tmp_path / "run", trials=3, baseline=True))
    assert again.trial_id == BASELINE


@pytest.mark.parametrize(
    ("bound", "mode", "limit"),
    [
        ({"loss": 0.01}, "max", 0.79),
        ({"loss": 0.01}, "min", 0.81),
        ({"loss": 0.25, "relative": True}, "max", 0.6),
        ({"loss": 0.25, "relative": True}, "min", 1.0),
        ({"loss": -0.1}, "max", 0.9),
        ({"times": 0.5}, "min", 0.4),
    ],
)
def test_a_relative_bound_is_a_number_once_the_source_is_measured(
    bound: dict[str, Any], mode: Any, limit: float
) -> None:
    objective = Objective("m", mode, RelativeBound(**bound))
    assert not objective.excess(0.8) <= 0
    (known,) = resolved([objective], {"m": 0.8})
    assert known.bound == pytest.approx(limit)
    assert resolved([objective], {"m": math.nan}) == [objective]


@pytest.mark.parametrize(
    ("bound", "wrong"),
    [
        ({"loss": 1, "to": "source"}, r"bound\.loss: 1 is .* 1 % is written 0\.01"),
        ({"loss": 0.1, "times": 0.5}, "either loss or times"),
        ({"times": 0.5, "relative": True}, "relative goes with loss"),
        ({"loss": 0.1, "to": "teacher"}, "'source'"),
    ],
)
def test_a_bound_that_says_nothing_is_refused(
    raw: dict[str, Any], bound: dict[str, Any], wrong: str
) -> None:
    raw["objectives"] = [LOSS | {"bound": bound}]
    with pytest.raises(SpecError, match=wrong):
        plan_of(raw)


def test_a_relative_bound_needs_a_baseline_that_has_the_metric(
    raw: dict[str, Any],
) -> None:
    raw["objectives"] = [LOSS]
    with pytest.raises(SpecError, match=r"objectives\.0\.bound: .* no baseline"):
        plan_of(raw, baseline=False)
