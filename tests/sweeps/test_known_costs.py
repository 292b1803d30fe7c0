"""Candidates that are not tried, since trials of the same structure cost too much."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweeps.check import check_spec
from sweeps.run.plan import TrialPlan
from sweeps.search.costs import Known
from sweeps.search.known_costs import KnownCosts
from sweeps.search.prefixes import REST
from sweeps.search.proposals import Proposals
from sweeps.search.searcher import StudySearch
from sweeps.search.study import Draw
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from tests.sweeps.helpers import begin, searcher

NONE = {"stages.cut": "none"}
HALF = {"stages.cut": "half"}
TRAINED = {"stages.tune": "tuned"}
LATER = {"stages.tune": "none"}


@pytest.fixture
def cutting(raw: dict[str, Any]) -> dict[str, Any]:
    """Cut or not, then tuned or not; at most 0.01 gmacs are wanted, at an accuracy of 0.5."""
    train = raw["stages"]["finetune"]
    raw["stages"] = {
        "cut": {"one_of": {"none": None, "half": {"stage": "low_rank"}}},
        "tune": {"one_of": {"none": None, "tuned": train | {"stage": "finetune"}}},
    }
    raw["stages"]["cut"]["one_of"]["half"]["target"] = {"macs": 0.8}
    raw["objectives"] = [
        {"metric": "accuracy", "mode": "max", "bound": 0.5},
        {"metric": "gmacs", "mode": "min", "bound": 0.01},
    ]
    points = [NONE | LATER, HALF | LATER, NONE | TRAINED, HALF | TRAINED]
    space = {"stages.tune.tuned.lr": [1e-3, 2e-3]}
    raw["search"] = {"sampler": "random", "space": space, "points": points}
    raw["search"]["baseline"] = False
    return raw


def ended(search: StudySearch, accuracy: float, gmacs: float) -> TrialPlan:
    record = begin(search)
    record.finish("complete", metrics={"accuracy": accuracy, "gmacs": gmacs})
    search.tell(record)
    return record.plan


@pytest.mark.parametrize(
    ("rule", "whole_costs", "third"),
    [
        ("goal", 0.02, HALF | TRAINED),
        ("goal", 0.0102, HALF | TRAINED),
        ("goal", 0.01, NONE | TRAINED),  # the bound itself is kept
        (None, 0.02, NONE | TRAINED),  # whoever wants the front may want to know
    ],
)
def test_what_costs_too_much_untrained_is_not_trained(
    rule: Any,
    whole_costs: float,
    third: dict[str, str],
    cutting: dict[str, Any],
    tmp_path: Path,
) -> None:
    for name in ("run", "cut"):
        options = {"trials": 8, "hours": 1, "stop_when": rule}
        search = searcher(cutting, tmp_path / name, **options)
        ended(search, 0.4, whole_costs)
        if name == "cut":  # what an earlier driver left is known as well
            search = searcher(cutting, tmp_path / name, **options)
        ended(search, 0.3, 0.005)
        plan = ended(search, 0.4, 0.005)
        assert {k: plan.draw[k] for k in third} == third
        said = search.outcome_line()
        assert said is not None
        is_told = "left out: 1 that would cost too much" in said
        assert is_told == (third == HALF | TRAINED)


@pytest.mark.parametrize(("first", "second"), [("plain", "mixed"), ("mixed", "plain")])
def test_layers_left_in_float_are_not_tried_where_all_in_integers_cost_too_much(
    first: str, second: str, cutting: dict[str, Any], tmp_path: Path
) -> None:
    plain = {"stage": "int8", "images": 8}
    mixed = plain | {"float_layer_count": 1}
    cutting["stages"] = {
        "store": {"one_of": {"plain": plain, "mixed": mixed, "none": None}}
    }
    cutting["search"] |= {
        "space": {"stages.store.mixed.float_layer_count": [1, 2]},
        "points": [{"stages.store": name} for name in (first, second, "none")],
    }
    options = {"trials": 4, "hours": 1, "stop_when": "goal"}
    search = searcher(cutting, tmp_path, **options)
    ended(search, 0.9, 0.02)
    then = ended(search, 0.9, 0.02)
    # what costs no less is left out; what may cost less is tried
    expected = "none" if (first, second) == ("plain", "mixed") else "plain"
    assert then.draw["stages.store"] == expected


def test_a_structure_is_measured_before_it_is_trained(cutting: dict[str, Any]) -> None:
    """Training takes twenty times as long, and tells nothing of what the model costs."""
    cutting["search"] |= {"hours": 1, "stop_when": "goal"}
    sweep = check_spec(spec_from(cutting))
    known_costs = KnownCosts(sweep)
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study, known_costs)
    rates = {"stages.tune.tuned.lr": 1e-3}
    ended = [NONE | LATER, NONE | TRAINED | rates]
    for number, draw in enumerate(ended * 3):
        tuned = draw["stages.tune"] == "tuned"
        seconds = {"cut": 0.0, "tune": 100.0 if tuned else 0.0, REST: 5.0}
        accuracy = 0.9 if tuned else 0.3
        proposals.learn(Known(number, draw, (accuracy, 0.02), seconds))

    def proposed(
        tried: Sequence[Draw] = (), running: Sequence[Draw] = ()
    ) -> set[tuple[Any, ...]]:
        names = {sweep.space.identity(draw) for draw in [*ended, *tried]}
        found = [proposals.choose(n, 0.0, names, running) for n in range(6, 26)]
        draws = [each.draw for each in found if each is not None]
        return {(draw["stages.cut"], draw["stages.tune"]) for draw in draws}

    # nobody has said yet what either structure costs
    assert ("half", "none") in proposed()
    assert ("half", "tuned") not in proposed()
    half = [HALF | LATER]
    assert ("half", "tuned") not in proposed(half, half)  # it will be known soon
    assert ("half", "tuned") in proposed(half)  # it failed: nobody will know


def test_what_is_asked_for_by_name_is_measured_first(
    cutting: dict[str, Any], tmp_path: Path
) -> None:
    rates = {"stages.tune.tuned.lr": 1e-3}
    cutting["search"] |= {"points": [HALF | TRAINED | rates, NONE | TRAINED | rates]}
    search = searcher(cutting, tmp_path, trials=8, hours=1, stop_when="goal")
    first, second = begin(search), begin(search)
    assert first.plan.draw == HALF | LATER
    assert second.plan.draw == NONE | LATER
    first.finish("complete", metrics={"accuracy": 0.3, "gmacs": 0.005})
    search.tell(first)
    third = begin(search)
    assert third.plan.draw == HALF | TRAINED | rates
    second.finish("complete", metrics={"accuracy": 0.3, "gmacs": 0.02})
    search.tell(second)
    begin(search)
    said = search.outcome_line()
    assert said is not None
    assert "left out: 1 that would cost too much" in said


@pytest.mark.parametrize("known", [1, 2, 8])
def test_what_was_never_trained_is_measured_first(
    known: int, cutting: dict[str, Any]
) -> None:
    """As long as nobody knows what a training takes, it is not taken for a short one."""
    cutting["search"] |= {"hours": 1, "stop_when": "goal"}
    sweep = check_spec(spec_from(cutting))
    known_costs = KnownCosts(sweep)
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study, known_costs)
    for number in range(known):
        seconds = {"cut": 40.0, REST: 5.0}
        proposals.learn(Known(number, NONE | LATER, (0.3, 0.02), seconds))
    found = proposals.measured_first(
        HALF | TRAINED | {"stages.tune.tuned.lr": 1e-3}, []
    )
    assert found is not None
    assert found.draw == HALF | LATER

    # once it is known to be short beside what comes before it, it is tried at once
    for number, draw in enumerate(
        [HALF | TRAINED | {"stages.tune.tuned.lr": 2e-3}] * 4
    ):
        seconds = {"cut": 40.0, "tune": 2.0, REST: 5.0}
        proposals.learn(Known(known + number, draw, (0.4, 0.01), seconds))
    for number in range(4):
        seconds = {"cut": 40.0, REST: 5.0}
        proposals.learn(Known(50 + number, HALF | LATER, (0.4, 0.01), seconds))
    draw = NONE | TRAINED | {"stages.tune.tuned.lr": 1e-3}
    assert proposals.measured_first(draw, []) is None


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("replicates", [1, 3])
def test_a_training_that_nobody_has_timed_takes_what_its_epochs_take(
    replicates: int, is_told: bool, cutting: dict[str, Any]
) -> None:
    """Ten epochs, of which each takes 4 s elsewhere, or is said to take so long by the spec."""
    options = cutting["stages"]["tune"]["one_of"]
    options["tuned"]["epochs"] = 2
    options["long"] = options["tuned"] | {"epochs": 10}
    cutting["search"] |= {"replicates": replicates}
    if is_told:
        cutting["search"] |= {"epoch_seconds": 4.0}
        with pytest.raises(SpecError, match=r"search\.epoch_seconds: .* there is none"):
            check_spec(spec_from(cutting))
        cutting["search"] |= {"hours": 1}
    sweep = check_spec(spec_from(cutting))
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study, KnownCosts(sweep))
    before = LATER if is_told else TRAINED | {"stages.tune.tuned.lr": 1e-3}
    for number in range(4):
        tuned = 0.0 if is_told else 8.0 * replicates
        seconds = {"tune": tuned, REST: 5.0 * replicates}
        proposals.learn(Known(number, HALF | before, (0.3, 0.02), seconds))
    long = HALF | {"stages.tune": "long"}
    expected = (10 * 4.0 + 5.0) * replicates
    assert proposals.expected([long]) == [pytest.approx(expected, rel=0.01)]
    assert proposals.end_in_time([long], 0.9 * expected) == [False]

    # what an earlier run timed counts, whatever was said
    for number in range(-4, 0):
        seconds = {"tune": 90.0 * replicates, REST: 5.0 * replicates}
        proposals.learn(Known(number, long, (0.3, 0.02), seconds))
    expected = 95.0 * replicates
    assert proposals.expected([long]) == [pytest.approx(expected, rel=0.05)]


def test_what_was_always_trained_is_cheap_without_training(
    cutting: dict[str, Any],
) -> None:
    """That a null alternative takes nothing is known before it is tried."""
    cutting["search"] |= {"hours": 1, "stop_when": "goal"}
    sweep = check_spec(spec_from(cutting))
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study, KnownCosts(sweep))
    rate = {"stages.tune.tuned.lr": 1e-3}
    for number in range(8):
        draw = [HALF, NONE][number % 2] | TRAINED | rate
        seconds = {"tune": 100.0, REST: 5.0}
        proposals.learn(Known(number, draw, (0.3, 0.02), seconds))
    assert proposals.expected([HALF | LATER]) == [pytest.approx(5.0, rel=0.1)]
    assert proposals.end_in_time([HALF | LATER], 60.0) == [True]
    found = proposals.measured_first(
        HALF | TRAINED | {"stages.tune.tuned.lr": 2e-3}, []
    )
    assert found is not None
    assert found.draw == HALF | LATER


def test_what_a_draw_lacks_does_not_make_it_unknown(cutting: dict[str, Any]) -> None:
    sweep = check_spec(spec_from(cutting))
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study)
    for number in range(4):
        draw = HALF | TRAINED | {"stages.tune.tuned.lr": 1e-3}
        seconds = {"cut": 1.0, "tune": 60.0, REST: 5.0}
        proposals.learn(Known(2 * number, draw, (0.3, 0.02), seconds))
        seconds = {"cut": 1.0, REST: 5.0}
        proposals.learn(Known(2 * number + 1, HALF | LATER, (0.3, 0.02), seconds))
    expected = proposals.expected([HALF | TRAINED, HALF | LATER])
    assert expected == pytest.approx([65.0, 5.0], rel=0.02)


def test_what_was_never_trained_is_not_begun_in_the_last_seconds(
    cutting: dict[str, Any],
) -> None:
    """Nobody knows what it takes; that it takes nothing is known to be wrong."""
    sweep = check_spec(spec_from(cutting))
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(sweep.spec, sweep.space, study)
    for number in range(4):
        seconds = {"cut": 40.0, REST: 5.0}
        proposals.learn(Known(number, HALF | LATER, (0.3, 0.02), seconds))
    trained = HALF | TRAINED | {"stages.tune.tuned.lr": 1e-3}
    usual = proposals.usual_seconds()
    assert usual > 0
    assert proposals.expected([trained]) == [pytest.approx(usual)]
    assert proposals.end_in_time([trained], 0.9 * usual) == [False]
    assert proposals.end_in_time([trained], 1.1 * usual) == [True]
