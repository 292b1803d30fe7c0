"""Tables of a run: column types, descriptions and units, as written into the Parquet metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.contract import STATUSES
from analysis.metrics import Metrics

TABLE_SCHEMA = 2
"""Version of the Parquet tables that this package writes. 1: one file a table, without
`layers` and `fronts`.
"""

READABLE = (1, 2)
"""Versions of the Parquet tables that this package reads."""

TABLES = ("trials", "epochs", "stages", "layers", "classes")
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
    "lr": ("float64", "learning rate at the end of the epoch", ""),
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
BLOCK_DIMENSIONS = {
    "embed": "embedding",
    "heads": "heads",
    "qk": "query and key, per head",
    "v": "value, per head",
    "mlp": "MLP",
}
"""Columns of `LAYERS` that are a block's dimensions, and what they are called in short."""
CLASSES: Columns = {
    "trial_id": ("string", "trial that the model belongs to", ""),
    "index": ("Int64", "number of the class in the data set, from 0", ""),
    "class": ("string", "name of the class", ""),
    "images": ("Int64", "images of the class in the validation part", "1"),
    "accuracy": (
        "float64",
        "share of them that the final model recognises",
        "fraction",
    ),
    "test_images": ("Int64", "images of the class in the test set", "1"),
    "test_accuracy": (
        "float64",
        "share of them that the final model recognises",
        "fraction",
    ),
}
FRONTS: Columns = {
    "front": (
        "string",
        (
            "'mean': no configuration is better; 'noise': the same, differences inside measured"
            " noise set aside"
        ),
        "",
    ),
    "position": (
        "Int64",
        "position on the front, best first objective first, from 0",
        "",
    ),
    "trial_id": (
        "string",
        "the trial that stands for the configuration: its replicate nearest the mean",
        "",
    ),
    "trial_ids": (
        "json",
        "all complete replicates of the configuration, as a JSON list",
        "",
    ),
    "number": ("Int64", "number of the configuration in the search", ""),
    "replicates": ("Int64", "complete replicates of the configuration", "1"),
    "picks": (
        "json",
        "names under which the configuration is picked, as a JSON list",
        "",
    ),
}
FIXED: dict[str, Columns] = {
    "trials": TRIALS,
    "epochs": EPOCHS,
    "stages": STAGES,
    "layers": LAYERS,
    "classes": CLASSES,
    "fronts": FRONTS,
}


@dataclass(frozen=True)
class Declared:
    """What `run.json` says about columns that are named by the sweep itself.

    Attributes:
        objectives: metrics that must be numbers, and have a column whatever was measured.
        parameters: searched parameters, which have a column whatever was drawn.
        metrics: all metrics that a trial or an epoch can have; of an epoch they are numbers.
    """

    objectives: Sequence[str] = ()
    parameters: Sequence[str] = ()
    metrics: Sequence[str] = ()

    def first(self, table: str) -> list[str]:
        """Columns of `table` in the order in which they stand before all others."""
        names = list(FIXED[table])
        if table == "trials":
            names += [f"config/{name}" for name in self.parameters]
            names += [f"metric/{name}" for name in self.objectives]
        return names

    def always(self, table: str) -> dict[str, str]:
        """Column → type of those columns of `table` whose type is known beforehand."""
        found = dtypes_of(table)
        if table == "trials":
            found |= dict.fromkeys((f"metric/{o}" for o in self.objectives), "float64")
        return found

    def types(self, table: str, present: Iterable[str]) -> dict[str, str]:
        """`always`, and the types of those columns whose type is known once they occur."""
        found = self.always(table)
        if table == "epochs":
            known = set(self.metrics) - set(found)
            found |= {name: "float64" for name in present if name in known}
        return found


def dtypes_of(name: str) -> dict[str, str]:
    """Column → type of the fixed columns of table `name` whose type is fixed too."""
    return {column: dtype for column, (dtype, _, _) in FIXED[name].items() if dtype}


def column_doc(table: str, column: str, metrics: Metrics) -> dict[str, str]:
    """Description and unit of a column of `table`, one of `TABLES` or "fronts"."""
    if column in FIXED[table]:
        _, text, unit = FIXED[table][column]
        return {"description": text, "unit": unit}
    group, _, name = column.partition("/")
    if group == "config" and name:
        text = f"value of {name}; JSON text where values are not of one type"
        return {"description": text, "unit": ""}
    if group == "version" and name:
        return {"description": f"version of {name}", "unit": ""}
    if group == "sd" and name:
        text = f"standard deviation of {name} over the replicates"
        return {"description": text, "unit": metrics.unit(name)}
    metric = metrics.of(name if group == "metric" and name else column)
    text = metric.description or f"metric {metric.name}"
    if table == "fronts":
        text += ", mean over the replicates"
    return {"description": text, "unit": metric.unit}


def table_metadata(
    table: str, columns: list[str], metrics: Metrics, run: dict[str, Any]
) -> dict[str, Any]:
    """What a Parquet table says of itself: schema version, table, columns, and the run's
    `run.json`.
    """
    docs = {column: column_doc(table, column, metrics) for column in columns}
    return {"schema": TABLE_SCHEMA, "table": table, "columns": docs, "run": run}
