"""Early stopping: whom the rules give up, what the records and the study then say."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from optuna.trial import TrialState
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

import analysis
from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.run.faults import RecordTakenError
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, Stopping, TrialPlan
from sweeps.run.record import Outcome, Pruned, TrialRecord
from sweeps.search.searcher import StudySearch
from sweeps.search.stopping import EarlyStopper, rule_of
from sweeps.spec.load import spec_from
from sweeps.spec.search_options import EarlyStopping
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from sweeps.trial.epoch_curve import EpochReport, curve, prune
from tests.sweeps.helpers import begin, finish, plan, records, searcher, site, states
from trainers.seeding import derive_seed

STOPPING = Stopping(stage="finetune", metric="accuracy", last_epoch=9)
GO, STOP = False, True


class Rule:
    """A stopper and whom it gave up; trials are named by letters."""

    def __init__(self, earlier: Any = (), **options: Any) -> None:
        self.stopped: list[tuple[str, EpochReport]] = []
        self.stopper = EarlyStopper(EarlyStopping(**options), 0, earlier)

    def epoch(
        self,
        name: str,
        epoch: int,
        value: float,
        is_last: bool = False,
        cost: float | None = None,
    ) -> bool:
        report = EpochReport(epoch, value, cost, is_last)
        gives_up = self.stopper.gives_up(name, report)
        if gives_up:
            self.stopped.append((name, report))
        return gives_up


@pytest.mark.parametrize(
    ("metric", "good", "bad"), [("accuracy", 0.9, 0.1), ("loss", 0.1, 0.9)]
)
def test_asha_keeps_the_better(metric: Any, good: float, bad: float) -> None:
    rule = Rule(scheduler="asha", metric=metric, grace_epochs=2, reduction_factor=2)
    assert [rule.epoch(name, 1, bad) for name in "abc"] == [GO] * 3  # grace
    assert rule.epoch("a", 2, good) == GO  # alone
    assert rule.epoch("b", 2, bad) == STOP
    assert rule.epoch("c", 2, 2 * good - bad) == GO  # better than all
    assert [rule.epoch("a", 3, bad), rule.epoch("a", 4, good)] == [
        GO,
        GO,
    ]  # 3 is no rung; at 4 it is alone
    assert rule.epoch("c", 4, bad) == STOP
    assert rule.stopped == [
        ("b", EpochReport(2, bad)),
        ("c", EpochReport(4, bad)),
    ]


def test_the_median_rule() -> None:
    rule = Rule(scheduler="median", grace_epochs=2, min_trials=3)
    for name, value in (("a", 0.2), ("b", 0.4), ("c", 0.6)):
        assert [rule.epoch(name, e, value) for e in (1, 2, 3)] == [GO] * 3
    assert [rule.epoch("d", 1, 0.1), rule.epoch("d", 2, 0.5)] == [
        GO,
        GO,
    ]  # its best is above the median of 0.4
    assert [rule.epoch("e", 1, 0.1), rule.epoch("e", 2, 0.3)] == [GO, STOP]


def test_moasha_keeps_the_fronts() -> None:
    rule = Rule(scheduler="moasha", grace_epochs=2, reduction_factor=2)

    def epoch(name: str, epoch: int, value: float, cost: float) -> str:
        return rule.epoch(name, epoch, value, cost=cost)

    assert [epoch(name, 1, 0.1, 9.0) for name in "ab"] == [GO] * 2  # grace
    assert epoch("a", 2, 0.5, 2.0) == GO  # alone
    assert epoch("b", 2, 0.1, 1.0) == GO  # worse, but cheaper than all
    assert epoch("c", 2, 0.4, 2.5) == STOP  # a beats it; with it two of three
    assert epoch("d", 2, 0.9, 9.0) == GO  # better than all
    assert epoch("e", 2, 0.5, 2.0) == GO  # like a, which is of the first front
    assert epoch("f", 2, 0.45, 2.2) == STOP  # a, b, d, e and it: five of six
    assert epoch("a", 3, 0.0, 2.0) == GO  # 3 is no rung
    assert [epoch("a", 4, 0.6, 2.0), epoch("d", 5, 0.55, 9.0)] == [
        GO,
        STOP,
    ]  # 4 is, though d tells nothing before 5
    assert [name for name, _ in rule.stopped] == ["c", "f", "d"]
    assert rule.stopped[0][1] == EpochReport(2, 0.4, 2.5)


def test_moasha_fills_its_share_with_later_fronts() -> None:
    """A chain in which each beats the next: those whose place is within half of what came go on."""
    rule = Rule(scheduler="moasha", metric="loss", reduction_factor=2)
    order = [5, 4, 3, 2, 1, 2.5, 0.5, 4.5]
    decisions = [rule.epoch(str(i), 1, rank, cost=rank) for i, rank in enumerate(order)]
    place = [
        sum(other < rank for other in order[: i + 1]) + 1
        for i, rank in enumerate(order)
    ]
    assert decisions == [
        GO if p <= max(1, (i + 1) / 2) else STOP for i, p in enumerate(place)
    ]
    assert decisions == [GO] * 7 + [STOP]


def test_earlier_trials_of_a_sweep_without_cost_are_not_compared(
    tmp_path: Path,
) -> None:
    earlier = []
    for name, more in (("y", {}), ("z", {"gmacs": 1.0})):
        record = TrialRecord.begin(tmp_path / name, plan(name, stopping=STOPPING))
        record.add_epoch({"stage": "finetune", "accuracy": 0.9} | more)
        record.finish("complete")
        earlier.append(record)
    assert Rule(earlier[:1], scheduler="moasha").epoch("a", 1, 0.1, cost=2.0) == GO
    assert Rule(earlier, scheduler="moasha").epoch("a", 1, 0.1, cost=2.0) == STOP
    assert Rule(earlier, scheduler="moasha").epoch("a", 1, 0.1, cost=0.5) == GO


def test_the_last_epoch_and_repeated_ones_stand() -> None:
    rule = Rule(scheduler="asha", reduction_factor=2)
    assert rule.epoch("a", 1, 0.9) == GO
    assert rule.epoch("b", 1, 0.1, is_last=True) == GO
    assert rule.epoch("c", 1, 0.95) == GO
    assert rule.epoch("c", 1, 0.0) == GO  # told again by a restarted process
    assert rule.stopped == []


def test_earlier_trials_count(tmp_path: Path) -> None:
    earlier = TrialRecord.begin(tmp_path / "z", plan("z", stopping=STOPPING))
    earlier.add_epoch({"stage": "teacher", "accuracy": 0.0})
    earlier.add_epoch({"stage": "finetune", "accuracy": 0.9})
    earlier.finish("complete")
    assert Rule(scheduler="asha", reduction_factor=2).epoch("a", 1, 0.1) == GO
    assert (
        Rule([earlier], scheduler="asha", reduction_factor=2).epoch("a", 1, 0.1) == STOP
    )
    assert (
        Rule([earlier], scheduler="asha", reduction_factor=2, stage="other").epoch(
            "a", 1, 0.1
        )
        == GO
    )


def test_brackets_are_the_same_for_every_driver() -> None:
    decisions = []
    for state in (1, 2):
        np.random.seed(state)
        before = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
        rule = Rule(scheduler="hyperband", reduction_factor=2, brackets=3)
        decisions.append(
            [
                rule.epoch(f"{i:05d}", epoch, -i)
                for i in range(20)
                for epoch in (1, 2, 4)
            ]
        )
        assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr, index]
    assert decisions[0] == decisions[1]
    assert {GO, STOP} == set(decisions[0])


def decisions_of_tune(spec: EarlyStopping, epochs: list[tuple[str, int, float]]) -> Any:
    """What Ray Tune's rule of that name decides, with its brackets drawn as ours are."""
    shared: dict[str, Any] = {
        "time_attr": "epoch",
        "metric": "value",
        "mode": spec.direction,
        "grace_period": spec.grace_epochs,
    }
    rule: Any
    if spec.scheduler == "median":
        rule = MedianStoppingRule(
            **shared, min_samples_required=spec.min_trials, min_time_slice=float("inf")
        )
    else:
        brackets = spec.brackets if spec.scheduler == "hyperband" else 1
        rule = AsyncHyperBandScheduler(
            **shared,
            max_t=10**6,
            reduction_factor=spec.reduction_factor,
            stop_last_trials=False,
            brackets=brackets,
        )
    trials = {name: TuneTrial(name) for name, _, _ in epochs}
    for name, trial in trials.items():
        np.random.seed(derive_seed(0, "bracket", name) % 2**32)
        rule.on_trial_add(None, trial)
    for name, epoch, value in epochs:
        result = {"epoch": epoch, "value": value}
        decision = rule.on_trial_result(None, trials[name], result)
        yield name, epoch, decision == TrialScheduler.STOP


