"""Descriptions and units of the metrics of runs that version 0.1 made, whose `run.json` has none.

This list is closed: since schema 2 a run describes its metrics itself (see `analysis.metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable

from analysis.metrics import Metric, Metrics

_SUFFIXES = {
    "_ms": "ms",
    "_bytes": "bytes",
    "_seconds": "s",
    "_bits": "bits",
    "_mb": "MB",
    "_accuracy": "fraction",
    "_fraction": "fraction",
}
_ON_TEST_SET = "on the test set, never seen by the search"
_METRICS = (
    Metric("accuracy", "top-1 accuracy on the validation part", "fraction"),
    Metric("test_accuracy", f"top-1 accuracy {_ON_TEST_SET}", "fraction"),
    Metric("top5_accuracy", "top-5 accuracy on the validation part", "fraction"),
    Metric("test_top5_accuracy", f"top-5 accuracy {_ON_TEST_SET}", "fraction"),
    Metric("loss", "loss on the validation part"),
    Metric("train_loss", "mean training loss of the epoch"),
    Metric("gmacs", "multiply-accumulates of one inference", "10^9"),
    Metric("num_params", "parameters of the model", "1"),
    Metric("latency_ms", "median latency of one inference of a batch", "ms", True),
    Metric("latency_p25_ms", "first quartile of the latency", "ms", True),
    Metric("latency_p75_ms", "third quartile of the latency", "ms", True),
    Metric(
        "entropy_bits",
        "entropy of the values of linear and convolutional parameters",
        "bits",
    ),
    Metric(
        "unique_values",
        "different values among the linear and convolutional parameters",
        "1",
    ),
    Metric("model_bytes", "parameters and buffers as stored", "bytes"),
    Metric("coded_bytes", "size of the coded model", "bytes"),
)
DECLARED = Metrics((metric.name, metric) for metric in _METRICS)
"""Metrics that every trial of such a run may have."""


def metrics_of(names: Iterable[str]) -> Metrics:
    """`DECLARED` and the metrics of these names, with units as their names say."""
    found = Metrics(DECLARED)
    for name in names:
        if name not in found:
            found[name] = _by_name(name)
    return found


def _by_name(name: str) -> Metric:
    unit = next((unit for end, unit in _SUFFIXES.items() if name.endswith(end)), "")
    if name.startswith("order_") and name[6:].isdigit():
        return Metric(name, f"weights fixed to a sum of {name[6:]} powers of two")
    return Metric(name, "", unit)
