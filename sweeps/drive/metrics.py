"""What the trials of a sweep measure, described for its run folder and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.metrics import trial_metrics
from compress.pipeline import stages
from sweeps.space.sweep import Sweep
from trainers.training.epoch_metrics import epoch_metrics


def described_metrics(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Name → description, unit, whether it is a time and whether its values are compared by their
    ratio, of all that a trial can have.
    """
    known = stages()
    kinds = [known[kind] for kind in known if kind in set(_names(sweep.spec.stages))]
    runtimes = tuple(sweep.spec.measure.runtimes)
    found = {
        name: {
            "description": metric.description,
            "unit": metric.unit,
            "is_time": metric.is_time,
            "has_ratio_scale": metric.has_ratio_scale,
        }
        for name, metric in trial_metrics(kinds, runtimes=runtimes).items()
    }
    for name, metric in epoch_metrics().items():
        described = {"description": metric.description, "unit": metric.unit}
        found.setdefault(name, described | {"is_time": False})
    return found


def units(sweep: Sweep) -> dict[str, str]:
    """Name → unit, of the same metrics."""
    return {name: metric["unit"] for name, metric in described_metrics(sweep).items()}


def _names(value: Any) -> Iterator[str]:
    """All keys and texts in nested mappings: among them are the kinds of a spec's stages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _names(inner)
