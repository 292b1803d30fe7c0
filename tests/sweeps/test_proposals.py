"""What is tried next when seconds count: prefixes, costs, proposals, and a search that was cut."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from analysis.contract import Objective
from benchmarks.written_runs import stage_rows
from sweeps.check import check_spec
from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord
from sweeps.run.storage import RunStorage
from sweeps.search.costs import CostModel, Known
from sweeps.search.known_costs import KnownCosts
from sweeps.search.prefixes import REST, Prefixes
from sweeps.search.proposals import Proposals
from sweeps.search.searcher import StudySearch
from sweeps.search.seen import Seen
from sweeps.search.simulate import RecordedTable, replay
from sweeps.search.study import distributions_of
from sweeps.search.surrogate import Encoder, Surrogate, expected_improvement
from sweeps.space.space import Space
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError


@pytest.fixture
def chain(raw: dict[str, Any]) -> dict[str, Any]:
    """A trained model with a continuous learning rate, then a cheap choice of bits."""
    raw["stages"] = {
        "teacher": raw["stages"]["teacher"],
        "train": raw["stages"]["finetune"] | {"stage": "finetune"},
        "store": {"one_of": {"none": None, "grid": {"stage": "uniform_quant"}}},
    }
    raw["search"] = {
        "sampler": "tpe",
        "trials": 16,
        "baseline": False,
        "space": {
            "stages.train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "stages.store.grid.bits": [3, 4, 6, 8],
        },
    }
    return raw


def seconds(draw: dict[str, Any]) -> dict[str, float]:
    store = 0.5 if draw["stages.store"] == "grid" else 0.0
    return {"teacher": 30.0, "train": 10.0, "store": store, REST: 0.2}


def values(draw: dict[str, Any]) -> dict[str, float]:
    """Best at a learning rate of 0.002; fewer bits cost accuracy and save operations."""
    off = abs(np.log10(draw["stages.train.lr"] / 2e-3))
    bits = draw.get("stages.store.grid.bits", 32)
    return {"accuracy": 0.95 - 0.2 * off - 0.5 / bits, "gmacs": bits / 32}


def ended(search: StudySearch) -> TrialRecord:
    """Ask for a trial, and let it end as the functions above say."""
    plan = search.ask()
    assert plan is not None
    record = TrialRecord.begin(trial_folder(search.run, plan.trial_id), plan)
    taken = seconds(plan.draw)
    for row in stage_rows(taken):
        record.add_stage(row)
    record.finish("complete", metrics=values(plan.draw), seconds=sum(taken.values()))
    search.tell(record)
    return record


def known(space: Space, number: int) -> Known:
    draw = {
        "stages.store": "grid" if number % 2 else "none",
        "stages.train.lr": 10 ** -(2 + number % 5 / 2.5),
    } | ({"stages.store.grid.bits": (3, 4, 6, 8)[number % 4]} if number % 2 else {})
    return Known(number, draw, tuple(values(draw).values()), seconds(draw))


def test_prefixes_cut_a_draw_where_its_stages_are(chain: dict[str, Any]) -> None:
    prefixes = Prefixes(Space(spec_from(chain)))
    a = {"stages.store": "none", "stages.train.lr": 0.01}
    b = {
        "stages.store": "grid",
        "stages.store.grid.bits": 4,
        "stages.train.lr": 0.002,
    }
    assert prefixes.entries == ["teacher", "train", "store"]
    assert prefixes.keys(a)[:2] == [(), (("stages.train.lr", 0.01),)]
    assert prefixes.keys(a)[0] == prefixes.keys(b)[0]
    assert prefixes.keys(a)[1] != prefixes.keys(b)[1]
    crossed = prefixes.crossed(a, b, 1)
    assert crossed == b | {"stages.train.lr": 0.01}
    assert prefixes.keys(crossed)[1] == prefixes.keys(a)[1]
    assert prefixes.by_entry({"train": 2.0, "store": 1.0, REST: 0.5}) == [0, 2, 1, 0.5]


def test_a_cached_stage_costs_nothing(chain: dict[str, Any]) -> None:
    space = Space(spec_from(chain))
    prefixes = Prefixes(space)
    seen = [known(space, number) for number in range(12)]
    model = CostModel(prefixes, Encoder(distributions_of(space)), seen)
    draw = {
        "stages.store": "grid",
        "stages.store.grid.bits": 4,
        "stages.train.lr": 3e-3,
    }
    each = model.by_entry([draw])[0]
    assert each == pytest.approx([30, 10, 0.5, 0.2], rel=0.1)
    assert model.expected([draw], set())[0] == pytest.approx(40.7, rel=0.1)
    finished = set(prefixes.keys(draw)[:2])
    assert model.expected([draw], finished)[0] == pytest.approx(0.7, rel=0.1)


def test_three_times_the_epochs_take_three_times_as_long(chain: dict[str, Any]) -> None:
    chain["search"]["space"]["stages.train.epochs"] = [1, 3]
    space = Space(spec_from(chain))
    short = {"stages.train.epochs": 1, "stages.store": "none"}
    seen = [
        Known(
            n, short | {"stages.train.lr": lr}, (0.9, 1.0), {"train": 10.0, REST: 1.0}
        )
        for n, lr in enumerate((1e-3, 2e-3, 5e-3))
    ]
    model = CostModel(Prefixes(space), Encoder(distributions_of(space)), seen)
    long = short | {"stages.train.epochs": 3, "stages.train.lr": 3e-3}
    assert model.by_entry([long])[0] == pytest.approx([0, 30, 0, 1], rel=0.05)


def test_what_a_stage_takes_is_told_by_configurations_that_have_it(
    chain: dict[str, Any],
) -> None:
    """Many configurations without a stage do not make those with it cheap."""
    space = Space(spec_from(chain))
    prefixes = Prefixes(space)
    seen = [
        Known(number, draw, (0.9, 1.0), {"train": 10.0, "store": seconds, REST: 0.2})
        for number, draw, seconds in [
            *(
                (
                    n,
                    {"stages.store": "none", "stages.train.lr": 10 ** -(2 + n / 5)},
                    0.0,
                )
                for n in range(9)
            ),
            (9, {"stages.store": "grid", "stages.train.lr": 1e-2} | bits(3), 50.0),
        ]
    ]
    model = CostModel(prefixes, Encoder(distributions_of(space)), seen)
    other = {"stages.store": "grid", "stages.train.lr": 2e-4} | bits(8)
    without = {"stages.store": "none", "stages.train.lr": 9e-3}
    found = model.by_entry([other, without])
    assert found[0] == pytest.approx([0, 10, 50, 0.2], rel=0.1)
    assert found[1] == pytest.approx([0, 10, 0, 0.2], rel=0.1)


def bits(count: int) -> dict[str, int]:
    return {"stages.store.grid.bits": count}


def test_the_surrogate_is_gaussian_process_regression(chain: dict[str, Any]) -> None:
    """Against the textbook's solve, with the noise that it chose by leaving one out."""
    space = Space(spec_from(chain))
    encoder = Encoder(distributions_of(space))
    draws = [known(space, number).draw for number in range(10)]
    y = np.random.default_rng(0).normal(size=(10, 1))
    found = Surrogate(encoder, encoder.encoded(draws), y)
    new = [{"stages.store": "none", "stages.train.lr": 2e-3}]
    standard = (y[:, 0] - y.mean()) / y.std()
    kernel = encoder.similarity(encoder.encoded(draws), encoder.encoded(draws))
    assert np.allclose(np.diag(kernel), 1)
    cross = encoder.similarity(encoder.encoded(new), encoder.encoded(draws))[0]
    answers, errors = [], []
    for noise in (1e-3, 1e-2, 1e-1, 1.0):
        system = kernel + noise * np.eye(10)
        left = 0.0
        for out in range(10):
            keep = np.arange(10) != out
            part = np.linalg.solve(system[np.ix_(keep, keep)], standard[keep])
            left += (standard[out] - kernel[out, keep] @ part) ** 2
        weights = np.linalg.solve(system, standard)
        amplitude = standard @ weights / 10
        variance = amplitude * (1 - cross @ np.linalg.solve(system, cross))
        errors.append(left)
        answers.append((cross @ weights, np.sqrt(variance)))
    mean, sd = answers[int(np.argmin(errors))]
    got_mean, got_sd = found.predicted(encoder.encoded(new))
    assert got_mean[0, 0] == pytest.approx(y.mean() + y.std() * mean)
    assert got_sd[0, 0] == pytest.approx(y.std() * sd)


