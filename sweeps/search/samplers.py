"""Optuna's samplers as a spec names them: a short name, any class of Optuna, or one of OptunaHub.

A sampler is made anew for each configuration, with a seed that follows from the sweep's seed and
the configuration's number: so a search that was interrupted draws what it would have drawn.
"""

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from pydantic import JsonValue

from analysis.contract import Objective
from sweeps.spec.search_options import OtherSampler, SamplerName, Search
from sweeps.spec.yaml_text import SpecError, did_you_mean
from trainers.seeding import derive_seed

SAMPLERS: dict[SamplerName, type[BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "nsga2": NSGAIISampler,
    "gp": GPSampler,
    "grid": RandomSampler,  # all of the grid is enqueued; nothing is left to draw
}
"""Short name → class."""

STARTUP = "n_startup_trials"
"""Configurations that are drawn at random first. A sampler without such an option gets it."""

_LIBRARIES = {"GPSampler": "scipy", "QMCSampler": "scipy", "CmaEsSampler": "cmaes"}
"""What Optuna would ask for only after the first configurations."""

_ONE_SEQUENCE = ("QMCSampler",)
"""Classes that draw the points of one sequence, which a seed names: theirs stays the same."""


def sampler_of(
    search: Search, root_seed: int, number: int = 0, attempt: int = 0
) -> BaseSampler:
    """The sampler that draws configuration `number` of a search.

    Args:
        root_seed: of the sweep.
        attempt: how often what was drawn for this configuration was a repetition.

    Raises:
        SpecError: no such sampler, an option that it does not have, or a missing library.
    """
    tries = [attempt] if attempt else []
    seed = derive_seed(root_seed, "sampler", number, *tries) % 2**32
    sampler = search.sampler
    if not isinstance(sampler, OtherSampler):
        return make_sampler(sampler, seed, search.sampler_options)
    if search.sampler_options:
        raise SpecError(
            "search.sampler_options: these are for samplers with a short name; write the"
            f" options of {sampler} beside its name, in search.sampler"
        )
    made = class_of(sampler, "search.sampler")
    options = dict(sampler.options)
    if STARTUP in options and STARTUP not in _parameters(made):
        startup = options.pop(STARTUP)
        if not isinstance(startup, int) or isinstance(startup, bool) or startup < 0:
            raise SpecError(
                f"search.sampler.{STARTUP}: a whole number from 0; got {startup!r}"
            )
        if number < startup:
            _made(made, "search.sampler", seed, options)  # its options are checked
            return RandomSampler(seed=seed)
    if made.__name__ in _ONE_SEQUENCE:
        seed = derive_seed(root_seed, "sampler") % 2**32
    return _made(made, "search.sampler", seed, options)


def make_sampler(
    name: SamplerName, seed: int, options: Mapping[str, JsonValue]
) -> BaseSampler:
    """A seeded sampler of a short name.

    Raises:
        SpecError: an option that it does not have, or a library that it needs is missing.
    """
    return _made(SAMPLERS[name], "search.sampler_options", seed, options, name)


def class_of(sampler: OtherSampler, place: str) -> type[BaseSampler]:
    """The class that a spec means.

    Raises:
        SpecError: Optuna has no such class, or OptunaHub no such package.
    """
    if sampler.hub is not None:
        return _class_of_hub(sampler.hub, place)
    known = {
        name: found
        for name in optuna.samplers.__all__
        if inspect.isclass(found := getattr(optuna.samplers, name))
        and issubclass(found, BaseSampler)
        and not inspect.isabstract(found)
    }
    name = str(sampler.optuna)
    if name not in known:
        raise SpecError(
            f"{place}.optuna: Optuna has no sampler {name!r};"
            f" {did_you_mean(name, known)}valid: {', '.join(known)}"
        )
    return known[name]


def _class_of_hub(package: str, place: str) -> type[BaseSampler]:
    """The only sampler of an OptunaHub package. Loading one may download it."""
    try:
        optunahub = importlib.import_module("optunahub")
    except ImportError as error:
        raise SpecError(
            f"{place}.hub: OptunaHub is not installed; pip install optunahub"
        ) from error
    try:
        module = optunahub.load_module(package)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"{place}.hub: {package} cannot be loaded: {error}") from error
    names = getattr(module, "__all__", None) or sorted(vars(module))
    found = [
        value
        for name in names
        if inspect.isclass(value := getattr(module, name))
        and issubclass(value, BaseSampler)
        and value.__module__.startswith(module.__name__)
    ]
    if len(found) != 1:
        raise SpecError(
            f"{place}.hub: {package} has {len(found)} samplers where one is expected"
        )
    return found[0]