@dataclass(frozen=True)
class TuneTrial:
    trial_id: str


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("seed", range(5))
def test_the_rules_decide_as_those_of_ray_tune(scheduler: Any, seed: int) -> None:
    random = np.random.RandomState(seed)
    spec = EarlyStopping(
        scheduler=scheduler,
        metric="loss" if seed % 2 else "accuracy",
        grace_epochs=1 + seed % 3,
        reduction_factor=[2.0, 3.0, 1.5][seed % 3],
        min_trials=2,
    )
    names = [f"{i:05d}" for i in range(12)]
    came = [(e + 3 * random.rand(), n, e) for n in names for e in range(1, 15)]
    epochs = [(n, e, round(random.rand(), 1)) for _, n, e in sorted(came)]
    rule = rule_of(spec)
    mine, gone, heard = [], set(), dict.fromkeys(names, 0)
    for name, epoch, value in epochs:
        if name in gone or epoch <= heard[name]:
            continue
        heard[name] = epoch
        gives_up = rule.gives_up(name, EpochReport(epoch, value))
        mine.append((name, epoch, value, gives_up))
        if gives_up:
            gone.add(name)
    theirs = decisions_of_tune(spec, [(n, e, v) for n, e, v, _ in mine])
    assert [(n, e, gives_up) for n, e, _, gives_up in mine] == list(theirs)
    assert gone


