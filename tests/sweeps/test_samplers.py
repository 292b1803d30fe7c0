"""Samplers of a spec: the right class, and options that are checked before anything starts."""

import sys
import types
from typing import Any

import optuna
import pytest

from sweeps.check import check_spec
from sweeps.search.samplers import sampler_of
from sweeps.space.space import Space
from sweeps.spec.load import spec_from
from sweeps.spec.search_options import Search
from sweeps.spec.yaml_text import SpecError


def search_of(sampler: Any, **options: Any) -> Search:
    return Search.model_validate({"sampler": sampler, "sampler_options": options})


def draws(raw: dict[str, Any], sampler: Any, numbers: int = 5) -> list[dict[str, Any]]:
    """What a search draws for its first configurations, each told the same."""
    space = Space(spec_from(raw))
    study = optuna.create_study(directions=["maximize", "minimize"])
    drawn = []
    for number in range(numbers):
        study.sampler = sampler_of(search_of(sampler), 3, number)
        trial = study.ask()
        drawn.append(space.suggest(trial))
        study.tell(trial, [0.5, 1.0])
    return drawn


@pytest.mark.parametrize(
    ("sampler", "made"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("grid", optuna.samplers.RandomSampler),
        ({"optuna": "QMCSampler", "scramble": True}, optuna.samplers.QMCSampler),
        ({"optuna": "NSGAIIISampler"}, optuna.samplers.NSGAIIISampler),
        (
            {
                "optuna": "PartialFixedSampler",
                "fixed_params": {"stages.init": "none"},
                "base_sampler": {"optuna": "TPESampler", "n_startup_trials": 2},
            },
            optuna.samplers.PartialFixedSampler,
        ),
    ],
)
def test_a_spec_names_any_sampler_of_optuna(
    raw: dict[str, Any], sampler: Any, made: type
) -> None:
    raw["search"]["sampler"] = sampler
    if sampler == "grid":
        del raw["search"]["space"]["stages.finetune.lr"]
    sweep = check_spec(spec_from(raw))
    assert isinstance(sampler_of(sweep.spec.search, 0), made)
    assert spec_from(sweep.spec.raw) == sweep.spec


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("tpr", "search.sampler: there is no sampler 'tpr'; did you mean 'tpe'"),
        (7, "search.sampler: give a short name"),
        ({"scramble": True}, "search.sampler: give either `optuna: CLASS` or `hub"),
        ({"optuna": "QMCSample"}, "no sampler 'QMCSample'; did you mean 'QMCSampler'"),
        ({"optuna": "BaseSampler"}, "Optuna has no sampler 'BaseSampler'"),
        (
            {"optuna": "TPESampler", "n_startup_trial": 3},
            "search.sampler.n_startup_trial: TPESampler has no such option; did you mean",
        ),
        ({"optuna": "TPESampler", "gamma": 3}, "gamma: TPESampler wants a Python func"),
        ({"optuna": "TPESampler", "seed": 3}, "seed: give `seed` of the sweep"),
        ({"optuna": "GridSampler"}, "GridSampler needs the option search_space"),
        ({"optuna": "NSGAIIISampler", "population_size": 1}, "refuses {'population"),
        ({"optuna": "BruteForceSampler"}, "BruteForceSampler cannot draw from this"),
        ({"optuna": "QMCSampler", "n_startup_trials": -1}, "a whole number from 0"),
        ({"hub": "samplers/auto_sampler"}, "OptunaHub is not installed; pip install"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    raw: dict[str, Any], sampler: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    raw["search"]["sampler"] = sampler
    with pytest.raises(SpecError, match=message):
        check_spec(spec_from(raw))


def test_options_stand_beside_the_name(raw: dict[str, Any]) -> None:
    raw["search"] |= {
        "sampler": {"optuna": "TPESampler"},
        "sampler_options": {"n_startup_trials": 3},
    }
    with pytest.raises(SpecError, match="write the options of TPESampler beside its"):
        check_spec(spec_from(raw))


def test_a_library_that_a_sampler_needs_is_asked_for(raw: dict[str, Any]) -> None:
    pytest.importorskip("optuna")
    raw["search"]["sampler"] = {"optuna": "CmaEsSampler"}
    try:
        import cmaes  # noqa: F401
    except ImportError:
        with pytest.raises(SpecError, match="CmaEsSampler needs cmaes; pip install"):
            check_spec(spec_from(raw))


def test_first_configurations_at_random_then_the_sampler(raw: dict[str, Any]) -> None:
    search = search_of({"optuna": "QMCSampler", "n_startup_trials": 2})
    kinds = [type(sampler_of(search, 0, number)).__name__ for number in range(4)]
    assert kinds == ["RandomSampler", "RandomSampler", "QMCSampler", "QMCSampler"]


def test_points_of_a_sequence_belong_to_one_sequence(raw: dict[str, Any]) -> None:
    """Made anew for each configuration, the sampler goes on where the study stands."""
    del raw["stages"]["init"]
    raw["search"]["space"] = {"stages.finetune.lr": {"low": 0.25, "high": 1.25}}
    sampler = {"optuna": "QMCSampler", "scramble": False, "qmc_type": "halton"}
    rates = [point["stages.finetune.lr"] for point in draws(raw, sampler, 5)]
    assert rates[1:] == pytest.approx([0.25, 0.75, 0.5, 1.0])


def test_a_sampler_of_optunahub(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package has one sampler; nothing is downloaded here."""

    class Own(optuna.samplers.RandomSampler):
        def __init__(self, width: int = 1, seed: int | None = None) -> None:
            super().__init__(seed)
            self.width = width

    Own.__module__ = "hub_package.sampler"
    package = types.ModuleType("hub_package")
    package.Own = Own  # type: ignore[attr-defined]
    package.Base = optuna.samplers.BaseSampler  # type: ignore[attr-defined]
    hub = types.ModuleType("optunahub")
    hub.load_module = lambda name: package  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    raw["search"]["sampler"] = {"hub": "samplers/own", "width": 3}
    sweep = check_spec(spec_from(raw))
    made = sampler_of(sweep.spec.search, 0)
    assert isinstance(made, Own)
    assert made.width == 3
    raw["search"]["sampler"] = {"hub": "samplers/own", "widht": 3}
    with pytest.raises(SpecError, match="Own has no such option; did you mean 'width'"):
        check_spec(spec_from(raw))
