"""Layer maps as dimensions: each map reachable, nothing else proposed, lists in, lists out;
and sub-pipelines.
"""

from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.check import check_spec
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.space.layer_maps import (
    LayerMaps,
    MapDimension,
    parse_map,
    quantiles,
    subset,
)
from sweeps.space.overrides import apply_overrides
from sweeps.space.resolve import resolved_trial
from sweeps.spec.load import spec_from
from sweeps.spec.schema import spec_schema
from sweeps.spec.yaml_text import SpecError, parse_yaml
from sweeps.trial.attempt import run_trial
from tests.sweeps.helpers import finish, records, site

PAPER_SWS = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
PAPER_LETS = [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
PAPER_COEFF = [0, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 14]


def sws(layers: int, stages: int, **options: Any) -> MapDimension:
    return parse_map(
        "stages.x.layers_source",
        {"layer_map": {"layers": layers, "stages": stages, **options}},
    )


def lets(form: str, layers: int, of: int) -> MapDimension:
    return parse_map(f"stages.x.{form}", {form: {"layers": layers, "of": of}})


def valid(maps: LayerMaps, found: list[int]) -> bool:
    """The rules in words, independent of how maps are made."""
    pairs = list(pairwise(found))
    if len(found) != maps.length or not set(found) <= {
        i * maps.step for i in range(maps.values)
    }:
        return False
    if maps.rule == "strict":
        return all(a < b for a, b in pairs)
    return all(a <= b for a, b in pairs) and (
        maps.rule == "into" or len(set(found)) == maps.values
    )


def test_all_330_maps_of_the_paper_are_reachable() -> None:
    dimension = sws(12, 5)
    draws = dimension.draws()
    assert dimension.num_draws() == len(draws) == 330
    assert all(len(point) == 4 for point in draws)  # a few ordered numbers
    maps = [tuple(dimension.value(point)) for point in draws]
    assert len(set(maps)) == 330
    assert all(valid(dimension.maps, list(found)) for found in maps)
    # and these are all that there are: compositions of 12 into 5 positive parts
    counts = [c for c in product(range(1, 9), repeat=5) if sum(c) == 12]
    assert {tuple(i for i, n in enumerate(c) for _ in range(n)) for c in counts} == set(
        maps
    )


@pytest.mark.parametrize(
    ("dimension", "paper"),
    [
        (sws(12, 5), PAPER_SWS),
        (sws(12, 5, allow_skip=True), PAPER_SWS),
        (lets("mapping_layer", 12, 16), PAPER_LETS),
        (lets("mapping_layer_coeff", 12, 16), PAPER_COEFF),
    ],
)
def test_the_papers_maps_round_trip(dimension: MapDimension, paper: list[int]) -> None:
    point = dimension.encode(paper)
    assert dimension.value(point) == paper
    study = optuna.create_study()
    study.enqueue_trial(dict(point))
    assert dimension.suggest(study.ask()) == point


SIZES = st.tuples(
    st.sampled_from(["onto", "into", "strict"]),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 2),
)


def kinds(size: tuple[Any, int, int, int]) -> LayerMaps:
    rule, length, values, step = size
    if rule == "onto":
        length = max(length, values)
    if rule == "strict":
        length = min(length, values)
    return LayerMaps(rule, length, values, step)


@settings(max_examples=200, deadline=None)
@given(size=SIZES, data=st.data())
def test_whatever_is_drawn_is_a_map(size: Any, data: st.DataObject) -> None:
    maps = kinds(size)
    numbers = [data.draw(st.floats(0, 1)) for _ in range(maps.n_k[1])]
    found = maps.decode(numbers)
    assert valid(maps, found)
    assert maps.decode(maps.encode(found)) == found
    i = data.draw(st.integers(0, max(len(numbers) - 1, 0)))
    if numbers:  # ordered: a larger number never means an earlier element of the subset
        n = maps.n_k[0]
        higher = [*numbers[:i], data.draw(st.floats(numbers[i], 1)), *numbers[i + 1 :]]
        assert subset(higher, n)[i] >= subset(numbers, n)[i]


