"""A search that was cut, or whose trials end in another order, is the search that it would be."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from analysis.contract import BASELINE
from sweeps.check import check_spec
from sweeps.resume import reopen
from sweeps.run.record import TrialRecord
from sweeps.search.goal import Goal
from sweeps.search.offers import Offers
from sweeps.spec.load import spec_from
from sweeps.trial.epoch_curve import EpochReport
from tests.sweeps.helpers import begin, finish, searcher
from tests.sweeps.test_known_costs import HALF, LATER, cutting, ended

__all__ = ["cutting"]  # a fixture
IMAGES = 2000


@pytest.fixture
def relative(cutting: dict[str, Any]) -> dict[str, Any]:
    """Half of the operations that the trained teacher has, and at most 5 points less."""
    teacher = {"stage": "finetune", "epochs": 1, "batch_size": 30}
    cutting["stages"] = {"teacher": teacher} | cutting["stages"]
    cutting["objectives"][0]["bound"] = {"loss": 0.05, "to": "source"}
    cutting["objectives"][1]["bound"] = {"times": 0.5, "to": "source"}
    cutting["search"]["baseline"] = True
    return cutting


GOAL = {"trials": 8, "hours": 1, "stop_when": "goal"}


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_the_baseline_costs_is_known(
    is_cut: bool, relative: dict[str, Any], tmp_path: Path
) -> None:
    """It has twice the operations that are allowed, and nothing cut has as many."""
    search = searcher(relative, tmp_path, **GOAL)
    baseline = begin(search)
    assert baseline.trial_id == BASELINE
    baseline.finish("complete", metrics={"accuracy": 0.9, "gmacs": 0.02})
    search.tell(baseline)
    assert ended(search, 0.4, 0.005).draw == HALF | LATER
    if is_cut:
        search = searcher(relative, tmp_path, **GOAL)
    assert ended(search, 0.4, 0.005).draw["stages.cut"] == "half"


def write_hits(record: TrialRecord, right: np.ndarray, gmacs: float) -> None:
    """Which images a trial recognises."""
    bits = np.packbits(right).tobytes().hex()
    recognised = {"accuracy": {"images": IMAGES, "labels": "same", "bits": bits}}
    record.set_classes([{"class": 0, "images": IMAGES, "test_images": 0}], recognised)
    metrics = {"accuracy": float(right.mean()), "gmacs": gmacs}
    record.finish("complete", metrics=metrics)


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_goal_is_judged_by_the_same_images(
    is_cut: bool, relative: dict[str, Any], tmp_path: Path
) -> None:
    """Four points are lost of five, on 2,000 images that else agree: certain in pairs, and by
    independent binomials not (a standard error of 1 point).
    """
    source = np.random.default_rng(0).random(IMAGES) < 0.9
    candidate = source.copy()
    candidate[np.flatnonzero(source)[:80]] = False
    search = searcher(relative, tmp_path, **GOAL)
    for right, gmacs in ((source, 0.02), (candidate, 0.005)):
        record = begin(search)
        write_hits(record, right, gmacs)
        search.tell(record)
    if is_cut:
        search = searcher(relative, tmp_path, **GOAL)
    assert search.budget.is_enough()


@pytest.mark.parametrize("why", ["goal", "time"])
def test_what_was_left_is_not_run_when_the_search_has_ended(
    why: str, raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["objectives"] = [
        {"metric": "gmacs", "mode": "min", "bound": 1.0},
        {"metric": "accuracy", "mode": "max"},
    ]
    limit = {"stop_when": "goal"} if why == "goal" else {"hours": 1 / 3600}
    options: dict[str, Any] = {"trials": 9, **limit}
    monkeypatch.setattr(Goal, "is_met", lambda self, objectives: True)
    search = searcher(raw, tmp_path, **options)
    first, second = begin(search), begin(search)
    if why == "time":
        time.sleep(1.1)
    first.finish("complete", metrics={"gmacs": 0.5, "accuracy": 0.9})
    search.tell(first)
    second.finish("interrupted")
    search.tell(second)
    again = searcher(raw, tmp_path, **options)
    assert again.budget.is_enough()
    assert again.ask() is None
    assert again.num_trials == 0
    # more is allowed: it goes on with what was left
    more = searcher(raw, tmp_path, trials=9)
    assert begin(more).trial_id == second.trial_id


def test_samplers_see_trials_in_their_order_however_they_end(
    raw: dict[str, Any],
) -> None:
    sweep = check_spec(spec_from(raw))
    study = optuna.create_study(directions=["maximize", "minimize"])
    offers, sampler = Offers(study, sweep.space), optuna.samplers.RandomSampler(seed=0)
    trials = [study.ask() for _ in range(6)]
    for trial in trials:
        sweep.space.suggest(trial)
    for number in (1, 0, 2, 5, 3, 4):
        study.tell(trials[number], [0.1 * number, 1.0 + number])
        offers.drawn([sampler])
        fresh = Offers(study, sweep.space)
        fresh.drawn([sampler])
        seen, expected = (
            [t.values for t in each.copy.trials if t.state == TrialState.COMPLETE]
            for each in (offers, fresh)
        )
        assert seen == expected


def test_what_runs_again_is_told_once(raw: dict[str, Any], tmp_path: Path) -> None:
    """A failed replicate runs again: the mean of both takes the place of the first alone."""
    first = searcher(raw, tmp_path, trials=2, replicates=2)
    for status in ("complete", "failed", "complete", "complete"):
        finish(first, status, accuracy=0.9, gmacs=1.0)
    assert reopen(tmp_path, "failed") == 1
    second = searcher(raw, tmp_path, trials=2, replicates=2)
    assert finish(second, accuracy=0.1, gmacs=1.0).trial_id == "00000-r1"
    third = searcher(raw, tmp_path, trials=2, replicates=2)
    for search in (second, third):
        complete = search.study.get_trials(states=(TrialState.COMPLETE,))
        told = {t.user_attrs["number"]: t.values for t in complete}
        assert len(complete) == 2
        assert told[0] == pytest.approx([0.5, 1.0])
        assert told[1] == pytest.approx([0.9, 1.0])


def test_epochs_that_are_reported_twice_count_once(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """The process of one replicate died and began again; the other comes later."""
    raw["objectives"] = [{"metric": "accuracy", "mode": "max"}]
    rule = {"metric": "accuracy", "scheduler": "asha", "stage": "finetune"}
    raw["search"]["early_stopping"] = rule
    search = searcher(raw, tmp_path, trials=1, replicates=2)
    first, second = begin(search), begin(search)
    search.report(first.trial_id, EpochReport(1, 0.2))
    search.report(first.trial_id, EpochReport(1, 0.2))
    assert search.study.trials[-1].intermediate_values == {}
    search.report(second.trial_id, EpochReport(1, 0.8))
    assert search.study.trials[-1].intermediate_values == {1: 0.5}


def test_a_seed_of_the_race_may_meet_the_goal(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Goal, "is_met", lambda self, objectives: len(self._trials) > 1)
    raw["objectives"] = [
        {"metric": "gmacs", "mode": "min", "bound": 1.0},
        {"metric": "accuracy", "mode": "max"},
    ]
    race = {"most": 3, "share": 0.5}
    search = searcher(raw, tmp_path, trials=1, stop_when="goal", race=race)
    finish(search, gmacs=0.5, accuracy=0.5)
    assert not search.budget.is_enough()
    assert finish(search, gmacs=0.5, accuracy=0.5).trial_id == "00000-r1"
    assert search.budget.is_enough()
