"""Every metric of a trial's final model: its name, description and unit, and how it is measured.

A new metric of the final model touches this file alone: give its `Metric` and the function
that computes it as one more `Measurement`. A package of somebody else's offers the same
object under `METRICS` (see docs/extending.md). Metrics that an epoch of training has too,
such as the accuracy, are declared in `trainers.training.epoch_metrics`, and what a stage
reports about its own work in that stage (`Stage.metrics`).

Nothing heavy is imported before something is measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from compress.measure.metric import TEXT as TEXT
from compress.measure.metric import Metric, Value
from compress.measure.options import MeasureConfig
from trainers import plugins
from trainers.training.epoch_metrics import (
    EPOCH_METRICS,
    EpochMetric,
    epoch_metrics,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.data.splits import Data, Split
    from trainers.models.arch import ModelState
    from trainers.training.evaluate import Evaluation


class Conditions(NamedTuple):
    """What decides which measurements a trial makes.

    Attributes:
        validation: whether there is a validation part (data.val_fraction above 0).
        test: whether the data set has a test set.
        latency: whether latency is measured (measure.latency).
        quantized: whether the pipeline has a quantize stage.
    """

    validation: bool = True
    test: bool = True
    latency: bool = True
    quantized: bool = True


NEEDS: Mapping[str, str] = {
    "validation": "it needs a validation part; set data.val_fraction above 0",
    "test": "it needs a test set",
    "latency": "it needs measure.latency: true",
    "quantized": "it needs a quantize stage in the pipeline",
}
"""Field of `Conditions` → what to tell a user in whose sweep it does not hold."""


@dataclass
class FinalModel:
    """The model that a trial ended with, and what measuring it may use.

    Attributes:
        state: description and weights.
        data: the data set, split.
        device: where the trial runs.
        options: batch size, precision and repetitions of timed passes.
        metrics: what is known so far: the stages' reports and earlier measurements.
        source: the model that the pipeline began with, the reference of latency; None: without.
        evaluations: what evaluation gave, by split; see `class_rows`.
    """

    state: "ModelState"
    data: "Data"
    device: "torch.device"
    options: MeasureConfig = field(default_factory=MeasureConfig)
    metrics: dict[str, Value] = field(default_factory=dict)
    source: "ModelState | None" = None
    evaluations: "dict[Split, Evaluation]" = field(default_factory=dict)

    @cached_property
    def module(self) -> "nn.Module":
        """The module with the final weights, in eval mode, on the trial's device."""
        return self.state.build().to(self.device)


@dataclass(frozen=True)
class Measurement:
    """One computation that gives one or several metrics of the final model.

    Attributes:
        metrics: those that it can give. It may leave some out where they have no meaning
            for the model at hand.
        measure: computes them: the final model → name → value.
        needs: a field of `Conditions` that must hold, or None.
        on_every_rank: whether all processes of a distributed trial must take part;
            otherwise the first one measures alone.
    """

    metrics: tuple[Metric, ...]
    measure: Callable[[FinalModel], Mapping[str, Value]]
    needs: str | None = None
    on_every_rank: bool = False


def class_rows(final: FinalModel) -> list[dict[str, Any]]:
    """How well each class is recognised: the rows of a run's `classes` table, in class order.

    They come from the evaluations that `measure` made, which must be called before. Accuracies
    are fractions; what was not evaluated, and the accuracy of a class without images, is None.
    """
    rows: list[dict[str, Any]] = [
        {"index": index, "class": name}
        for index, name in enumerate(final.data.class_names)
    ]
    nothing = [None] * len(rows)
    splits: dict[Split, str] = {"val": "", "test": "test_"}
    for split, prefix in splits.items():
        found = final.evaluations.get(split)
        images = nothing if found is None else found.class_images
        shares = nothing if found is None else found.class_accuracy
        for row, count, share in zip(rows, images, shares, strict=True):
            row |= {f"{prefix}images": count, f"{prefix}accuracy": share}
    return rows


def _evaluate(final: FinalModel, split: "Split") -> dict[str, float]:
    from trainers.training.evaluate import evaluate_classes

    found = evaluate_classes(final.module, final.data, split, final.device)
    final.evaluations[split] = found
    return found.metrics


def _evaluate_validation(final: FinalModel) -> Mapping[str, Value]:
    return _evaluate(final, "val")


def _evaluate_test(final: FinalModel) -> Mapping[str, Value]:
    scores = _evaluate(final, "test")
    return {f"test_{name}": value for name, value in scores.items()}


def _static(final: FinalModel) -> Mapping[str, Value]:
    from compress.measure.model import measure_static

    return measure_static(final.state, final.data.info.image_size)


