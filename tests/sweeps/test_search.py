"""The searcher without Ray: what the study is told, budgets, replicates, going on."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps import check_pipelines
from sweeps.check import check_spec
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord, trial_records
from sweeps.run.storage import RunStorage
from sweeps.search.samplers import sampler_of
from sweeps.search.searcher import StudySearch
from sweeps.search.study import canonical, draw
from sweeps.spec.load import preset_names, spec_from
from sweeps.trial.attempt import run_trial
from tests.sweeps.helpers import begin, finish, records, searcher, site, states


def test_optuna_hears_finite_values_or_fail(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    search = searcher(raw, tmp_path, trials=5)
    finish(search, accuracy=0.5, gmacs=1.0)
    finish(search, accuracy=math.nan, gmacs=1.0)
    finish(search, gmacs=1.0)
    finish(search, "failed")
    died = search.ask()
    assert died is not None
    record = TrialRecord.read(trial_folder(tmp_path, died.trial_id))
    assert record is not None
    record.finish("failed", error="its process died")  # which had begun no record
    search.tell(record)
    assert states(search) == [TrialState.COMPLETE] + [TrialState.FAIL] * 4
    assert search.study.get_trials()[0].values == [0.5, 1.0]
    assert search.ask() is None


def test_replicates_are_told_as_their_mean(raw: dict[str, Any], tmp_path: Path) -> None:
    search = searcher(raw, tmp_path, trials=2, replicates=3)
    assert search.num_trials == 6
    plans = [finish(search, accuracy=0.1 * i, gmacs=2.0) for i in range(3)]
    assert [p.trial_id for p in plans] == ["00000-r0", "00000-r1", "00000-r2"]
    assert [p.plan.seed for p in plans] == [0, 1, 2]
    assert len({repr(p.plan.stages) for p in plans}) == 1
    assert search.study.get_trials()[0].values == pytest.approx([0.1, 2.0])
    finish(search, "failed")
    finish(search, accuracy=0.4, gmacs=2.0)
    finish(search, accuracy=0.6, gmacs=2.0)
    assert search.study.get_trials()[1].values == pytest.approx(
        [0.5, 2.0]
    )  # of those that there are


def test_going_on_keeps_what_is_complete(raw: dict[str, Any], tmp_path: Path) -> None:
    first = searcher(raw, tmp_path, trials=4, replicates=2)
    for _ in range(3):
        finish(first, accuracy=0.5, gmacs=1.0)
    lost = finish(first, "interrupted")
    dead = begin(first)  # the driver dies here
    dead.finish("interrupted")
    second = searcher(raw, tmp_path, trials=4, replicates=2)
    assert second.num_trials == 8 - 3
    plans = [finish(second, accuracy=0.7, gmacs=1.0) for i in range(5)]
    assert second.ask() is None
    assert plans[0].trial_id == lost.trial_id == "00001-r1"
    assert plans[0].plan.draw == lost.plan.draw
    assert [p.trial_id for p in plans[1:3]] == ["00002-r0", "00002-r1"]
    assert plans[1].plan.draw == dead.plan.draw
    records = list(trial_records(tmp_path))
    assert len(records) == 8
    assert all(r.status == "complete" for r in records)
    told = [t for t in second.study.get_trials() if t.state == TrialState.COMPLETE]
    assert sorted(t.user_attrs["number"] for t in told) == [0, 1, 2, 3]
    assert TrialState.RUNNING not in states(second)
    assert searcher(raw, tmp_path, trials=4, replicates=2).num_trials == 0
    assert (
        searcher(raw, tmp_path, trials=6, replicates=2).num_trials == 4
    )  # the budget may grow


def test_a_continued_random_search_draws_new_points(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    first = searcher(raw, tmp_path, trials=3)
    early = [
        finish(first, accuracy=0.5, gmacs=1.0).plan.draw["stages.finetune.lr"]
        for i in range(3)
    ]
    second = searcher(raw, tmp_path, trials=6)
    late = [
        finish(second, accuracy=0.5, gmacs=1.0).plan.draw["stages.finetune.lr"]
        for i in range(3)
    ]
    assert not set(early) & set(late)


RESUMED: list[Any] = [
    "tpe",
    "random",
    "nsga2",
    "gp",
    {"optuna": "QMCSampler", "n_startup_trials": 3},
    {"optuna": "NSGAIISampler", "population_size": 4},
    {"optuna": "NSGAIIISampler", "population_size": 4},
    {"optuna": "TPESampler", "multivariate": True, "n_startup_trials": 4},
    {"optuna": "CmaEsSampler", "n_startup_trials": 3},
]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", RESUMED, ids=str)
def test_an_interrupted_search_draws_what_it_would_have_drawn(
    raw: dict[str, Any], tmp_path: Path, sampler: Any
) -> None:
    """With one trial at a time; drivers die before, while and after a trial runs."""
    if "CmaEsSampler" in str(sampler):
        pytest.importorskip("cmaes")
        raw["objectives"] = raw["objectives"][:1]
    sweep = check_spec(
        spec_from(raw | {"search": raw["search"] | {"sampler": sampler, "trials": 13}})
    )
    draws: list[list[Any]] = []
    for name, deaths in (("whole", ()), ("cut", (2, 5, 11))):
        run = tmp_path / name
        run.mkdir()
        search = StudySearch(sweep, RunStorage(run))
        found = []
        for i in range(13):
            if i in deaths:
                if i % 2:
                    search.ask()
                search = StudySearch(sweep, RunStorage(run))
            metrics = {"accuracy": (i * 7 % 13) / 13, "gmacs": 1.0 + i % 3}
            found.append(finish(search, **metrics).plan.draw)
        draws.append(found)
        assert search.ask() is None
    assert draws[0] == draws[1]


class DriverKilled(BaseException):
    """Nothing after it reaches the disk."""


@pytest.mark.parametrize("sampler", ["random", "random of few", "grid"])
def test_a_driver_may_die_at_any_write_to_the_study(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Whichever line of the journal was the last: each configuration ends once, with the
    point that it would have had.
    """
    space: dict[str, Any] = {
        "stages.finetune.lr": [1e-3, 1e-2],
        "stages.finetune.drop": [0.0, 0.1],
    }
    if sampler == "random":
        space["stages.finetune.lr"] = {"low": 1e-4, "high": 1e-2, "log": True}
    raw["stages"]["init"] = {"stage": "random_init"}
    raw["search"] = {
        "sampler": sampler.split()[0],
        "trials": 4,
        "space": space,
        "points": [{"stages.finetune.drop": 0.1}],
    }
    sweep = check_spec(spec_from(raw))
    write = JournalFileBackend.append_logs
    left = [0]

    def append_logs(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise DriverKilled
        write(self, logs)

    def whole(run: Path) -> dict[str, Any]:
        run.mkdir(exist_ok=True)
        search = StudySearch(sweep, RunStorage(run))
        while (plan := search.ask()) is not None:
            record = TrialRecord.begin(trial_folder(run, plan.trial_id), plan)
            record.finish("complete", metrics={"accuracy": 0.5, "gmacs": 1.0})
            search.tell(record)
        return {r.trial_id: r.plan.draw for r in trial_records(run)}

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_logs)
    wanted = whole(tmp_path / "whole")
    writes = -left[0]
    assert len(wanted) == 4
    for last in range(1, writes + 1):
        run, left[0] = tmp_path / str(last), last
        with pytest.raises(DriverKilled):
            whole(run)
        for record in trial_records(run):
            if record.status == "running":
                record.finish("interrupted")
        left[0] = 0
        before = records(run)
        assert whole(run) == wanted, f"killed at write {last} of {writes}"
        for record in trial_records(run):
            earlier = before.get(record.trial_id)
            was_cut = earlier is not None and earlier.status == "interrupted"
            assert record.attempts == 1 or was_cut


