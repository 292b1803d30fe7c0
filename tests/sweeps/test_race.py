"""Seeds by need: who gets one more, and a race that was cut."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.contract import Objective
from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.resume import reopen
from sweeps.run.faults import TrialError
from sweeps.run.folder import trial_name
from sweeps.run.record import TrialRecord
from sweeps.search.race import undecided
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from
from tests.sweeps.helpers import begin, records, searcher

LONGER = {"top": 1, "epochs": 2}
GOALS = [Objective("accuracy", "max"), Objective("gmacs", "min")]


def test_only_places_near_the_front_are_undecided() -> None:
    near = {0: [[0.90, 2.0], [0.92, 2.0]], 1: [[0.91, 1.9], [0.90, 1.9]]}
    far = {2: [[0.5, 1.8], [0.52, 1.8]], 3: [[0.2, 3.0]], 4: [[0.99, 5.0], [0.98, 5.0]]}
    # 4 of its kind tell the spread: about 0.01
    values: dict[int, list[list[float]]] = near | far | {5: []}
    used = {number: max(1, len(seeds)) for number, seeds in values.items()}
    assert undecided(values, used, GOALS, 0.9) == [0]
    first = {number: seeds[:1] for number, seeds in values.items()}
    # nothing is known of the spread: front by front, and one seed more each
    once = dict.fromkeys(first, 1)
    assert undecided(first, once, GOALS, 0.9) == [1, 2, 4, 0, 3]
    assert undecided(first, once | {1: 2}, GOALS, 0.9) == [2, 4, 0, 3]
    # few, with a second seed each that tells too little: those with the fewest go on
    few = {n: [[0.90 + 0.01 * n, 2.0 + n]] * 2 for n in range(3)}
    assert undecided(few, dict.fromkeys(few, 2), GOALS, 0.9) == [0, 1, 2]
    assert undecided({}, {}, GOALS, 0.9) == []


def raced(search: StudySearch) -> TrialRecord:
    """Accuracy with a spread of 0.05, that a trial's number and replicate decide."""
    record = begin(search)
    plan = record.plan
    noise = np.random.default_rng([plan.number, plan.replicate]).normal(0, 0.05)
    metrics = {"accuracy": 0.9 - 0.1 * (plan.number % 4) + noise, "gmacs": 1.0}
    record.finish("complete", metrics=metrics)
    search.tell(record)
    return record


def all_of(search: StudySearch, most: int) -> list[str]:
    found = []
    while search.num_trials and len(found) < most:
        try:
            found.append(raced(search).trial_id)
        except AssertionError:  # nothing more was handed out
            break
    return found


def test_a_race_gives_seeds_by_need_and_may_be_cut(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    options = {"trials": 8, "race": {"most": 4, "trials": 12}}
    whole = all_of(searcher(raw, tmp_path / "whole", **options), 50)
    assert whole[:8] == [trial_name(number, 0, 1) for number in range(8)]
    extra = whole[8:]
    assert 2 <= len(extra) <= 12
    # the first four tell the spread; the best are 0 and 4, and 3 and 7 far from them
    later = {name[:5] for name in extra[4:]}
    assert later & {"00000", "00004"}
    assert not later & {"00003", "00007"}
    assert all(name.endswith(("-r1", "-r2", "-r3")) for name in extra)
    cut = all_of(searcher(raw, tmp_path / "cut", **options), 6)
    cut += all_of(searcher(raw, tmp_path / "cut", **options), 3)
    begin(searcher(raw, tmp_path / "cut", **options)).finish("interrupted")
    cut += all_of(searcher(raw, tmp_path / "cut", **options), 50)
    assert cut == whole


def test_a_race_can_follow_a_search_that_has_ended(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    assert len(all_of(searcher(raw, tmp_path, trials=8), 50)) == 8
    search = searcher(raw, tmp_path, trials=8, race={"most": 3, "trials": 2})
    assert search.num_trials == 2
    found = all_of(search, 50)
    assert 1 <= len(found) <= 2
    assert found[0].endswith("-r1")
    assert search.ask() is None
    assert not search.is_waiting
    refined = searcher(
        raw, tmp_path, trials=8, race={"most": 3, "trials": 2}, refine=LONGER
    )
    assert (
        refined.num_trials == 2 - len(found) + 1 * 3
    )  # what it refines may have 3 seeds


def test_a_race_without_time_says_so(raw: dict[str, Any], tmp_path: Path) -> None:
    search = searcher(raw, tmp_path, trials=1)
    record = begin(search)
    time.sleep(0.01)  # longer than the budget below
    record.finish("complete", metrics={"accuracy": 0.9, "gmacs": 1.0}, seconds=0.01)
    search.tell(record)
    options = {"trials": 1, "race": {"most": 3}}
    late = searcher(raw, tmp_path, hours=1e-9, **options)
    assert any("nothing of the budget is left" in note for note in late.notes)
    assert late.ask() is None
    assert not searcher(raw, tmp_path, hours=1, **options).notes


def test_a_further_seed_that_is_tried_again_goes_on(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """Under its number and with its seed, whether its place is still in doubt or not."""
    options = {"trials": 8, "race": {"most": 3, "trials": 6}}
    search = searcher(raw, tmp_path, **options)
    assert len(all_of(search, 8)) == 8
    failed = begin(search)
    failed.finish("failed", error=TrialError.of("the machine was full"))
    search.tell(failed)
    found = all_of(search, 50)
    assert found
    assert failed.trial_id not in found
    assert reopen(tmp_path, "failed") == 1
    sure = options | {"race": {"most": 3, "trials": 6, "certainty": 0.51}}
    again = searcher(raw, tmp_path, **sure)
    assert again.num_trials >= 1
    record = raced(again)
    assert record.trial_id == failed.trial_id
    assert record.plan == failed.plan
    assert not all_of(again, 50)  # nothing else is in doubt


@pytest.mark.slow
def test_a_race_and_a_longer_training_on_a_real_ray(
    raw: dict[str, Any], ray_session: None
) -> None:
    """Further seeds are trained after the search, then the best goes on from its checkpoint."""
    raw["stages"]["finetune"]["schedule_epochs"] = 3
    raw["search"] |= {
        "race": {"most": 3, "trials": 3},
        "refine": {"top": 1, "epochs": 3, "stage": "finetune"},
    }
    outcome = run_sweep(check_spec(spec_from(raw)))
    found = records(outcome.folder)
    assert {record.status for record in found.values()} == {"complete"}
    raced = [r.plan for name, r in found.items() if name.endswith(("-r1", "-r2"))]
    raced = [plan for plan in raced if plan.refines is None]
    assert 1 <= len(raced) <= 3
    first = {r.plan.number: r.plan for r in found.values() if r.plan.replicate == 0}
    for plan in raced:
        assert plan.draw == first[plan.number].draw
        assert plan.seed != first[plan.number].seed
    refined = [r for r in found.values() if r.plan.refines is not None]
    assert refined
    for record in refined:
        rows = [row for row in record.epochs() if row["stage"] == "finetune"]
        assert [row["cached"] for row in rows] == [True, False, False]
        assert record.outcome.seconds_full is not None
        assert record.outcome.seconds is not None
        assert record.outcome.seconds_full > record.outcome.seconds