def test_epochs_are_counted_over_fits_without_cached_ones() -> None:
    rows = [
        {"stage": "teacher", "epoch": 0, "accuracy": 0.9},
        {"stage": "finetune", "epoch": 0, "accuracy": 0.1, "cached": True},
        {"stage": "finetune", "epoch": 0, "accuracy": 0.2},
        {"stage": "finetune", "epoch": 1, "accuracy": None},  # not evaluated there
        {"stage": "finetune", "epoch": 0, "accuracy": 0.4},  # a second fit
    ]
    seen = [EpochReport(1, 0.2), EpochReport(3, 0.4, is_last=True)]
    last = STOPPING.model_copy(update={"last_epoch": 3})
    assert curve(rows, last) == seen
    assert curve(rows, None) == []
    priced = [row | {"num_params": 7} for row in rows]
    with_cost = last.model_copy(update={"cost": "num_params"})
    assert curve(priced, with_cost) == [replace(report, cost=7.0) for report in seen]
    assert curve(rows, with_cost) == []
    assert [EpochReport.from_row(report.to_row()) for report in seen] == seen


def stop_after(search: StudySearch, values: list[float]) -> TrialRecord:
    """A trial that is given up after its last value."""
    record = begin(search)
    for epoch, value in enumerate(values, start=1):
        record.add_epoch({"stage": "finetune", "accuracy": value, "loss": 1.0})
        if epoch < len(values):
            search.report(record.trial_id, EpochReport(epoch, value))
    found = TrialRecord.read(record.folder)
    assert found is not None
    prune(found, EpochReport(len(values), values[-1]))
    with pytest.raises(RecordTakenError):  # its own process comes too late
        record.finish("complete", metrics={"accuracy": 1.0})
    search.tell(found)
    return found


RULE = {"early_stopping": {"scheduler": "asha"}}