@settings(max_examples=60, deadline=None)
@given(size=SIZES)
def test_enumeration_is_the_rule(size: Any) -> None:
    maps = kinds(size)
    if maps.values**maps.length > 20_000:
        return
    every = product([i * maps.step for i in range(maps.values)], repeat=maps.length)
    expected = [list(found) for found in every if valid(maps, list(found))]
    listed = list(maps)
    assert sorted(listed) == expected
    assert maps.count == len(listed)
    assert all(maps.decode(maps.encode(found)) == found for found in listed)


@settings(max_examples=200, deadline=None)
@given(given=st.lists(st.integers(-1, 6), max_size=7), size=SIZES)
def test_what_is_no_map_is_refused(given: list[int], size: Any) -> None:
    maps = kinds(size)
    if valid(maps, given):
        assert maps.decode(maps.encode(given)) == given
    else:
        with pytest.raises(ValueError, match="is none of the"):
            maps.encode(given)


def test_random_numbers_draw_all_maps_equally() -> None:
    maps = LayerMaps("onto", 6, 3)  # 10 maps
    grid = [(i + 0.5) / 60 for i in range(60)]
    drawn = Counter(tuple(maps.decode(numbers)) for numbers in product(grid, repeat=2))
    assert len(drawn) == 10
    assert all(abs(count / 3600 - 0.1) < 0.02 for count in drawn.values())