def test_same_seed_same_suggestions(raw: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        search = searcher(raw, tmp_path / name, sampler="tpe", trials=14)
        runs.append(
            [finish(search, accuracy=i / 14, gmacs=1.0).plan.draw for i in range(14)]
        )
    assert runs[0] == runs[1]


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp"])
def test_every_sampler_fills_its_budget(
    raw: dict[str, Any], tmp_path: Path, sampler: str
) -> None:
    search = searcher(raw, tmp_path, sampler=sampler, trials=13)
    plans = [finish(search, accuracy=i / 13, gmacs=1.0 + i % 3) for i in range(13)]
    assert search.ask() is None
    assert set(states(search)) == {TrialState.COMPLETE}
    assert len({repr(sorted(p.plan.draw.items())) for p in plans}) == 13


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp"])
def test_no_configuration_is_tried_twice(
    raw: dict[str, Any], tmp_path: Path, sampler: str
) -> None:
    """A space of 5 x 3 points, asked for 40 times: every point once, then the search is over."""
    space = {
        "stages.init.*.args.embed_dim": [16, 32],
        "stages.finetune.lr": {"low": 0.1, "high": 0.7, "step": 0.3},
    }
    options: dict[str, Any] = {"sampler": sampler, "trials": 40, "space": space}
    search = searcher(raw, tmp_path, **options)
    assert search.num_trials == search.sweep.num_configurations == 15
    # the first is always the best, and what a sampler then asks for again
    plans = [finish(search, accuracy=1 / (1 + i), gmacs=1.0 + i) for i in range(9)]
    search = searcher(raw, tmp_path, **options)
    assert search.num_trials == 6
    plans += [finish(search, accuracy=1 / (1 + i), gmacs=1.0 + i) for i in range(9, 15)]
    assert search.ask() is None
    assert len({repr(sorted(p.plan.draw.items())) for p in plans}) == 15
    assert [p.plan.number for p in plans] == list(range(15))
    assert searcher(raw, tmp_path, **options).num_trials == 0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_is_stuck_in_a_continuum_is_helped(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alternative has a continuum, another is a single point, which is all that the
    sampler draws.
    """
    raw["stages"]["finetune"] = {
        "one_of": {"finetune": raw["stages"]["finetune"], "none": None}
    }
    raw["stages"]["init"] = {"stage": "random_init"}
    space = {"stages.finetune.finetune.lr": {"low": 1e-4, "high": 1e-2, "log": True}}

    def stuck(*arguments: Any) -> optuna.samplers.BaseSampler:
        return optuna.samplers.PartialFixedSampler(
            {"stages.finetune": "none"}, sampler_of(*arguments)
        )

    monkeypatch.setattr("sweeps.search.study.sampler_of", stuck)
    search = searcher(raw, tmp_path, sampler="tpe", trials=6, space=space)
    plans = [finish(search, accuracy=0.5, gmacs=1.0) for i in range(6)]
    assert [p.plan.draw["stages.finetune"] for p in plans] == ["none"] + [
        "finetune"
    ] * 5
    assert len({p.plan.draw.get("stages.finetune.finetune.lr") for p in plans}) == 6


class Stubborn(optuna.samplers.RandomSampler):
    """Draws what it drew first, until it is seeded with 2."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed if seed == 2 else 0)


def test_a_sampler_that_repeats_itself_hears_what_it_knows() -> None:
    study = optuna.create_study()

    def reseed(attempt: int) -> None:
        study.sampler = Stubborn(attempt)

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        return {"x": trial.suggest_float("x", 0.0, 1.0)}

    first, point = draw(study, suggest, canonical, set(), reseed)
    assert first is not None
    running, other = draw(
        study, suggest, canonical, {canonical(point)}, reseed
    )  # 0 and 1 repeat what still runs
    assert running is not None
    assert other != point
    assert [t.state for t in study.trials] == [
        TrialState.RUNNING,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    first.set_constraint("too slow", 0.25)
    study.tell(first, 0.7)
    last, again = draw(
        study, suggest, canonical, {canonical(point), canonical(other)}, reseed
    )
    assert last is None
    assert again == point
    heard = [t for t in study.trials[4:] if t.state == TrialState.COMPLETE]
    assert [(t.params, t.values, t.constraints) for t in heard] == [
        (point, [0.7], {"too slow": 0.25})
    ] * 3
    assert [t.state for t in study.trials[4:] if t not in heard] == [TrialState.FAIL]


def test_points_are_the_same_however_rounded(raw: dict[str, Any]) -> None:
    raw["stages"]["init"] = {"stage": "random_init"}
    raw["search"]["space"] = {
        "stages.finetune.lr": {"low": 0.1, "high": 0.7, "step": 0.1},
        "stages.init.args.depth": [1, 2],
    }
    space = check_spec(spec_from(raw)).space
    drawn, lr, depth = space.identity, "stages.finetune.lr", "stages.init.args.depth"
    assert drawn({lr: 0.1 + 0.2, depth: 1}) == drawn({depth: 1, lr: 0.3})
    assert drawn({lr: 0.3, depth: 1}) != drawn({lr: 0.300001, depth: 1})
    assert drawn({lr: 0.3, depth: 1}) != drawn({lr: 0.3, depth: 2})


def test_grid_tries_each_point_once(raw: dict[str, Any], tmp_path: Path) -> None:
    search = searcher(
        raw,
        tmp_path,
        sampler="grid",
        trials=100,
        space={"stages.init.*.args.embed_dim": [16, 32]},
    )
    assert search.num_trials == 5
    plans = [finish(search, accuracy=0.5, gmacs=1.0) for i in range(5)]
    assert len({repr(sorted(p.plan.draw.items())) for p in plans}) == 5


def test_a_killed_driver_loses_no_point_of_a_grid(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """Points that were asked for, but whose trials never began, are tried by the next driver."""
    grid = {
        "sampler": "grid",
        "trials": 100,
        "space": {"stages.init.*.args.embed_dim": [16, 32]},
    }
    first = searcher(raw, tmp_path, **grid)
    done = [finish(first, accuracy=0.5, gmacs=1.0).plan.draw]
    for _ in range(2):
        first.ask()
    second = searcher(raw, tmp_path, **grid)
    assert second.num_trials == 4
    plans = [finish(second, accuracy=0.5, gmacs=1.0) for i in range(4)]
    assert second.ask() is None
    assert (
        len({repr(sorted(p.items())) for p in done + [p.plan.draw for p in plans]}) == 5
    )
    assert sorted(p.plan.number for p in plans) == [1, 2, 3, 4]


def test_a_failed_replicate_is_not_run_again(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    first = searcher(raw, tmp_path, trials=2, replicates=2)
    finish(first, "failed")
    first.ask()  # the driver dies here
    second = searcher(raw, tmp_path, trials=2, replicates=2)
    assert second.num_trials == 3
    plans = [finish(second, accuracy=0.5, gmacs=1.0) for i in range(3)]
    assert [p.trial_id for p in plans] == ["00000-r1", "00001-r0", "00001-r1"]
    assert second.ask() is None


def test_bounds_become_constraints(raw: dict[str, Any], tmp_path: Path) -> None:
    bounded = raw | {
        "objectives": [
            {"metric": "accuracy", "mode": "max", "bound": 0.6},
            {"metric": "gmacs", "mode": "min"},
        ]
    }
    search = searcher(bounded, tmp_path)
    finish(search, accuracy=0.5, gmacs=1.0)
    finish(search, accuracy=0.7, gmacs=2.0)
    assert [t.values[0] for t in search.study.best_trials] == [0.7]


@pytest.mark.parametrize("name", preset_names())
def test_tiny_presets_run(name: str, tmp_path: Path, data_cache: Path) -> None:
    """Every alternative of every shipped preset, for real, at its tiny size; no preset is
    dead text.
    """
    from sweeps.check import load_spec

    sweep = load_spec(name, [f"storage={tmp_path}"], tiny=True)
    measure = {"repeats": 3, "batch_size": 2}
    run = tmp_path / name
    run.mkdir()
    search = StudySearch(sweep, RunStorage(run))
    while (plan := search.ask()) is not None:
        quick = plan.measure.model_copy(update=measure)
        plan = plan.model_copy(update={"measure": quick})
        run_trial(plan, site(run, data_cache=data_cache))
        ended = TrialRecord.read(trial_folder(run, plan.trial_id))
        assert ended is not None
        search.tell(ended)
    for record in trial_records(run):
        assert record.status == "complete", record.outcome.error
        expected = {"test_accuracy", "gmacs", "entropy_bits"}
        if record.plan.data.val_fraction:
            expected.add("accuracy")
        if record.plan.measure.latency:
            expected.add("latency_ms")
        assert expected <= set(record.outcome.metrics)
    assert set(states(search)) == {TrialState.COMPLETE}


def test_a_value_that_only_its_draw_shows_to_be_impossible_fails_one_trial(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checking tries some draws of a space; what it does not meet must not end the sweep."""
    monkeypatch.setattr(check_pipelines, "INTERIOR", 0)
    monkeypatch.setattr(check_pipelines, "INTERIOR_OF_A_CHOICE", 0)
    fractional = {"stages.finetune.epochs": {"low": 1.0, "high": 3.0}}
    search = searcher(raw, tmp_path / "run", trials=3, space=fractional)
    for _ in range(3):
        plan = search.ask()
        assert plan is not None
        outcome = run_trial(plan, site(tmp_path / "run", max_failures=2))
        assert outcome.status == "failed"
        record = TrialRecord.read(trial_folder(tmp_path / "run", plan.trial_id))
        assert record is not None
        assert record.attempts == 1
        assert record.outcome.error is not None
        value = plan.configuration["stages.finetune.epochs"]
        assert "stages.finetune.epochs: a whole number is needed" in (
            record.outcome.error.message
        )
        assert f"got {value}" in record.outcome.error.message
        assert plan.stages[-1].config["epochs"] == value
        search.tell(record)
    assert search.ask() is None
    assert states(search) == [TrialState.FAIL] * 3