def test_optuna_hears_pruned_with_its_curve(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    raw = raw | {"objectives": [{"metric": "accuracy", "mode": "max"}]}
    search = searcher(raw, tmp_path, trials=2, **RULE)
    record = stop_after(search, [0.2, 0.3])
    assert record.status == "pruned"
    assert record.outcome.pruned == Pruned(stage="finetune", epoch=2, metric="accuracy")
    assert record.outcome.metrics == {"accuracy": 0.3, "loss": 1.0}
    (told,) = search.study.get_trials()
    assert told.state == TrialState.PRUNED
    assert told.intermediate_values == {1: 0.2, 2: 0.3}
    again = searcher(raw, tmp_path, trials=2, **RULE)
    assert again.num_trials == 1  # it has ended


def test_several_objectives(raw: dict[str, Any], tmp_path: Path) -> None:
    search = searcher(raw, tmp_path, trials=2, **RULE)
    (tmp_path / "run.json").write_text("{}")
    stop_after(search, [1.0])
    finish(search, accuracy=0.5, gmacs=1.0)
    assert states(search) == [TrialState.PRUNED, TrialState.COMPLETE]
    assert [t.user_attrs["number"] for t in search.study.best_trials] == [1]
    assert search.ask() is None


@pytest.mark.parametrize(
    ("ends", "state"),
    [("ppc", "PRUNED"), ("pcc", "COMPLETE"), ("pcf", "PRUNED"), ("ffc", "COMPLETE")],
)
def test_few_replicates_left_do_not_flatter(
    raw: dict[str, Any], tmp_path: Path, ends: str, state: str
) -> None:
    search = searcher(raw, tmp_path, trials=1, replicates=3, **RULE)
    for end in ends:
        if end == "p":
            stop_after(search, [0.1])
        else:
            finish(
                search,
                "complete" if end == "c" else "failed",
                accuracy=0.5,
                gmacs=1.0,
            )
    (told,) = search.study.get_trials()
    assert told.state == TrialState[state]


@pytest.mark.parametrize("cost", ["gmacs", "num_params"])
def test_the_cost_is_that_of_the_model_that_is_trained(
    raw: dict[str, Any], tmp_path: Path, data_cache: Path, cost: str
) -> None:
    space = {"stages.init.*.args.embed_dim": [16]}  # half the teacher's width
    point = {"stages.init": "random_init", "stages.init.*.args.embed_dim": 16}
    rule = {"scheduler": "moasha", "cost": cost}
    search = searcher(
        raw,
        tmp_path / "run",
        trials=1,
        space=space,
        points=[point],
        early_stopping=rule,
    )
    planned = search.ask()
    assert planned is not None
    measure = planned.measure.model_copy(update={"latency": False})
    planned = planned.model_copy(update={"measure": measure})
    reports: list[EpochReport] = []
    done = run_trial(
        planned, site(search.run, data_cache=data_cache), on_epoch=reports.append
    )
    assert done.status == "complete", done.error
    assert [report.cost for report in reports] == [done.metrics[cost]]
    record = records(search.run)["00000"]
    # two epochs of the teacher, which no rule looks at
    assert [row.get(cost) for row in record.epochs()] == [
        None,
        None,
        done.metrics[cost],
    ]
    assert curve(record.epochs(), record.plan.stopping) == reports


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        (
            {"scheduler": "asha", "stage": "init"},
            {},
            r"no stage 'init' that trains; those that train: teacher, finetune",
        ),
        (
            {"scheduler": "asha"},
            {"stages": {"kmeans_quant": {"clusters": 4, "scope": "network"}}},
            "no stage of these",
        ),
        (
            {"scheduler": "sha"},
            {},
            (
                r"early_stopping\.scheduler: input should be 'asha', 'moasha', 'median'"
                r" or 'hyperband'"
            ),
        ),
        (
            {"scheduler": "moasha"},
            {"objectives": [{"metric": "accuracy", "mode": "max"}]},
            "one objective take asha",
        ),
        (
            {"scheduler": "moasha", "cost": "bytes"},
            {},
            r"early_stopping\.cost: input should be 'gmacs' or 'num_params'",
        ),
        (
            {"scheduler": "asha", "reduction_factor": 1},
            {},
            r"reduction_factor: input should be greater than 1",
        ),
    ],
)
def test_mistakes(
    raw: dict[str, Any], rule: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if change:
        raw |= change | {"search": {"trials": 1}}
    raw["search"]["early_stopping"] = rule
    with pytest.raises(SpecError, match=message):
        check_spec(spec_from(raw))


def learns_as_it_should(plan: TrialPlan, site: Site, on_epoch: Any) -> Outcome:
    """Trials of an odd number never get good; whoever is not stopped has nine epochs."""
    import time

    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution

    def work(plan: TrialPlan, site: Site, note_epoch: Any, on_stage: Any) -> Execution:
        is_odd = plan.number % 2 == 1
        value = 0.1 if is_odd else 0.5
        for epoch in range(9):
            accuracy = value + plan.number / 1000
            row = {"stage": "finetune", "epoch": epoch, "gmacs": 1.0}
            note_epoch(row | {"accuracy": accuracy})
            time.sleep(0.02)
        # what is stopped would have been the best of all
        metrics = {"accuracy": 1.0 if is_odd else value, "gmacs": 1.0}
        return Execution(metrics, [], 0.1, 0.1, {})

    return run_trial(plan, site, work, on_epoch)


def test_a_sweep_stops_what_is_worse(raw: dict[str, Any], ray_session: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    raw["stages"]["finetune"]["epochs"] = 9
    rule = {"scheduler": "moasha", "reduction_factor": 2, "grace_epochs": 2}
    raw["search"] |= {"trials": 6, "early_stopping": rule}
    raw["resources"] = {"concurrent": 1}  # in order: trial 0 sets the mark
    outcome = run_sweep(check_spec(spec_from(raw)), trial=learns_as_it_should)
    found = list(records(outcome.folder).values())
    assert [r.status for r in found] == ["complete", "pruned"] * 3
    assert [len(r.epochs()) for r in found] == [9, 2] * 3
    assert all(r.outcome.error is None for r in found)
    # a stop leaves the process to the next trial
    assert len({r.machine.pid for r in found if r.machine is not None}) == 1
    front = analysis.load(outcome.folder).front()
    assert len(front) >= 1
    pruned = {r.trial_id for r in found if r.status == "pruned"}
    assert not set(front["trial_id"]) & pruned
    again = searcher(raw, outcome.folder)
    assert sorted(s.name for s in states(again)) == ["COMPLETE"] * 3 + ["PRUNED"] * 3
    assert again.num_trials == 0
    assert trial_folder(outcome.folder, "00001").is_dir()