def _coded(final: FinalModel) -> Mapping[str, Value]:
    """Sizes of the coded model file; the last two only where weights share values."""
    from compress.codec.file import encode

    size = encode(final.state).size
    model_bytes = float(final.metrics["model_bytes"])
    coded: dict[str, Value] = {
        "coded_bytes": size.total_bytes,
        "coded_ratio": model_bytes / size.total_bytes,
    }
    entropy_bits = float(final.metrics["entropy_bits"])
    if size.coded_weights and entropy_bits:
        bits = 8 * size.index_bytes / size.coded_weights
        coded["coded_bits_per_weight"] = bits
        coded["coded_to_entropy"] = bits / entropy_bits
    return coded


def _latency(final: FinalModel) -> Mapping[str, Value]:
    from compress.measure.latency import measured_alone

    source = None if final.source is None else final.source.build()
    image_size = final.data.info.image_size
    return measured_alone(final.module, source, image_size, final.device, final.options)


def _paused(final: FinalModel) -> Mapping[str, Value]:
    from trainers import measuring

    return {"paused_seconds": measuring.paused_seconds()}


def _peak_memory(final: FinalModel) -> Mapping[str, Value]:
    from compress.measure.memory import MEGABYTE, peak_memory_bytes

    peak = peak_memory_bytes(
        final.module,
        final.data.info.image_size,
        final.device,
        batch_size=final.options.batch_size,
        dtype=final.options.precision,
    )
    return {"peak_memory_mb": peak / MEGABYTE}


def _of_epochs(known: Mapping[str, EpochMetric], *, test: bool) -> tuple[Metric, ...]:
    """What evaluation gives of a final model: every epoch metric of a split."""
    found = []
    for metric in known.values():
        if not metric.on_validation:
            continue
        name = metric.name
        description = metric.description
        if test:
            name = f"test_{name}"
            description = description.replace("the validation part", "the test set")
            description = description.replace("validation images", "test images")
        found.append(Metric(name, description, metric.unit))
    return tuple(found)


MEASUREMENTS: dict[str, Measurement] = {
    "validation": Measurement(
        _of_epochs(EPOCH_METRICS, test=False),
        _evaluate_validation,
        needs="validation",
        on_every_rank=True,
    ),
    "test": Measurement(
        _of_epochs(EPOCH_METRICS, test=True),
        _evaluate_test,
        needs="test",
        on_every_rank=True,
    ),
    "static": Measurement(
        (
            Metric("num_params", "parameters", "1", range=(0, math.inf)),
            Metric("gmacs", "multiply-accumulates of one image", "10^9"),
            Metric(
                "entropy_bits",
                "entropy of the values of all Linear and Conv parameters (and of norms,"
                " where a stage has include_norm)",
                "bits per weight",
            ),
            Metric(
                "entropy_nonzero_bits",
                "entropy of those values that are not zero",
                "bits per weight",
            ),
            Metric(
                "unique_values",
                "different values among all Linear and Conv parameters",
                "1",
                range=(0, math.inf),
            ),
            Metric(
                "zero_fraction",
                "share of zeros among all Linear and Conv parameters",
                "fraction",
            ),
            Metric("model_bytes", "parameters and buffers as stored, uncoded", "bytes"),
        ),
        _static,
    ),
    "coded": Measurement(
        (
            Metric("coded_bytes", "size of the coded model file", "bytes"),
            Metric(
                "coded_ratio", "model_bytes over coded_bytes", "1", range=(0, math.inf)
            ),
            Metric(
                "coded_bits_per_weight",
                "entropy-coded bits of a weight that lies on a shared value, without"
                " the codebook",
                "bits per weight",
            ),
            Metric(
                "coded_to_entropy",
                "coded_bits_per_weight over entropy_bits; below 1 where the coder finds"
                " more structure than the histogram of values shows",
                "1",
                range=(0, math.inf),
            ),
        ),
        _coded,
        needs="quantized",
    ),
    "latency": Measurement(
        (
            Metric(
                "latency_ms",
                "median time of a forward pass of one batch, on the trial's device",
                "ms",
                True,
            ),
            Metric("latency_p25_ms", "first quartile of that time", "ms", True),
            Metric("latency_p75_ms", "third quartile of that time", "ms", True),
            Metric("p95_latency_ms", "its 95th percentile", "ms", True),
            Metric(
                "latency_ratio",
                "that time over the source model's, of passes taken in turns",
                "1",
                True,
                (0, math.inf),
            ),
            Metric(
                "latency_ratio_low",
                "lower end of the ratio's interval of 95 %",
                "1",
                True,
                (0, math.inf),
            ),
            Metric(
                "latency_ratio_high",
                "upper end of the ratio's interval of 95 %",
                "1",
                True,
                (0, math.inf),
            ),
            Metric(
                "reference_latency_ms",
                "the source model's median time, measured in turns with the model's",
                "ms",
                True,
            ),
            Metric(
                "latency_alone",
                "1 where nothing else of ours used the node's cores or the GPU meanwhile",
                "1",
                True,
                (0, 1),
            ),
            Metric("latency_batch_size", "images in that batch", "1", True),
            Metric("latency_repeats", "timed forward passes", "1", True),
            Metric("latency_dtype", "type of weights and images", TEXT, True),
        ),
        _latency,
        needs="latency",
    ),
    "peak_memory": Measurement(
        (
            Metric(
                "peak_memory_mb",
                "memory at the peak of a forward pass of one batch, weights included",
                "MB",
            ),
        ),
        _peak_memory,
    ),
    "pauses": Measurement(
        (
            Metric(
                "paused_seconds",
                "time that the trial stood still while others measured, or waited to measure",
                "s",
                True,
                (0, math.inf),
            ),
        ),
        _paused,
    ),
}
"""What is measured of every final model, in this order."""