def test_expected_improvement_is_an_expectation() -> None:
    drawn = np.random.default_rng(0).normal(1.0, 0.5, 400_000)
    by_drawing = np.maximum(0.8 - drawn, 0).mean()
    found = expected_improvement(np.array(1.0), np.array(0.5), np.array(0.8))
    assert found == pytest.approx(by_drawing, rel=0.02)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_what_is_trained_is_used(
    chain: dict[str, Any], tmp_path: Path, sampler: str
) -> None:
    """With seconds known, suffixes are tried on trained models; without, every trial trains."""
    trained = {}
    for cost in ("cached", "none"):
        changed = chain["search"] | {"cost": cost, "sampler": sampler}
        sweep = check_spec(spec_from(chain | {"search": changed}))
        run = tmp_path / cost
        run.mkdir()
        search = StudySearch(sweep, RunStorage(run))
        plans = [ended(search).plan for _ in range(16)]
        trained[cost] = len({plan.draw["stages.train.lr"] for plan in plans})
        texts = [sweep.space.identity(plan.draw) for plan in plans]
        assert len(set(texts)) == 16
    assert trained["none"] == 16
    assert trained["cached"] <= 11


def test_what_has_been_trained_gets_cheap_suffixes_at_once(
    chain: dict[str, Any], tmp_path: Path
) -> None:
    """A training takes 10 s, a suffix on it less than one."""
    search = StudySearch(check_spec(spec_from(chain)), RunStorage(tmp_path))
    rates = [ended(search).plan.draw["stages.train.lr"] for _ in range(5)]
    assert rates[1] == rates[0]
    assert len(set(rates)) <= 2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_cut_search_proposes_what_it_would_have_proposed(
    chain: dict[str, Any], tmp_path: Path, sampler: str
) -> None:
    chain["search"]["sampler"] = sampler
    if sampler == "nsga2":
        chain["search"]["sampler_options"] = {"population_size": 4}
    sweep = check_spec(spec_from(chain))
    draws: list[list[Any]] = []
    for name, deaths in (("whole", ()), ("cut", (3, 6, 7, 11))):
        run = tmp_path / name
        run.mkdir()
        search = StudySearch(sweep, RunStorage(run))
        found = []
        for number in range(14):
            if number in deaths:
                if number % 2:
                    search.ask()
                search = StudySearch(sweep, RunStorage(run))
            found.append(ended(search).plan.draw)
        draws.append(found)
    assert draws[0] == draws[1]


