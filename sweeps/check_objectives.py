"""Objectives against what the trials of a sweep measure: names and bounds."""

from collections.abc import Iterable, Mapping

from analysis.contract import TEST_PREFIX, Objective, RelativeBound
from compress.metrics import (
    TEXT,
    Conditions,
    Metric,
    missing_because,
    trial_metrics,
)
from compress.pipeline import NamedStage
from sweeps.space.space import Space
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError, did_you_mean
from trainers.config import DataConfig
from trainers.training.epoch_metrics import epoch_metrics

UNGUIDED = ("grid", "random")
"""Samplers that draw the same configurations whatever the objectives are."""


def guided_by(spec: Spec, space: Space) -> str:
    """What goes on with the better configurations; empty where the objectives decide nothing
    and only order the configurations afterwards.
    """
    search = spec.search
    if search.early_stopping is not None:
        return "search.early_stopping ends trials"
    if search.refine is not None:
        return "search.refine goes on with the best trials"
    if search.sampler not in UNGUIDED and space.dimensions:
        return f"search.sampler: {search.sampler} draws by the objectives"
    return ""


def check_objectives(
    spec: Spec, stages: Iterable[NamedStage], data: DataConfig, guided: str
) -> None:
    """Refuse an objective that the trials of this pipeline will not have, or cannot keep.

    Args:
        guided: as `guided_by` says it.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    stages = tuple(stages)
    conditions = Conditions(
        validation=data.val_fraction > 0,
        latency=spec.measure.latency,
        quantized=any(stage.config.phase == "quantize" for stage in stages),
        runtimes=tuple(spec.measure.runtimes),
    )
    of_trials = trial_metrics((stage.config for stage in stages), conditions)
    known = {name: m for name, m in of_trials.items() if m.unit != TEXT}
    for i, objective in enumerate(spec.objectives):
        place, name = f"objectives.{i}", objective.metric
        if is_of_test_set(name):
            _check_unguided(f"{place}.metric", name, data, guided)
        else:
            _check_name(f"{place}.metric", name, known, conditions)
        if name in known:
            _check_bound(f"{place}.bound", objective, known[name])


def _check_name(
    place: str, name: str, known: Mapping[str, Metric], conditions: Conditions
) -> None:
    if name in known:
        return
    reason = missing_because(name, conditions)
    why = f" ({reason})" if reason else ""
    valid = sorted(metric for metric in known if not is_of_test_set(metric))
    raise SpecError(
        f"{place}: this pipeline has no metric {name!r}{why};"
        f" {did_you_mean(name, valid)}valid: {', '.join(valid)}"
    )


def _check_unguided(place: str, name: str, data: DataConfig, guided: str) -> None:
    """Refuse a metric of the test set as an objective, unless there is no validation part and
    nothing is chosen by it.
    """
    if data.val_fraction == 0 and not guided:
        return
    why = f" ({guided})" if guided and data.val_fraction == 0 else ""
    raise SpecError(
        f"{place}: the test set never guides the search{why}; use"
        f" {name.removeprefix(TEST_PREFIX)!r} with data.val_fraction above 0, or"
        " data.val_fraction: 0 with search.sampler: grid or random, early_stopping and"
        " refine left out"
    )


def _check_bound(place: str, objective: Objective, metric: Metric) -> None:
    """Refuse a bound that no value, or every value, of the metric keeps."""
    bound, (low, high) = objective.bound, metric.limits
    if isinstance(bound, RelativeBound):
        _check_loss(place, bound, metric)
        return
    if bound is None or low <= bound <= high:
        return
    remedy = "leave it out, or give a value in this range"
    if metric.unit == "fraction" and 2 <= bound <= 100:
        remedy = f"{bound:g} % is written {bound / 100:g}"
    values = f"from {low:g} to {high:g}" if high < float("inf") else f"from {low:g} up"
    raise SpecError(
        f"{place}: {bound:g} is no value of {metric.name}, which lies {values}; {remedy}"
    )


def _check_loss(place: str, bound: RelativeBound, metric: Metric) -> None:
    """Refuse a loss that no value can have: a share of 1 or more, most likely meant as percent."""
    loss = bound.loss
    is_share = bound.relative or metric.unit == "fraction"
    if loss is None or not is_share or abs(loss) < 1:
        return
    raise SpecError(
        f"{place}.loss: {loss:g} is no part of {metric.name}; it lies between -1 and 1:"
        f" {loss:g} % is written {loss / 100:g}"
    )


def is_of_test_set(metric: str) -> bool:
    return (
        metric.startswith(TEST_PREFIX)
        and metric.removeprefix(TEST_PREFIX) in epoch_metrics()
    )