def _by_name(measurements: Mapping[str, Measurement]) -> dict[str, Metric]:
    return {
        metric.name: metric
        for measurement in measurements.values()
        for metric in measurement.metrics
    }


METRICS: dict[str, Metric] = _by_name(MEASUREMENTS)
"""Every built-in metric of a final model by its name."""


def measurements() -> dict[str, Measurement]:
    """The built-in measurements and those that plugins offer.

    Raises:
        ValueError: a plugin offers something else than a `Measurement`, or a metric whose
            name is taken.
    """
    found = plugins.merged(
        plugins.METRICS,
        MEASUREMENTS,
        lambda value: isinstance(value, Measurement),
        "a compress.metrics.Measurement",
    )
    known = epoch_metrics()
    for part, test in (("validation", False), ("test", True)):
        found[part] = replace(found[part], metrics=_of_epochs(known, test=test))
    origin: dict[str, str] = {}
    for name, measurement in found.items():
        for metric in measurement.metrics:
            other = origin.setdefault(metric.name, name)
            if other != name:
                raise ValueError(
                    f"metric {metric.name!r} is given by the measurements {other!r} and"
                    f" {name!r}; rename one of them"
                )
    return found


def metrics() -> dict[str, Metric]:
    """Every metric of a final model by its name, those of plugins included."""
    return _by_name(measurements())


class Reporting(Protocol):
    """A stage, or its class: what it reports is described in `metrics`."""

    metrics: ClassVar[tuple[Metric, ...]]


def trial_metrics(
    stages: Iterable[Reporting | type[Reporting]], conditions: Conditions | None = None
) -> dict[str, Metric]:
    """Every metric that a trial with these stages can have, by name.

    Args:
        stages: those of its pipeline, or of all pipelines of a sweep.
        conditions: leave out final metrics that do not exist under these.
    """
    final = metrics() if conditions is None else existing_metrics(conditions)
    reported = {metric.name: metric for stage in stages for metric in stage.metrics}
    return final | reported


def existing_metrics(conditions: Conditions) -> dict[str, Metric]:
    """The metrics that a final model has under these conditions."""
    made = {
        name: measurement
        for name, measurement in measurements().items()
        if measurement.needs is None or getattr(conditions, measurement.needs)
    }
    return _by_name(made)


def missing_because(name: str, conditions: Conditions) -> str | None:
    """Why a known metric does not exist under these conditions, as a phrase for an error.

    None where it exists, and where no measurement gives a metric of this name.
    """
    for measurement in measurements().values():
        needed = measurement.needs
        if needed is None or getattr(conditions, needed):
            continue
        if any(metric.name == name for metric in measurement.metrics):
            return NEEDS[needed]
    return None


def measure(final: FinalModel, *, quantized: bool, rank: int = 0) -> dict[str, Value]:
    """All metrics of a final model, `final.metrics` among them.

    Args:
        final: the model; its `metrics` grow along the way.
        quantized: whether a quantize stage made it.
        rank: of this process among those of the trial; others than the first only take part
            in what needs all of them.

    Raises:
        ValueError: a measurement gave a metric that it does not declare.
    """
    conditions = Conditions(
        validation=final.data.size("val") > 0,
        test=final.data.size("test") > 0,
        latency=final.options.latency,
        quantized=quantized,
    )
    for name, measurement in measurements().items():
        if measurement.needs is not None and not getattr(conditions, measurement.needs):
            continue
        if rank != 0 and not measurement.on_every_rank:
            continue
        values = measurement.measure(final)
        _check_declared(name, values, measurement.metrics)
        final.metrics |= values
    return final.metrics


def _check_declared(
    name: str, values: Mapping[str, Value], declared: Sequence[Metric]
) -> None:
    unknown = values.keys() - {metric.name for metric in declared}
    if unknown:
        raise ValueError(
            f"measurement {name!r} gave {', '.join(sorted(unknown))}, which its metrics"
            " do not declare; add a Metric for each"
        )