def test_subsets_to_the_limit() -> None:
    """The rarest element is still met at the largest number of maps that is allowed."""
    for n, k in [(49, 25), (60, 12), (30, 1), (30, 30)]:
        for chosen in (list(range(k)), list(range(n - k, n))):
            assert subset(quantiles(chosen, n), n) == chosen


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=5),
        optuna.samplers.RandomSampler(seed=0),
    ],
)
def test_samplers_propose_maps_only(sampler: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    dimension, study = sws(12, 5), optuna.create_study(sampler=sampler)
    for _ in range(25):
        trial = study.ask()
        found = dimension.value(dimension.suggest(trial))
        assert valid(dimension.maps, found)
        study.tell(
            trial, sum(abs(a - b) for a, b in zip(found, PAPER_SWS, strict=True))
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"layer_map": {"layers": 4, "stages": 5}},
            "4 layers cannot use each of 5 stages; set allow_skip",
        ),
        ({"layer_map": {"layers": 4}}, "give layers and stages, and allow_skip if"),
        (
            {"layer_map": {"layers": 0, "stages": 5}},
            "layers: a whole number from 1 to 1000; got 0",
        ),
        (
            {"layer_map": {"layers": 6, "stages": 2, "allow_skip": 1}},
            "allow_skip: true or false; got 1",
        ),
        ({"layer_map": 7}, "give layers and stages"),
        (
            {"layer_map": {"layers": 200, "stages": 50}},
            "maps are more than numbers can tell apart",
        ),
        (
            {"mapping_layer": {"layers": 9, "of": 8}},
            "9 layers cannot each use another of 8",
        ),
        (
            {"mapping_layer_coeff": {"layers": 9, "of": 8, "allow_skip": True}},
            "give layers and of; got",
        ),
    ],
)
def test_wrong_forms_are_explained(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_map("stages.x.y", given)


FIT = {"batch_size": 30, "warmup": 0, "augment": "none"}
AUX = {
    "stage": "sws_aux",
    "epochs": 1,
    "patch_size": 16,
    "embed_dim": 16,
    "num_heads": 2,
    "repeats": [1, 1],
    **FIT,
}


@pytest.fixture
def learngene(raw: dict[str, Any]) -> dict[str, Any]:
    """Random weights, or an auxiliary network and its expansion, in one slot."""
    raw["stages"] = {
        "init": {
            "one_of": {
                "random_init": {"args": {"depth": 3}},
                "sws": {"stages": {"aux": dict(AUX), "sws_expand": {}}},
                "none": None,
            }
        },
        "finetune": {"epochs": 1, **FIT},
    }
    space = {
        "stages.init.sws.sws_expand.layers_source": {
            "layer_map": {"layers": 3, "stages": 2}
        },
        "stages.init.random_init.args.embed_dim": [16, 32],
    }
    raw["search"] = {"sampler": "grid", "trials": 10, "space": space}
    return raw


def test_a_slot_holds_several_stages(learngene: dict[str, Any]) -> None:
    jsonschema.validate(learngene, spec_schema())
    checked = check_spec(spec_from(learngene))
    assert checked.space.size() == 2 + 2 + 1
    grid = checked.space.grid()
    assert grid is not None
    found = []
    for point in grid:
        trial = resolved_trial(checked.space, point)
        names = [s.name for s in trial.stages]
        found.append(names)
        if point["stages.init"] == "sws":
            assert names == ["aux", "sws_expand", "finetune"]
            assert [s.kind for s in trial.stages] == [
                "sws_aux",
                "sws_expand",
                "finetune",
            ]
            assert trial.config["init"] == "sws"
            assert trial.config["aux.embed_dim"] == 16
            assert trial.config["sws_expand.layers_source"] in ([0, 0, 1], [0, 1, 1])
        elif point["stages.init"] == "random_init":
            assert names == ["init", "finetune"]
    assert len(found) == 5
    counts = dict(checked.distinct_stages())
    assert counts == {"init": 5, "aux": 1, "sws_expand": 2, "finetune": 5}


def test_points_and_overrides_reach_inside(learngene: dict[str, Any]) -> None:
    path = "stages.init.sws.sws_expand.layers_source"
    learngene["search"]["points"] = [{"stages.init": "sws", path: [0, 1, 1]}]
    checked = check_spec(spec_from(learngene))
    trial = resolved_trial(checked.space, checked.points[0])
    assert trial.config["sws_expand.layers_source"] == [0, 1, 1]
    grid = checked.space.grid()
    assert grid is not None
    assert checked.points[0] in grid
    del learngene["search"]["points"]
    raw = apply_overrides(
        learngene, ["stages.init.sws.aux.epochs=2", "stages.init=sws"]
    )
    assert list(raw["stages"]) == ["aux", "sws_expand", "finetune"]
    assert list(raw["search"]["space"]) == ["stages.sws_expand.layers_source"]
    taken = check_spec(spec_from(raw))
    assert taken.example[0].config.epochs == 2  # type: ignore[attr-defined]
    assert taken.space.size() == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.aux={stage: finetune}",
            (
                r"stages\.init\.one_of\.sws\.stages\.aux: a stage of the pipeline has"
                r" this name"
            ),
        ),
        ("stages.init.sws={stages: {}}", "a sub-pipeline is"),
        (
            "stages.init.sws={stages: {a: {one_of: {finetune: {}}}}}",
            "a slot within a slot's alternative",
        ),
        (
            "stages.init.sws.aux.epochz=1",
            r"stages\.aux\.epochz: unknown key; did you mean 'epochs'",
        ),
        (
            "search.space={stages.init.sws.depth: [1]}",
            "ALTERNATIVE.STAGE.PARAMETER in a sub-pipeline",
        ),
        (
            "search.space={stages.init.sws.expand.depth: [1]}",
            "no stage 'expand' in sws; its stages are aux, sws_expand",
        ),
        (
            "stages.init.sws.aux.repeats=[2]",
            r"names 1, but .* stages 0 to 0 \(with .*layers_source=\[0, 1, 1\]",
        ),
        (
            "stages.init.sws.sws_expand.depth=4",
            "depth is 4, layers_source has 3 layers: they must agree",
        ),
        (
            "search.points=[{stages.init.sws.sws_expand.layers_source: [1, 0, 1]}]",
            r"is none of the 2 maps of 3 layers",
        ),
    ],
)
def test_mistakes_in_sub_pipelines_are_explained(
    learngene: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(spec_from(apply_overrides(learngene, [override])))


def search_of(raw: dict[str, Any], run: Path) -> StudySearch:
    run.mkdir(parents=True, exist_ok=True)
    return StudySearch(check_spec(spec_from(raw)), RunStorage(run))


def test_one_auxiliary_network_serves_the_sweep(
    learngene: dict[str, Any], tmp_path: Path, data_cache: Path
) -> None:
    """It is trained once; records show seconds spent and saved, plans the decoded list and
    Optuna's own numbers.
    """
    learngene["search"]["trials"] = 8
    learngene["search"]["space"] = {
        "stages.init.sws.sws_expand.layers_source": {
            "layer_map": {"layers": 5, "stages": 2}
        }
    }
    learngene["stages"]["init"]["one_of"] = {
        "sws": learngene["stages"]["init"]["one_of"]["sws"]
    }
    run = tmp_path / "runs" / "small"
    search = search_of(learngene, run)
    while (plan := search.ask()) is not None:
        run_trial(plan, site(run, data_cache=data_cache))
        search.tell(records(run)[plan.trial_id])
    found = list(records(run).values())
    assert [r.status for r in found] == ["complete"] * 4
    path = "stages.init.sws.sws_expand.layers_source"
    maps = [r.plan.configuration[path] for r in found]
    assert sorted(maps) == [  # type: ignore[type-var]
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 1, 1, 1, 1],
    ]
    expands = [
        stage for r in found for stage in r.plan.stages if "expand" in stage.name
    ]
    assert [stage.config["layers_source"] for stage in expands] == maps
    aux = [s for r in found for s in r.outcome.stage_runs if s.name == "aux"]
    assert [stage.cached for stage in aux] == [False, True, True, True]
    assert len({stage.key for stage in aux}) == 1
    assert len({stage.seconds_full for stage in aux}) == 1
    seconds = [(r.outcome.seconds, r.outcome.seconds_full) for r in found]
    saved = [full - spent for spent, full in seconds if spent and full]
    assert saved[0] == 0
    assert all(s > 0 for s in saved[1:])
    numbers = [u for r in found for name, u in r.plan.draw.items() if "#" in name]
    assert numbers
    assert all(isinstance(u, float) for u in numbers)


