"""Searches that end by the clock, or because their front stands still."""

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis.contract import LATENCY_FILE, Objective
from sweeps.check import check_spec
from sweeps.drive.interrupted import mark_interrupted
from sweeps.run.folder import trial_folder
from sweeps.run.record import Outcome, StageRow, TrialRecord, to_json
from sweeps.run.storage import RunStorage
from sweeps.search import meters
from sweeps.search.budget import Budget, stands_still
from sweeps.search.costs import known_configuration, seconds_of
from sweeps.search.goal import Goal
from sweeps.search.meters import meter_of, seconds_of_trials
from sweeps.search.prefixes import REST
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from
from sweeps.spec.search_options import MOST_TRIALS, StopWhen
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, finish, plan, searcher
from tests.sweeps.test_proposals import chain, ended, seconds, values
from trainers.files import write_atomic

__all__ = ["chain"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as the budget sees it."""
    now = [1000.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    return now


def timed(search: StudySearch, clock: list[float]) -> TrialRecord | None:
    """Run one trial that takes as long as its stages say; what was trained before is cached."""
    if search.num_trials == 0:
        return None
    try:
        record = ended(search)
    except AssertionError:  # nothing more was handed out
        return None
    lr = record.plan.draw["stages.train.lr"]
    taken = seconds(record.plan.draw)
    cached = (30 if clock[1:] else 0) + (taken["train"] if lr in clock[1:] else 0)
    clock[0] += sum(taken.values()) - cached
    clock.append(lr)
    return record


def test_the_last_trials_end_in_time(
    chain: dict[str, Any], tmp_path: Path, clock: list[float]
) -> None:
    """The budget is nearly used up, and hardly exceeded."""
    hours = 250 / 3600
    chain["search"] = {k: v for k, v in chain["search"].items() if k != "trials"}
    chain["search"] |= {"hours": hours}
    spec = spec_from(chain)
    assert spec.search.trials == MOST_TRIALS
    search = StudySearch(check_spec(spec), RunStorage(tmp_path))
    assert search.plan_line() is not None
    count = 0
    while timed(search, clock) is not None:
        count += 1
    taken = clock[0] - 1000
    assert 0.95 * 250 <= taken <= 1.02 * 250
    assert count > 10
    said = search.outcome_line()
    assert said is not None
    assert "of its budget" in said
    assert "foretold within" in said
    assert search.ask() is None


def test_the_search_goes_on_in_the_time_that_a_race_leaves(
    chain: dict[str, Any], tmp_path: Path, clock: list[float]
) -> None:
    """A race that has decided everything ends early; what it had is searched and raced for."""
    options = {k: v for k, v in chain["search"].items() if k != "trials"}
    race = {"most": 2, "trials": 6}
    chain["search"] = options | {"hours": 180 / 3600, "race": race}
    search = StudySearch(check_spec(spec_from(chain)), RunStorage(tmp_path))
    names = []
    while (record := timed(search, clock)) is not None:
        names.append(record.trial_id)
        assert len(names) < 1000
    seeds = [place for place, name in enumerate(names) if name.endswith("-r1")]
    assert len(seeds) == 4  # which tell that seeds do not differ
    assert seeds[-1] < len(names) - 1  # the search went on after the race
    assert not search.notes
    assert 0.95 * 180 <= clock[0] - 1000 <= 1.02 * 180
    assert search.ask() is None
    assert not search.is_waiting


def test_time_of_earlier_drivers_counts_once(tmp_path: Path) -> None:
    """Two trials that ran side by side take the time of one."""
    start = datetime.fromisoformat("2026-03-04T09:00:00+00:00")
    spans = [(0, 60), (30, 90), (200, 230), (210, 220)]
    found = [
        TrialRecord(
            tmp_path,
            plan(),
            started=(start + timedelta(seconds=a)).isoformat(),
            ended=(start + timedelta(seconds=b)).isoformat(),
        )
        for a, b in spans
    ]
    assert seconds_of_trials(found) == 120
    assert seconds_of_trials([TrialRecord(tmp_path, plan())]) == 0


def test_a_front_that_stands_still() -> None:
    goals = [Objective("accuracy", "max"), Objective("gmacs", "min")]
    rule = StopWhen(hypervolume_gain=0.01, configurations=3)
    first = [[0.5, 1.0], [0.9, 2.0], [0.4, 3.0]]
    assert not stands_still(first, rule, goals)
    assert stands_still([*first, [0.3, 2.5], [0.2, 2.0], [0.1, 2.9]], rule, goals)
    assert not stands_still([*first, [0.3, 2.5], [0.95, 0.5], [0.1, 2.9]], rule, goals)
    assert not stands_still([*first] * 3, None, goals)


def test_a_search_ends_when_its_goal_is_met_with_certainty(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks only at what is within the bounds, and goes on where luck may have put it there."""
    raw["objectives"] = [{"metric": "accuracy", "mode": "max", "bound": 0.8}]
    search = searcher(raw, tmp_path / "run", trials=20, stop_when="goal")
    looked: list[bool] = []
    is_met = Goal.is_met

    def look(self: Goal, goals: Sequence[Objective]) -> bool:
        looked.append(is_met(self, goals))
        return looked[-1]

    monkeypatch.setattr(Goal, "is_met", look)
    for accuracy in (0.5, 0.81):
        record = begin(search)
        record.set_classes([{"index": 0, "class": "a", "images": 50}])
        record.finish("complete", metrics={"accuracy": accuracy})
        search.tell(record)
    finish(search, accuracy=0.5)  # and so that it looks
    assert looked == [False]
    record = begin(search)
    record.set_classes([{"index": 0, "class": "a", "images": 50}])
    record.finish("complete", metrics={"accuracy": 1.0})
    search.tell(record)
    assert search.ask() is None
    assert looked == [False, True]


def test_the_goal_goes_by_the_latency_that_was_measured_last(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """A trial that met it as recorded, and not as measured again with its rivals."""
    goals = [Objective("latency_ratio", "min", 0.5)]
    search = searcher(raw, tmp_path / "run", trials=2)
    times = {"latency_ratio_low": 0.488, "latency_ratio_high": 0.492}
    record = finish(search, accuracy=0.9, gmacs=1.0, latency_ratio=0.49, **times)
    goal = Goal()
    goal.note(record)
    assert goal.is_met(goals)
    again = {"latency_ratio": 0.51, "latency_ratio_low": 0.5}
    content = {"metrics": again | {"latency_ratio_high": 0.52}}
    write_atomic(record.folder / LATENCY_FILE, to_json(content))
    goal.note(record)
    assert not goal.is_met(goals)


def test_images_are_a_budget_too(chain: dict[str, Any], tmp_path: Path) -> None:
    """Suffixes on a trained model cost none, and the last trials keep within the budget."""
    chain["search"] = {k: v for k, v in chain["search"].items() if k != "trials"}
    chain["search"] |= {"images": 130_000}
    spec = spec_from(chain)
    assert spec.search.trials == MOST_TRIALS
    search = StudySearch(check_spec(spec), RunStorage(tmp_path))
    used: set[float] = set()
    images = count = 0
    while search.num_trials:
        plan = search.ask()
        if plan is None:
            break
        record = TrialRecord.begin(trial_folder(search.run, plan.trial_id), plan)
        rate = plan.draw["stages.train.lr"]
        for stage, number in (("teacher", 40_000), ("train", 10_000)):
            cached = bool(used) if stage == "teacher" else rate in used
            images += 0 if cached else number
            each = {"epoch": 0, "images_per_second": number / 2, "seconds": 2.0}
            record.add_epoch({"stage": stage, "cached": cached} | each)
        used.add(rate)
        record.finish("complete", metrics=values(plan.draw), seconds=3.0)
        search.tell(record)
        count += 1
        if count == 12:  # another driver goes on with what is left
            search = StudySearch(check_spec(spec), RunStorage(tmp_path))
    assert 120_000 <= images <= 130_000
    assert count > len(used)
    said = search.outcome_line()
    assert said is not None
    assert f"the search took {images:,} images" in said


def test_time_of_gpus_counts_each_trial(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["search"] |= {"gpu_hours": 0.5}
    with pytest.raises(SpecError, match=r"search\.gpu_hours: trials have no GPU"):
        check_spec(spec_from(raw))
    raw["resources"] = {"gpus_per_worker": 0.5, "workers": 2}
    meter = meter_of(spec_from(raw))
    start = datetime.fromisoformat("2026-03-04T09:00:00+00:00")
    for number in range(3):
        ends = (start + timedelta(seconds=600)).isoformat()
        begins = start.isoformat()
        found = plan(trial_id=str(number), number=number)
        meter.note(
            TrialRecord(tmp_path / str(number), found, started=begins, ended=ends)
        )
    assert meter.limit == 1800
    assert meter.spent(0) == 1800
    assert meter.spent(60.0) == 1860
    # one that runs again counts as it ended last
    ends = (start + timedelta(seconds=200)).isoformat()
    meter.note(TrialRecord(tmp_path / "2", found, started=begins, ended=ends))
    assert meter.spent(0) == 1400
    raw["search"] |= {"hours": 1}
    with pytest.raises(SpecError, match="give one of hours, gpu_hours, images, not 2"):
        spec_from(raw)


def test_the_goal_needs_a_bound(raw: dict[str, Any]) -> None:
    raw["search"] |= {"stop_when": "goal"}
    with pytest.raises(SpecError, match=r"stop_when: goal .* no objective has one"):
        check_spec(spec_from(raw))
    raw["search"] |= {"stop_when": "gaol"}
    with pytest.raises(SpecError, match=r"stop_when: 'gaol' is no rule"):
        spec_from(raw)


def test_a_search_ends_where_its_front_stands_still(
    chain: dict[str, Any], tmp_path: Path
) -> None:
    chain["search"] |= {
        "trials": 200,
        "stop_when": {"hypervolume_gain": 0.02, "configurations": 6},
    }
    search = StudySearch(check_spec(spec_from(chain)), RunStorage(tmp_path))
    count = 0
    while search.remaining and count < 150:
        try:
            ended(search)
        except AssertionError:
            break
        count += 1
    assert 6 < count < 100
    assert search.ask() is None


def test_time_until_a_killed_driver_is_resumed_is_not_used(tmp_path: Path) -> None:
    """Its trial ended with its last sign, and its next attempt forgets nothing."""
    killed = TrialRecord.begin(trial_folder(tmp_path, "00000"), plan())
    killed.add_epoch({"stage": "train", "epoch": 0})
    began = datetime.fromisoformat(str(killed.started)) - timedelta(hours=12)
    killed.started = began.isoformat()
    killed._write()
    for file in killed.folder.iterdir():
        last = (began + timedelta(hours=2)).timestamp()
        os.utime(file, (last, last))
    mark_interrupted(RunStorage(tmp_path), left_over=True)
    found = TrialRecord.read(killed.folder)
    assert found is not None
    assert found.status == "interrupted"
    assert seconds_of_trials([found]) == pytest.approx(2 * 3600)
    again = TrialRecord.begin(killed.folder, plan())
    again.finish("complete")
    read = TrialRecord.read(killed.folder)
    assert read is not None
    assert seconds_of_trials([read]) == pytest.approx(2 * 3600, abs=5)
    assert len(read.spans()) == 2


def test_what_a_trial_stands_still_is_expected_of_the_next(tmp_path: Path) -> None:
    """As it is time that passes: others are measured meanwhile."""
    begins = datetime.fromisoformat("2026-03-04T09:00:00+00:00")
    train = StageRow(
        index=0,
        name="train",
        stage="finetune",
        phase="train",
        key="a",
        cached=True,
        seconds=1.0,
        seconds_full=30.0,
        metrics={},
    )
    record = TrialRecord(
        tmp_path,
        plan(),
        started=begins.isoformat(),
        ended=(begins + timedelta(seconds=20)).isoformat(),
        outcome=Outcome(status="complete", seconds=5.0, stage_runs=(train,)),
    )
    assert seconds_of(record) == {"train": 30.0, REST: 19.0}


@pytest.mark.parametrize(
    ("at_once", "left"), [(1, 600.0), (2, 900.0), (3, 1800.0), (8, 1800.0)], ids=str
)
def test_replicates_that_run_side_by_side_take_the_time_of_one(
    at_once: int, left: float, raw: dict[str, Any]
) -> None:
    """Of three seeds, where so many trials run at once; a race's seed runs alone."""
    raw["search"] |= {"hours": 600 / 3600, "replicates": 3}
    budget = Budget(spec_from(raw))
    budget.run_at_once(at_once)
    assert budget.left() == pytest.approx(left)
    assert budget.left_to_race() == pytest.approx(600)


def test_seconds_of_a_run_with_other_seeds(tmp_path: Path) -> None:
    """A configuration's expected seconds are those of this search's number of seeds."""
    start = TrialRecord(tmp_path, plan()).plan
    outcomes = [Outcome(status="complete", seconds=s) for s in (10.0, 20.0)]
    outcomes.append(Outcome(status="failed"))
    found = [TrialRecord(tmp_path, start, outcome=each) for each in outcomes]
    known = known_configuration(-1, found, [], replicates=3)
    assert known is not None
    assert known.seconds == {REST: 45.0}


@pytest.mark.parametrize("cost", ["none", "cached"])
@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_what_is_listed_or_drawn_ends_in_time_too(
    cost: str, sampler: str, raw: dict[str, Any], tmp_path: Path, clock: list[float]
) -> None:
    """Eight configurations of 60 s each would take 480."""
    rates = [0.001 * n for n in range(1, 9)]
    raw["search"] |= {
        "sampler": sampler,
        "cost": cost,
        "hours": 250 / 3600,
        "space": {"stages.finetune.lr": rates},
        "points": [{"stages.finetune.lr": rate} for rate in rates[:6]],
    }
    raw["search"].pop("trials", None)
    search = StudySearch(check_spec(spec_from(raw)), RunStorage(tmp_path))
    count = 0
    while search.num_trials and (wanted := search.ask()) is not None:
        record = TrialRecord.begin(trial_folder(search.run, wanted.trial_id), wanted)
        clock[0] += 60
        record.finish("complete", metrics={"accuracy": 0.5, "gmacs": 1}, seconds=60.0)
        search.tell(record)
        count += 1
    assert count == 4


def test_refining_is_not_of_the_budget(raw: dict[str, Any], clock: list[float]) -> None:
    raw["search"] |= {"hours": 0.1}
    budget = Budget(spec_from(raw))
    budget.begin()
    clock[0] += 90
    budget.end()
    clock[0] += 900
    assert budget.share_left() == pytest.approx(0.75)


def test_what_trains_nothing_does_not_go_on_for_ever(
    chain: dict[str, Any], tmp_path: Path
) -> None:
    """A budget of images of which a rest is left that no training fits into."""
    chain["search"] = {k: v for k, v in chain["search"].items() if k != "trials"}
    chain["search"] |= {"images": 95_000}
    search = StudySearch(check_spec(spec_from(chain)), RunStorage(tmp_path))
    used: set[float] = set()
    count = 0
    while search.num_trials and (wanted := search.ask()) is not None:
        record = TrialRecord.begin(trial_folder(search.run, wanted.trial_id), wanted)
        rate = wanted.draw["stages.train.lr"]
        for stage, number in (("teacher", 40_000), ("train", 10_000)):
            cached = bool(used) if stage == "teacher" else rate in used
            each = {"epoch": 0, "images_per_second": number, "seconds": 1.0}
            record.add_epoch({"stage": stage, "cached": cached} | each)
        used.add(rate)
        record.finish("complete", metrics=values(wanted.draw), seconds=3.0)
        search.tell(record)
        count += 1
        assert count < 100
    assert len(used) == 5


def test_why_nothing_is_left_to_run(raw: dict[str, Any], tmp_path: Path) -> None:
    first = searcher(raw, tmp_path, trials=3)
    for accuracy in (0.9, 0.5, 0.4):
        finish(first, accuracy=accuracy, gmacs=1.0)

    def said(**search: Any) -> str:
        again = searcher(raw, tmp_path, **search)
        count = again.sweep.num_configurations
        assert again.ask() is None
        return again.budget.nothing_left(3, count)

    assert said(trials=3) == (
        "all 3 configurations have ended; search.trials=N goes on"
    )
    still = {"hypervolume_gain": 0.01, "configurations": 2}
    assert said(trials=9, stop_when=still) == (
        "the front stands still: over the last 2 configurations it has gained less than"
        " 1.0 % of its hypervolume; search.stop_when=null goes on"
    )
    raw["stages"]["init"] = {"stage": "random_init"}
    grid = {"sampler": "grid", "space": {"stages.finetune.lr": [0.1]}}
    only = searcher(raw, tmp_path / "grid", trials=9, **grid)
    finish(only, accuracy=0.9, gmacs=1.0)
    assert only.ask() is None
    assert only.budget.nothing_left(1, only.sweep.num_configurations) == (
        "the one configuration has ended; a larger search.space goes on"
    )


def test_a_budget_that_is_used_up_plans_nothing(
    raw: dict[str, Any], tmp_path: Path, clock: list[float]
) -> None:
    first = searcher(raw, tmp_path, trials=2)
    record = finish(first, accuracy=0.9, gmacs=1.0)
    assert record.started is not None
    start = datetime.fromisoformat(record.started)
    record.ended = (start + timedelta(seconds=51)).isoformat()
    write_atomic(record.folder / "record.json", to_json(record.to_json()))
    again = searcher(raw, tmp_path, trials=9, hours=3.6 / 3600)
    assert again.plan_line() is None
    assert again.ask() is None
    assert again.budget.nothing_left(1, 9) == (
        "the budget of 3.6 s is used up (51 s); more search.hours go on"
    )
    more = searcher(raw, tmp_path, trials=9, hours=60 / 3600)
    assert more.plan_line() is not None
    assert more.budget.nothing_left(1, 9) == (
        "of the budget of 1 min 9.0 s is left, less than one more configuration takes; more"
        " search.hours go on"
    )
