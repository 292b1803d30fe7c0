"""Objectives against what the trials of a sweep measure: names and bounds."""

from collections.abc import Iterable, Mapping

from analysis.contract import TEST_PREFIX, Objective
from compress.metrics import (
    TEXT,
    Conditions,
    Metric,
    missing_because,
    trial_metrics,
)
from compress.pipeline import NamedStage
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError, did_you_mean
from trainers.config import DataConfig
from trainers.training.epoch_metrics import epoch_metrics


def check_objectives(
    spec: Spec, stages: Iterable[NamedStage], data: DataConfig
) -> None:
    """Refuse an objective that the trials of this pipeline will not have, or cannot keep.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    stages = tuple(stages)
    conditions = Conditions(
        validation=data.val_fraction > 0,
        latency=spec.measure.latency,
        quantized=any(stage.config.phase == "quantize" for stage in stages),
    )
    known = {
        name: metric
        for name, metric in trial_metrics(
            (stage.config for stage in stages), conditions
        ).items()
        if metric.unit != TEXT and not _is_of_test_set(name)
    }
    for i, objective in enumerate(spec.objectives):
        place = f"objectives.{i}"
        _check_name(f"{place}.metric", objective.metric, known, conditions)
        _check_bound(f"{place}.bound", objective, known[objective.metric])


def _check_name(
    place: str, name: str, known: Mapping[str, Metric], conditions: Conditions
) -> None:
    if _is_of_test_set(name):
        raise SpecError(
            f"{place}: the test set never guides the search; use"
            f" {name.removeprefix(TEST_PREFIX)!r}"
        )
    if name not in known:
        reason = missing_because(name, conditions)
        why = f" ({reason})" if reason else ""
        raise SpecError(
            f"{place}: this pipeline has no metric {name!r}{why};"
            f" {did_you_mean(name, known)}valid: {', '.join(sorted(known))}"
        )


def _check_bound(place: str, objective: Objective, metric: Metric) -> None:
    """Refuse a bound that no value, or every value, of the metric keeps."""
    bound, (low, high) = objective.bound, metric.limits
    if bound is None or low <= bound <= high:
        return
    remedy = "leave it out, or give a value in this range"
    if metric.unit == "fraction" and 1 < bound <= 100:
        remedy = f"{bound:g} % is written {bound / 100:g}"
    values = f"from {low:g} to {high:g}" if high < float("inf") else f"from {low:g} up"
    raise SpecError(
        f"{place}: {bound:g} is no value of {metric.name}, which lies {values}; {remedy}"
    )


def _is_of_test_set(metric: str) -> bool:
    return (
        metric.startswith(TEST_PREFIX)
        and metric.removeprefix(TEST_PREFIX) in epoch_metrics()
    )