def _parameters(made: type[BaseSampler]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(made).parameters)


def _made(
    made: type[BaseSampler],
    place: str,
    seed: int,
    options: Mapping[str, JsonValue],
    shown: str = "",
) -> BaseSampler:
    """An object of this class; its options are checked against its signature first."""
    shown = shown or made.__name__
    library = _LIBRARIES.get(made.__name__)
    if library is not None and importlib.util.find_spec(library) is None:
        raise SpecError(
            f"search.sampler: {shown} needs {library}; pip install {library}"
        )
    parameters = _parameters(made)
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    valid = [name for name, p in parameters.items() if name != "seed" and _is_plain(p)]
    for name in options:
        if name == "seed":
            raise SpecError(
                f"{place}.seed: give `seed` of the sweep; it decides this one"
            )
        if name in parameters and name not in valid:
            raise SpecError(
                f"{place}.{name}: {shown} wants a Python function here, which a spec"
                " cannot give; leave it out"
            )
        if name not in valid and not free:
            raise SpecError(
                f"{place}.{name}: {shown} has no such option;"
                f" {did_you_mean(name, valid)}valid: {', '.join(valid) or 'none'}"
            )
    given = {
        name: _nested(value, f"{place}.{name}", seed) for name, value in options.items()
    }
    lacking = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and name not in given
        and name != "seed"
    ]
    if lacking:
        raise SpecError(f"{place}: {shown} needs the option {', '.join(lacking)}")
    if "seed" in parameters:
        given["seed"] = seed
    return _called(made, given, place, shown)


def _called(
    make: Callable[..., BaseSampler], given: Mapping[str, Any], place: str, shown: str
) -> BaseSampler:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(**given)
    except ImportError as error:
        raise SpecError(
            f"search.sampler: {shown} needs a library that is not installed: {error}"
        ) from error
    except (TypeError, ValueError) as error:
        told = {name: value for name, value in given.items() if name != "seed"}
        raise SpecError(f"{place}: {shown} refuses {told}: {error}") from error


def _is_plain(parameter: inspect.Parameter) -> bool:
    """Whether a spec can give it; functions have no form in YAML."""
    return "Callable" not in str(parameter.annotation)


def _nested(value: JsonValue, place: str, seed: int) -> Any:
    """An option's value; {optuna: CLASS, ...} is a sampler within the sampler."""
    if not isinstance(value, dict) or not {"optuna", "hub"} & set(value):
        return value
    inner = OtherSampler.model_validate(value)
    return _made(class_of(inner, place), place, seed, inner.options)


def rehearse(
    search: Search,
    root_seed: int,
    objectives: Sequence[Objective],
    suggest: Callable[[optuna.Trial], Any],
) -> None:
    """Let the sampler draw a few configurations in a study of its own, which is forgotten.

    So a sampler that cannot search this space, or that lacks a library, is refused at once.

    Raises:
        SpecError: what the sampler says.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["minimize" if o.mode == "min" else "maximize" for o in objectives]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(_REHEARSED):
                study.sampler = sampler_of(search, root_seed, number)
                trial = study.ask()
                suggest(trial)
                study.tell(trial, [float(number % 3)] * len(objectives))
    except SpecError:
        raise
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        raise SpecError(
            f"search.sampler: {search.sampler} cannot draw from this space: {error}"
        ) from error


_REHEARSED = 4
