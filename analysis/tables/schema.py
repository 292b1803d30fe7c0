"""Tables of a run: column types, descriptions and units, as written into the Parquet metadata."""

from __future__ import annotations

from typing import Any

RECORD_SCHEMA = 1
"""Version of the run folder's own files (`run.json`, `record.json`, `layers.json`) that
this package reads.
"""

TABLE_SCHEMA = 2
"""Version of the Parquet tables that this package writes. 1: one file a table, without
`layers` and `fronts`.
"""

READABLE = (1, 2)
"""Versions of the Parquet tables that this package reads."""

STATUSES = ("complete", "pruned", "failed", "interrupted", "running")
"""Every outcome that a trial's record can state."""

TABLES = ("trials", "epochs", "stages", "layers")
"""Names of the tables that hold what was recorded; `fronts` is derived from them."""

# Column name -> (type, description, unit). Types are keys of `frames.ARROW`; "" is
# inferred. Columns named by the sweep itself (config, metrics, versions) follow these;
# `column_doc` describes them.
Columns = dict[str, tuple[str, str, str]]
TRIALS: Columns = {
    "trial_id": ("string", "identifier of the trial, the name of its folder", ""),
    "number": ("Int64", "number of the configuration in the search, from 0", ""),
    "replicate": ("Int64", "index of the root seed of this configuration, from 0", ""),
    "status": ("string", "outcome: " + ", ".join(STATUSES), ""),
    "seed": ("Int64", "root seed of the trial", ""),
    "attempts": ("Int64", "times the trial was started", "1"),
    "refines": (
        "Int64",
        "number of the configuration that this trial runs again for longer",
        "",
    ),
    "feasible": (
        "boolean",
        "whether every objective was measured and lies within its bound",
        "",
    ),
    "pruned_stage": ("string", "stage in which a pruned trial was stopped early", ""),
    "pruned_epoch": ("Int64", "epochs of that stage done by then", "1"),
    "error": ("string", "what ended a failed trial, as 'Type: message'", ""),
    "error_traceback": ("string", "traceback of that error", ""),
    "started": ("datetime", "start of the trial", "UTC"),
    "ended": ("datetime", "end of the trial", "UTC"),
    "seconds": ("float64", "wall time spent", "s"),
    "seconds_full": (
        "float64",
        "wall time of the whole pipeline had the stage cache been empty",
        "s",
    ),
    "host": ("string", "machine that ran the trial", ""),
    "device": ("string", "device that ran the trial", ""),
    "world_size": ("Int64", "worker processes that trained together", "1"),
    "code": (
        "string",
        (
            "commit of the code, '+' where it had changes; without git the hash of its"
            " files"
        ),
        "",
    ),
}
STAGES: Columns = {
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
EPOCHS: Columns = {
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
LAYERS: Columns = {
    "trial_id": ("string", "trial that the layer belongs to", ""),
    "index": ("Int64", "position among the trial's rows, in module order, from 0", ""),
    "layer": (
        "string",
        "path of the layer in the final model; empty for the whole model",
        "",
    ),
    "kind": (
        "string",
        (
            "class of the layer; 'block' for a transformer block, 'model' for the whole"
            " model"
        ),
        "",
    ),
    "shape": ("json", "shape of the layer's weight, as a JSON list", ""),
    "num_weights": ("Int64", "parameters of the layer", "1"),
    "num_unique": ("Int64", "different values among them", "1"),
    "entropy_bits": ("float64", "entropy of their values", "bits"),
    "entropy_nonzero_bits": (
        "float64",
        "entropy of the values that are not zero",
        "bits",
    ),
    "zero_fraction": ("float64", "share of zeros among them", "fraction"),
    "embed": ("Int64", "embedding dimensions that a block reads and writes", "1"),
    "heads": ("Int64", "attention heads of a block", "1"),
    "qk": ("Int64", "query and key dimensions of each head", "1"),
    "v": ("Int64", "value dimensions of each head", "1"),
    "mlp": ("Int64", "hidden units of a block's MLP", "1"),
    "source_layer": ("", "layer or stage of the learngene that a block came from", ""),
    "values": (
        "json",
        "different values of a model that has few, ascending, as a JSON list",
        "",
    ),
    "counts": ("json", "how often each of them occurs, as a JSON list", ""),
}
FRONTS: Columns = {
    "front": (
        "string",
        (
            "'mean': no point is better; 'noise': the same, differences inside measured"
            " noise set aside"
        ),
        "",
    ),
    "position": ("Int64", "place on the front, best first objective first, from 0", ""),
    "trial_id": (
        "string",
        "the trial whose model stands for the point: its replicate nearest the mean",
        "",
    ),
    "trial_ids": ("json", "all complete replicates of the point, as a JSON list", ""),
    "number": ("Int64", "number of the configuration in the search", ""),
    "replicates": ("Int64", "complete replicates of the point", "1"),
    "picks": ("json", "names under which the point is picked, as a JSON list", ""),
}
FIXED: dict[str, Columns] = {
    "trials": TRIALS,
    "epochs": EPOCHS,
    "stages": STAGES,
    "layers": LAYERS,
    "fronts": FRONTS,
}


def dtypes_of(name: str) -> dict[str, str]:
    """Column → type of the fixed columns of table `name` whose type is fixed too."""
    return {column: dtype for column, (dtype, _, _) in FIXED[name].items() if dtype}


_METRICS: dict[str, tuple[str, str]] = {
    "accuracy": ("top-1 accuracy on the validation part", "fraction"),
    "test_accuracy": (
        "top-1 accuracy on the test set, never seen by the search",
        "fraction",
    ),
    "top5_accuracy": ("top-5 accuracy on the validation part", "fraction"),
    "test_top5_accuracy": (
        "top-5 accuracy on the test set, never seen by the search",
        "fraction",
    ),
    "loss": ("loss on the validation part", ""),
    "gmacs": ("multiply-accumulates of one inference", "10^9"),
    "num_params": ("parameters of the model", "1"),
    "latency_ms": ("median latency of one inference of a batch", "ms"),
    "latency_p25_ms": ("first quartile of the latency", "ms"),
    "latency_p75_ms": ("third quartile of the latency", "ms"),
    "entropy_bits": (
        "entropy of the values of linear and convolutional parameters",
        "bits",
    ),
    "unique_values": (
        "different values among the linear and convolutional parameters",
        "1",
    ),
    "model_bytes": ("parameters and buffers as stored", "bytes"),
    "coded_bytes": ("size of the coded model", "bytes"),
}
_SUFFIXES = {
    "_ms": "ms",
    "_bytes": "bytes",
    "_seconds": "s",
    "_bits": "bits",
    "_mb": "MB",
    "_accuracy": "fraction",
    "_fraction": "fraction",
}


def metric_unit(name: str) -> str:
    """Unit of metric `name`, from its name; empty where the name does not say."""
    if name in _METRICS:
        return _METRICS[name][1]
    return next(
        (unit for suffix, unit in _SUFFIXES.items() if name.endswith(suffix)), ""
    )


def well_known(name: str) -> bool:
    """Whether metric `name` is one that every trial measures, rather than one that a stage
    reports.
    """
    return name in _METRICS


def column_doc(table: str, column: str) -> dict[str, str]:
    """Description and unit of a column of `table`, one of `TABLES` or "fronts"."""
    if column in FIXED[table]:
        _, text, unit = FIXED[table][column]
        return {"description": text, "unit": unit}
    group, _, name = column.partition("/")
    if group == "config" and name:
        return {
            "description": (
                f"configuration value {name}; JSON text where values are not of one"
                " type"
            ),
            "unit": "",
        }
    if group == "version" and name:
        return {"description": f"version of {name}", "unit": ""}
    if group == "sd" and name:
        return {
            "description": f"standard deviation of {name} over the replicates",
            "unit": metric_unit(name),
        }
    name = name if group == "metric" and name else column
    text = _METRICS.get(name, (f"metric {name}", ""))[0]
    if name.startswith("order_") and name[6:].isdigit():
        text = f"weights fixed to a sum of {name[6:]} powers of two"
    return {
        "description": (
            text + (", mean over the replicates" if table == "fronts" else "")
        ),
        "unit": metric_unit(name),
    }


def table_metadata(
    table: str, columns: list[str], run: dict[str, Any]
) -> dict[str, Any]:
    """What a Parquet table says of itself: schema version, table, columns, and the run's
    `run.json`.
    """
    docs = {column: column_doc(table, column) for column in columns}
    return {"schema": TABLE_SCHEMA, "table": table, "columns": docs, "run": run}
