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
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from compress.measure import through_runtime
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

    from trainers.data.recognised import Recognised
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
        runtimes: what the metrics of each measured runtime begin with.
    """

    validation: bool = True
    test: bool = True
    latency: bool = True
    quantized: bool = True
    runtimes: tuple[str, ...] = ("",)


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
        source_files: a folder of this source's files in runtimes, which trials share; None: each
            writes them.
        evaluations: what evaluation gave, by split; see `compress.evaluated`.
        recognised: metric that counts them → which images are recognised.
        deployed: the model as each measured runtime has it, by what its metrics begin with.
    """

    state: "ModelState"
    data: "Data"
    device: "torch.device"
    options: MeasureConfig = field(default_factory=MeasureConfig)
    metrics: dict[str, Value] = field(default_factory=dict)
    source: "ModelState | None" = None
    source_files: Path | None = None
    evaluations: "dict[Split, Evaluation]" = field(default_factory=dict)
    recognised: "dict[str, Recognised]" = field(default_factory=dict)
    deployed: "dict[str, through_runtime.Deployed]" = field(default_factory=dict)

    @cached_property
    def module(self) -> "nn.Module":
        """The module with the final weights, in eval mode, on the trial's device."""
        return self.state.build().to(self.device)

    def in_runtime(self, prefix: str) -> "through_runtime.Deployed":
        """The model as a runtime has it, by what its metrics begin with; it is loaded once."""
        if prefix not in self.deployed:
            self.deployed[prefix] = through_runtime.deploy(
                self.state,
                self.data.info.image_size,
                self.options.runtimes[prefix],
                self.device.type,
                reference=self.source if self.options.latency else None,
                reference_files=self.source_files,
            )
        return self.deployed[prefix]


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


def _evaluate(final: FinalModel, split: "Split") -> dict[str, float]:
    from trainers.training.evaluate import evaluate_classes

    shown = "val" if final.data.size("val") else "test"
    module = final.module
    if final.options.evaluate_in == "runtime":
        module = through_runtime.in_place_of(module, final.in_runtime(""))
    found = evaluate_classes(
        module,
        final.data,
        split,
        final.device,
        samples=final.options.samples if split == shown else 0,
    )
    final.evaluations[split] = found
    if found.recognised is not None:
        accuracy = "accuracy" if split == "val" else "test_accuracy"
        final.recognised[accuracy] = found.recognised
        if final.options.evaluate_in == "runtime" and split == "val":
            final.in_runtime("").recognised = found.recognised
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


def _paused(final: FinalModel) -> Mapping[str, Value]:
    from trainers import measuring

    return {"paused_seconds": measuring.paused_seconds()}


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
            Metric("num_params", "parameters", "1", False, (0, math.inf), True),
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
}
"""What is measured of every final model, in this order."""


def _of_runtimes(prefixes: Iterable[str]) -> dict[str, Measurement]:
    """What is measured of the model in each runtime."""
    found = {}
    for prefix in prefixes:
        for part in through_runtime.PARTS:
            metrics = tuple(m._replace(name=prefix + m.name) for m in part.metrics)
            measured = partial(_in_runtime, prefix, part.measure)
            found[prefix + part.name] = Measurement(metrics, measured, part.needs)
    return found


def _in_runtime(
    prefix: str, measured: through_runtime.Measured, final: FinalModel
) -> Mapping[str, Value]:
    deployed = final.in_runtime(prefix)
    values = measured(deployed, final.data, final.options, final.metrics)
    if "runtime_accuracy" in values:
        own = deployed.recognised or final.recognised.get("accuracy")
        if own is not None:
            final.recognised[f"{prefix}runtime_accuracy"] = own
    return {prefix + name: value for name, value in values.items()}


def _by_name(measurements: Mapping[str, Measurement]) -> dict[str, Metric]:
    return {
        metric.name: metric
        for measurement in measurements.values()
        for metric in measurement.metrics
    }


MEASUREMENTS |= _of_runtimes([""])
MEASUREMENTS |= {
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
METRICS: dict[str, Metric] = _by_name(MEASUREMENTS)
"""Every built-in metric of a final model by its name."""


def measurements(runtimes: Sequence[str] = ("",)) -> dict[str, Measurement]:
    """The built-in measurements and those that plugins offer.

    Args:
        runtimes: see `Conditions`.

    Raises:
        ValueError: a plugin offers something else than a `Measurement`, or a metric whose
            name is taken.
    """
    found = plugins.merged(
        plugins.METRICS,
        MEASUREMENTS | _of_runtimes(runtimes),
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


def metrics(runtimes: Sequence[str] = ("",)) -> dict[str, Metric]:
    """Every metric of a final model by its name, those of plugins included."""
    return _by_name(measurements(runtimes))


class Reporting(Protocol):
    """A stage, or its class: what it reports is described in `metrics`."""

    metrics: ClassVar[tuple[Metric, ...]]


def trial_metrics(
    stages: Iterable[Reporting | type[Reporting]],
    conditions: Conditions | None = None,
    runtimes: Sequence[str] = ("",),
) -> dict[str, Metric]:
    """Every metric that a trial with these stages can have, by name.

    Args:
        stages: those of its pipeline, or of all pipelines of a sweep.
        conditions: leave out final metrics that do not exist under these.
        runtimes: see `Conditions`, whose own count where they are given.
    """
    final = metrics(runtimes) if conditions is None else existing_metrics(conditions)
    reported = {metric.name: metric for stage in stages for metric in stage.metrics}
    return final | reported


def existing_metrics(conditions: Conditions) -> dict[str, Metric]:
    """The metrics that a final model has under these conditions."""
    made = {
        name: measurement
        for name, measurement in measurements(conditions.runtimes).items()
        if measurement.needs is None or getattr(conditions, measurement.needs)
    }
    return _by_name(made)


def missing_because(name: str, conditions: Conditions) -> str | None:
    """Why a known metric does not exist under these conditions, as a phrase for an error.

    None where it exists, and where no measurement gives a metric of this name.
    """
    for measurement in measurements(conditions.runtimes).values():
        needed = measurement.needs
        if needed is None or getattr(conditions, needed):
            continue
        if any(metric.name == name for metric in measurement.metrics):
            return NEEDS[needed]
    return None


def needs_quantized(names: Iterable[str]) -> bool:
    """Whether one of these metrics is measured only where a quantize stage made the model, or where
    such a model is compared with it.
    """
    wanted = set(names)
    return any(
        metric.name in wanted
        for measurement in MEASUREMENTS.values()
        if measurement.needs == "quantized"
        for metric in measurement.metrics
    )


def measure(final: FinalModel, *, quantized: bool, rank: int = 0) -> dict[str, Value]:
    """All metrics of a final model, `final.metrics` among them.

    Args:
        final: the model; its `metrics` grow along the way.
        quantized: whether a quantize stage made it, or it is compared with one that such a stage
            made.
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
        runtimes=tuple(final.options.runtimes),
    )
    for name, measurement in measurements(conditions.runtimes).items():
        if measurement.needs is not None and not getattr(conditions, measurement.needs):
            continue
        if rank != 0 and not measurement.on_every_rank:
            continue
        values = measurement.measure(final)
        _check_declared(name, values, measurement.metrics)
        final.metrics |= values
    for deployed in final.deployed.values():
        deployed.folder.cleanup()
    final.deployed.clear()
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