def test_nobody_waits_for_a_stage_that_another_computes(chain: dict[str, Any]) -> None:
    """What a trial that runs is the first to train is proposed to nobody else."""
    spec = spec_from(chain)
    space = Space(spec)
    import optuna

    study = optuna.create_study(directions=["maximize", "minimize"])
    proposals = Proposals(spec, space, study)
    for number in range(8):
        proposals.learn(known(space, number))
    first = proposals.choose(8, 1.0, set())
    assert first is not None
    running = {**first.draw, "stages.train.lr": 1.234e-3}
    choices = [
        proposals.choose(9 + i, 1.0, set(), [running, first.draw]) for i in range(5)
    ]
    rates = {c.draw["stages.train.lr"] for c in choices if c is not None}
    assert 1.234e-3 not in rates


def test_what_cannot_keep_the_bounds_is_not_proposed(chain: dict[str, Any]) -> None:
    import optuna

    spec = spec_from(chain)
    space = Space(spec)
    kinds = {}
    for wanted in ("none", "grid"):
        known_costs = Mock(spec=KnownCosts)
        known_costs.untrained.return_value = None
        known_costs.may_meet = lambda draws, running, wanted=wanted: [
            draw["stages.store"] == wanted for draw in draws
        ]
        study = optuna.create_study(directions=["maximize", "minimize"])
        proposals = Proposals(spec, space, study, known_costs)
        for number in range(8):
            proposals.learn(known(space, number))
        found = [proposals.choose(8 + i, 0.5, set()) for i in range(6)]
        kinds[wanted] = {c.draw["stages.store"] for c in found if c is not None}
    assert kinds == {"none": {"none"}, "grid": {"grid"}}


def test_a_grid_goes_on_elsewhere(chain: dict[str, Any], tmp_path: Path) -> None:
    """While a trial trains with one learning rate the next trial takes another one."""
    space = chain["search"]["space"] | {"stages.train.lr": [1e-3, 2e-3]}
    chain["search"] |= {"space": space, "sampler": "grid", "trials": 10}
    search = StudySearch(check_spec(spec_from(chain)), RunStorage(tmp_path))
    rates = []
    for _ in range(3):
        plan = search.ask()
        assert plan is not None
        rates.append(plan.draw["stages.train.lr"])
    assert rates[0] != rates[1]  # and nothing is free for the third
    assert rates[2] in rates[:2]


def recorded(space: Space) -> pd.DataFrame:
    """A table of 6 learning rates and all bits."""
    rows = []
    for lr in np.geomspace(1e-4, 1e-2, 6):
        for bits in (None, 3, 4, 6, 8):
            draw = {"stages.train.lr": lr, "stages.store": "none"}
            if bits is not None:
                draw |= {"stages.store": "grid", "stages.store.grid.bits": bits}
            rows.append(
                {f"config/{k.removeprefix('stages.')}": v for k, v in draw.items()}
                | {f"metric/{k}": v for k, v in values(draw).items()}
                | {f"seconds/{k or 'measure'}": v for k, v in seconds(draw).items()}
            )
    return pd.DataFrame(rows)


