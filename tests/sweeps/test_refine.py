"""The last rung: who is refined, with what, and that an interrupted refinement goes on."""

from pathlib import Path
from typing import Any

import pytest

from analysis.contract import Objective
from sweeps.check import check_spec
from sweeps.run.record import Outcome, TrialRecord
from sweeps.search.refine import front_numbers
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, finish, plan, searcher, states

TWO = [Objective(metric="accuracy", mode="max"), Objective(metric="gmacs", mode="min")]


def record(
    number: int,
    accuracy: float,
    gmacs: float = 1.0,
    *,
    status: Any = "complete",
    refines: int | None = None,
) -> TrialRecord:
    metrics = {"accuracy": accuracy, "gmacs": gmacs}
    outcome = Outcome(status=status, metrics=metrics)
    return TrialRecord(Path(), plan(number=number, refines=refines), outcome=outcome)


def test_the_front_by_what_each_member_adds() -> None:
    # worst (0.5, 4), best (0.9, 1): the reference is (0.46, 4.3). Alone, the members dominate
    # 0: (0.9-0.8) x (4.3-4) = 0.03,   1: (0.8-0.5) x (4-2... see below
    records = [
        record(0, 0.9, 4.0),  # (0.9 - 0.8) x (4.3 - 4.0) = 0.03
        record(
            1, 0.8, 2.0
        ),  # (0.8 - 0.5) x (4.0 - 2.0) = 0.60, and what it shares with none: exclusive of 0 and 2
        record(2, 0.5, 1.0),  # (0.5 - 0.46) x (2.0 - 1.0) = 0.04
        record(3, 0.7, 3.0),  # dominated by 1
        record(4, 1.0, 0.1, status="pruned"),
        record(5, 1.0, 0.1, refines=1),
        record(6, float("nan"), 0.1),
    ]
    assert front_numbers(records, TWO, 9) == [1, 2, 0]
    assert front_numbers(records, TWO, 2) == [1, 2]
    assert front_numbers([], TWO, 2) == []


def test_one_objective_and_its_bound() -> None:
    records = [
        record(0, 0.5),
        record(1, 0.7),
        record(1, 0.9),
        record(2, 0.85),
        record(3, 0.8),
    ]
    only = [Objective(metric="accuracy", mode="max", bound=0.6)]
    assert front_numbers(records, only, 3) == [
        2,
        1,
        3,
    ]  # 1 counts with its mean of 0.8, and the lower number first
    assert (
        front_numbers(
            records, [Objective(metric="accuracy", mode="max", bound=0.95)], 3
        )
        == []
    )


def test_they_run_when_all_else_has_ended(raw: dict[str, Any], tmp_path: Path) -> None:
    refine = {"top": 2, "epochs": 7, "params": {"finetune.batch_size": 15}}
    options: dict[str, Any] = {
        "trials": 3,
        "refine": refine,
        "early_stopping": {"scheduler": "asha"},
    }
    search = searcher(raw, tmp_path, **options)
    assert search.num_trials == 5
    base = [
        finish(search, accuracy=0.5, gmacs=1.0),
        finish(search, accuracy=0.9, gmacs=2.0),
    ]
    last = begin(search)
    assert search.ask() is None
    assert search.is_waiting  # the last one may still enter the front
    last.finish("failed")
    search.tell(last)
    refined = finish(search, accuracy=0.95, gmacs=2.0).plan
    assert refined.refines is not None
    of = base[refined.refines].plan
    assert refined.trial_id == "00003"
    assert refined.stopping is None
    assert of.stopping is not None
    same = ("draw", "configuration", "seed", "replicate", "source", "data", "measure")
    assert {k: getattr(refined, k) for k in same} == {k: getattr(of, k) for k in same}
    changed = {"finetune": {"epochs": 7, "batch_size": 15}}
    for old, new in zip(of.stages, refined.stages, strict=True):
        assert (new.name, new.kind) == (old.name, old.kind)
        assert new.config == old.config | changed.get(old.name, {})
    assert len(states(search)) == 3  # the study hears nothing of them

    second = searcher(raw, tmp_path, **options)  # the driver dies here
    other = finish(second, accuracy=0.6, gmacs=1.0)
    assert {other.plan.refines, refined.refines} == {0, 1}
    assert other.trial_id == "00004"
    assert second.ask() is None
    third = searcher(raw, tmp_path, **options)
    assert third.ask() is None
    assert third.next_number == 5


def test_replicates_are_refined_with_their_seeds(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    search = searcher(
        raw, tmp_path, trials=1, replicates=2, refine={"top": 1, "epochs": 3}
    )
    for _ in range(2):
        finish(search, accuracy=0.5, gmacs=1.0)
    plans = [finish(search, accuracy=0.6, gmacs=1.0) for i in range(2)]
    assert [(p.trial_id, p.plan.seed, p.plan.refines) for p in plans] == [
        ("00001-r0", 0, 0),
        ("00001-r1", 1, 0),
    ]


def test_whether_they_go_on_is_said(raw: dict[str, Any]) -> None:
    def remarks(**refine: Any) -> str:
        raw["search"]["refine"] = {"top": 1, "epochs": 5} | refine
        return " ".join(check_spec(spec_from(raw)).remarks)

    assert "(schedule: cosine); with stages.finetune.schedule_epochs: 5" in remarks()
    raw["stages"]["finetune"]["schedule_epochs"] = 5
    assert "search.refine" not in remarks()
    assert "params changes finetune.lr" in remarks(params={"finetune.lr": 0.1})
    with pytest.raises(SpecError, match=r"schedule_epochs 5 is less than .* 9 epochs"):
        remarks(epochs=9)


@pytest.mark.parametrize(
    ("refine", "message"),
    [
        (
            {"top": 1, "epochs": 5, "stage": "init"},
            r"search\.refine\.stage: no stage 'init' with epochs",
        ),
        (
            {"top": 1, "epochs": 5, "params": {"fine.lr": 1}},
            r"search\.refine\.params: fine\.lr: no such stage",
        ),
        (
            {"top": 1, "epochs": 5, "params": {"finetune.lrr": 1}},
            r"search\.refine: stages\.finetune\.lrr: unknown key",
        ),
        (
            {"top": 0, "epochs": 5},
            r"search\.refine\.top: input should be greater than or equal to 1",
        ),
    ],
)
def test_mistakes(raw: dict[str, Any], refine: dict[str, Any], message: str) -> None:
    raw["search"]["refine"] = refine
    with pytest.raises(SpecError, match=message):
        check_spec(spec_from(raw))