def test_a_continued_study_knows_its_maps(
    learngene: dict[str, Any], tmp_path: Path, data_cache: Path
) -> None:
    learngene["search"] |= {"sampler": "tpe", "trials": 14}
    learngene["search"]["space"]["stages.init.sws.sws_expand.layers_source"][
        "layer_map"
    ]["layers"] = 16
    run = tmp_path / "runs" / "small"
    search = search_of(learngene, run)

    for i in range(11):
        finish(search, accuracy=i / 14, gmacs=1.0)
    lost = search.ask()  # the driver dies here
    assert lost is not None
    again = search_of(learngene, run)
    back = finish(again, accuracy=11 / 14, gmacs=1.0)
    assert back.plan == lost
    for i in range(12, 14):
        finish(again, accuracy=i / 14, gmacs=1.0)
    complete = [
        t
        for t in again.study.get_trials()
        if t.state == optuna.trial.TrialState.COMPLETE
    ]
    assert {t.user_attrs["number"] for t in complete} == set(range(14))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_map_is_tried_once_whatever_numbers_mean_it(
    learngene: dict[str, Any], tmp_path: Path, data_cache: Path, sampler: str
) -> None:
    learngene["search"] |= {"sampler": sampler, "trials": 30}
    learngene["search"]["space"]["stages.init.sws.sws_expand.layers_source"][
        "layer_map"
    ]["layers"] = 6
    run = tmp_path / "runs" / "small"
    search = search_of(learngene, run)
    assert search.num_trials == 5 + 2 + 1
    configs = []
    for i in range(8):
        record = finish(search, accuracy=1 / (1 + i), gmacs=1.0 + i)
        configs.append(repr(record.plan.stages))
        if i == 4:
            search = search_of(learngene, run)
    assert len(set(configs)) == 8
    assert search.ask() is None


def test_the_documented_spec_holds() -> None:
    page = (Path(__file__).parents[2] / "docs/learngenes.md").read_text()
    specs = [each.split("```")[0] for each in page.split("```yaml\n")[1:]]
    (whole,) = [each for each in specs if "objectives" in each]
    raw = parse_yaml(whole, "docs")[0]
    checked = check_spec(spec_from(raw))
    assert dict(checked.distinct_stages()) == {
        "teacher": 1,
        "sws_aux": 1,
        "expand": 30,
        "finetune": 30,
    }
    assert checked.num_configurations == 30