def test_a_table_answers_with_the_nearest_configuration(chain: dict[str, Any]) -> None:
    spec = spec_from(chain)
    space = Space(spec)
    table = RecordedTable(recorded(space), space, spec)
    row = table.row_of(
        {
            "stages.train.lr": 1.1e-3,
            "stages.store": "grid",
            "stages.store.grid.bits": 6,
        }
    )
    near = np.geomspace(1e-4, 1e-2, 6)[
        np.abs(np.log10(np.geomspace(1e-4, 1e-2, 6) / 1.1e-3)).argmin()
    ]
    assert table.draws[row] == {
        "stages.train.lr": pytest.approx(near),
        "stages.store": "grid",
        "stages.store.grid.bits": 6,
    }
    assert table.seconds_of(row) == {
        "teacher": 30.0,
        "train": 10.0,
        "store": 0.5,
        REST: 0.2,
    }
    with pytest.raises(SpecError, match="no column 'metric/gmacs'"):
        RecordedTable(recorded(space).drop(columns="metric/gmacs"), space, spec)


def test_a_replay_counts_the_cache_by_hand(chain: dict[str, Any]) -> None:
    spec = spec_from(chain)
    space = Space(spec)
    table = RecordedTable(recorded(space), space, spec)
    plain = spec.model_copy(
        update={"search": spec.search.model_copy(update={"cost": "none"})}
    )
    found = replay(check_spec(plain), table)
    # the teacher once; every learning rate is new, and every configuration is measured
    assert found.spent[0] in (pytest.approx(40.2), pytest.approx(40.7))
    assert set(np.round(found.spent[1:], 3)) <= {10.2, 10.7}
    assert found.alone[-1] == pytest.approx(
        found.seconds[-1] + 30 * (len(found.spent) - 1)
    )
    assert np.isnan(found.predicted).all()
    assert (np.diff(found.shares) >= 0).all()
    ours = replay(check_spec(spec), table)
    assert ours.until(0.95) < found.until(0.95)
    assert ours.spent.min() < 1
    again = replay(check_spec(spec), table)
    assert np.array_equal(again.seconds, ours.seconds)


def test_a_replay_tries_first_what_the_spec_names(
    chain: dict[str, Any], tmp_path: Path
) -> None:
    """Points, and the front of a table: of each two, the second one goes on from the first."""
    elsewhere = pd.DataFrame(
        {
            "config/train.lr": [3e-3, 3e-3, 5e-3],
            "config/store": ["none", "grid", "none"],
            "config/store.grid.bits": [np.nan, 4, np.nan],
            "metric/accuracy": [0.9, 0.8, 0.7],  # the last is beaten by both
            "metric/gmacs": [1.0, 0.1, 2.0],
        }
    )
    elsewhere.to_parquet(tmp_path / "elsewhere.parquet")
    grid = {"stages.train.lr": 1e-3, "stages.store": "grid"}
    chain["search"] |= {
        "cost": "none",
        "points": [
            {"stages.train.lr": 1e-3, "stages.store": "none"},
            grid | {"stages.store.grid.bits": 6},
        ],
        "from": [str(tmp_path / "elsewhere.parquet")],
    }
    sweep = check_spec(spec_from(chain))
    table = RecordedTable(recorded(sweep.space), sweep.space, sweep.spec)
    found = replay(sweep, table)
    # along the front from the better first objective on: 3e-3 whole, then stored
    assert found.spent[:4] == pytest.approx([40.2, 0.7, 10.2, 0.7])
    assert found.spent[4:].min() > 10


def test_suffixes_take_no_more_time_than_fresh_configurations(
    chain: dict[str, Any],
) -> None:
    """So the sampler's own search goes on, at half its pace at worst."""
    spec = spec_from(chain)
    space = Space(spec)
    found = replay(check_spec(spec), RecordedTable(recorded(space), space, spec))
    fresh = found.spent > 9
    searched = found.spent - 30 * (np.arange(len(found.spent)) == 0)
    assert searched[~fresh].sum() <= searched[fresh].sum() + searched[~fresh].max()


def test_what_was_seen_is_kept_by_number() -> None:
    """In any order, with a configuration that was run again."""
    goals = [Objective("accuracy", "max"), Objective("gmacs", "min", bound=2.5)]
    values = {-1: (0.9, 3.0), 0: (0.5, 1.0), 1: (0.6, 2.0), 2: (0.4, 2.0)}
    seen = Seen(goals)
    seen.add(Known(1, {}, (0.99, 0.5), {REST: 1.0}))  # dominates all, for now
    assert [each.number for each in seen.front(goals)] == [1]
    for number in (2, -1, 1, 0):
        seen.add(Known(number, {}, values[number], {REST: 1.0}))
    seen.add(Known(3, {}, None, {REST: 1.0}))
    seen.add(Known(4, {}, (1.0, 0.1), {}))
    assert [each.number for each in seen.useful] == [-1, 0, 1, 2]
    assert [each.number for each in seen.timed] == [-1, 0, 1, 2, 3]
    assert [each.number for each in seen.front(goals)] == [0, 1]  # within the bound
