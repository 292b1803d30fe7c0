"""Tables of a run: column types, descriptions and units, as written into the Parquet metadata."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 1
"""Version of the run folder's files and of the Parquet tables that this package reads and writes."""

STATUSES = ("complete", "pruned", "failed", "interrupted", "running")
"""Every outcome that a trial's record can state."""

TABLES = ("trials", "epochs", "stages")
"""Names of the tables of a run, one Parquet file each."""

# Column name -> (pandas dtype, description, unit). Columns named by the sweep itself (config, metrics, versions)
# follow these; `column_doc` describes them.
TRIALS: dict[str, tuple[str, str, str]] = {
    "trial_id": ("string", "identifier of the trial, the name of its folder", ""),
    "number": ("Int64", "number of the configuration in the search, from 0", ""),
    "replicate": ("Int64", "index of the root seed of this configuration, from 0", ""),
    "status": ("string", "outcome: " + ", ".join(STATUSES), ""),
    "seed": ("Int64", "root seed of the trial", ""),
    "attempts": ("Int64", "times the trial was started", "1"),
    "error": ("string", "what ended a failed trial, as 'Type: message'", ""),
    "error_traceback": ("string", "traceback of that error", ""),
    "started": ("datetime", "start of the trial", "UTC"),
    "ended": ("datetime", "end of the trial", "UTC"),
    "seconds": ("float64", "wall time spent", "s"),
    "seconds_full": ("float64", "wall time of the whole pipeline had the stage cache been empty", "s"),
    "host": ("string", "machine that ran the trial", ""),
    "device": ("string", "device that ran the trial", ""),
}
STAGES: dict[str, tuple[str, str, str]] = {
    "trial_id": ("string", "trial that the stage belongs to", ""),
    "index": ("Int64", "position of the stage in the pipeline, from 0", ""),
    "name": ("string", "name of the stage in the pipeline", ""),
    "stage": ("string", "method applied by the stage", ""),
    "phase": ("string", "init, train, prune or quantize", ""),
    "key": ("string", "key of the stage in the stage cache", ""),
    "cached": ("boolean", "whether the result came from the stage cache", ""),
    "seconds": ("float64", "wall time spent on the stage", "s"),
    "seconds_full": ("float64", "wall time of the stage had it not been cached", "s"),
}
EPOCHS: dict[str, tuple[str, str, str]] = {
    "trial_id": ("string", "trial that the epoch belongs to", ""),
    "stage": ("string", "stage that trained", ""),
    "fit": ("string", "training loop within the stage", ""),
    "epoch": ("Int64", "epoch within the training loop, from 0", ""),
    "step": ("Int64", "optimiser steps done within the training loop", "1"),
    "cached": ("boolean", "whether the epoch came from the stage cache", ""),
    "train_loss": ("float64", "mean training loss of the epoch", ""),
    "lr": ("float64", "learning rate at the end of the epoch", ""),
    "accuracy": ("float64", "top-1 accuracy on the validation part", "fraction"),
    "loss": ("float64", "loss on the validation part", ""),
    "seconds": ("float64", "wall time of the epoch", "s"),
    "images_per_second": ("float64", "training throughput", "images/s"),
    "steps_per_second": ("float64", "training throughput", "steps/s"),
}
FIXED: dict[str, dict[str, tuple[str, str, str]]] = {"trials": TRIALS, "epochs": EPOCHS, "stages": STAGES}

_METRICS: dict[str, tuple[str, str]] = {
    "accuracy": ("top-1 accuracy on the validation part", "fraction"),
    "test_accuracy": ("top-1 accuracy on the test set, never seen by the search", "fraction"),
    "loss": ("loss on the validation part", ""),
    "gmacs": ("multiply-accumulates of one inference", "10^9"),
    "num_params": ("parameters of the model", "1"),
    "latency_ms": ("latency of one inference", "ms"),
    "coded_bytes": ("size of the coded model", "bytes"),
}
_SUFFIXES = {"_ms": "ms", "_bytes": "bytes", "_seconds": "s", "_bits": "bits", "_mb": "MB", "_accuracy": "fraction"}


def metric_unit(name: str) -> str:
    """Unit of metric `name`, from its name; empty where the name does not say."""
    if name in _METRICS:
        return _METRICS[name][1]
    return next((unit for suffix, unit in _SUFFIXES.items() if name.endswith(suffix)), "")


def column_doc(table: str, column: str) -> dict[str, str]:
    """Description and unit of a column of `table` ("trials", "epochs" or "stages")."""
    if column in FIXED[table]:
        _, text, unit = FIXED[table][column]
        return {"description": text, "unit": unit}
    group, _, name = column.partition("/")
    if group == "config" and name:
        return {"description": f"configuration value {name}; JSON text where values are not of one type", "unit": ""}
    if group == "version" and name:
        return {"description": f"version of {name}", "unit": ""}
    name = name if group == "metric" and name else column
    text = _METRICS.get(name, (f"metric {name}", ""))[0]
    return {"description": text, "unit": metric_unit(name)}


def table_metadata(table: str, columns: list[str], run: dict[str, Any]) -> dict[str, Any]:
    """What a Parquet table says of itself: schema version, table, columns, and the run's `run.json`."""
    docs = {column: column_doc(table, column) for column in columns}
    return {"schema": SCHEMA_VERSION, "table": table, "columns": docs, "run": run}
