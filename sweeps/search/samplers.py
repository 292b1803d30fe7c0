"""Optuna samplers by their names in a spec."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from sweeps.spec.yaml_text import SpecError

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "nsga2": NSGAIISampler,
    "gp": GPSampler,
    "grid": (
        RandomSampler
    ),  # every point of the grid is enqueued; nothing is left to draw
}


def make_sampler(name: str, seed: int, options: dict[str, Any]) -> BaseSampler:
    """A seeded sampler.

    Raises:
        SpecError: an option that it does not have, or a library that it needs is missing.
    """
    factory = SAMPLERS[name]
    valid = [p for p in inspect.signature(factory).parameters if p != "seed"]
    unknown = [key for key in options if key not in valid]
    if unknown:
        raise SpecError(
            f"search.sampler_options.{unknown[0]}: {name} has no such option; valid:"
            f" {', '.join(valid) or 'none'}"
        )
    if name == "gp":
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise SpecError(
                "search.sampler: gp needs SciPy; pip install scipy"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return factory(seed=seed, **options)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"search.sampler_options: {name} refuses {options}: {error}"
        ) from error
