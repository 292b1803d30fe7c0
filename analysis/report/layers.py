"""What the report shows of a model's layers: dimensions a block, entropy and values a
layer, where each came from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from analysis.run import Run

BLOCK_DIMS = ("embed", "heads", "qk", "v", "mlp")
MAX_TRIALS = 60
"""Trials whose layers the report carries: the picks, the rest of the front, then the others
as they come.
"""
MAX_VALUES = 400
"""Different values of a model that are drawn one by one."""
FEW_VALUES = 4096
"""A model of which no layer has more different values than this is quantised."""


def layer_data(run: Run) -> list[dict[str, Any]]:
    """For each shown trial: its row, and of its layers what there is to see (see
    `trial_layers`).
    """
    if run.layers.empty:
        return []
    front = run.front()
    picks = sorted(
        run.picks(front).items(), key=lambda pick: pick[0] != "knee"
    )  # what is recommended comes first
    first = [*(row for _, row in picks), *front.index, *run.points().index]
    order = list(dict.fromkeys(int(row) for row in first))
    known = set(run.layers["trial_id"].unique())
    ids = run.trials["trial_id"]
    shown = {str(ids.iloc[row]): row for row in order if ids.iloc[row] in known}
    wanted = dict(list(shown.items())[:MAX_TRIALS])
    rows: dict[str, list[dict[str, Any]]] = {trial: [] for trial in wanted}
    kept = run.layers[run.layers["trial_id"].isin(wanted)].sort_values(
        ["trial_id", "index"], kind="stable"
    )
    for record in kept.astype(object).where(kept.notna(), None).to_dict("records"):
        rows[record["trial_id"]].append({str(k): v for k, v in record.items()})
    return [
        {"row": row, **trial_layers(rows[trial], _orders(run, row))}
        for trial, row in wanted.items()
    ]


def trial_layers(rows: list[dict[str, Any]], orders: dict[int, int]) -> dict[str, Any]:
    """What there is to see of one model, from its rows of the `layers` table in order.

    Returns:
        blocks: names; dims: name → one number a block.
        mapped: names of the layers that came from a learngene; sources: where each came from.
        layers: names of those with weights, and of each its weights, bits, unique values
            and share of zeros.
        quantised: whether most weights lie in layers of few values.
        histogram: the model's values, ascending, with their counts; None where they are many.
        orders: number of powers of two → weights, of a weight-fixing network.
    """
    blocks = [row for row in rows if row["kind"] == "block"]
    layers = [
        row for row in rows if (row["num_weights"] or 0) > 0 and row["kind"] != "model"
    ]
    mapped = [row for row in rows if row["source_layer"] is not None]
    dims = {name: [_number(row[name]) for row in blocks] for name in BLOCK_DIMS}
    return {
        "blocks": [_text(row["layer"]) for row in blocks],
        "dims": {
            name: values
            for name, values in dims.items()
            if any(v is not None for v in values)
        },
        "mapped": [_text(row["layer"]) for row in mapped],
        "sources": [_plain(row["source_layer"]) for row in mapped],
        "layers": [_text(row["layer"]) for row in layers],
        "weights": [_number(row["num_weights"]) for row in layers],
        "bits": [_number(row["entropy_bits"]) for row in layers],
        "unique": [_number(row["num_unique"]) for row in layers],
        "zeros": [_number(row["zero_fraction"]) for row in layers],
        "quantised": _mostly_few(layers),
        "histogram": _histogram([row for row in rows if row["kind"] == "model"]),
        "orders": [[order, count] for order, count in sorted(orders.items())],
    }


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _mostly_few(layers: list[dict[str, Any]]) -> bool:
    """Whether most weights lie in layers with few different values for their size."""
    few = [
        r["num_weights"]
        for r in layers
        if (u := r["num_unique"]) is not None
        and u <= FEW_VALUES
        and 2 * u < r["num_weights"]
    ]
    return sum(few) > 0.5 * sum(row["num_weights"] for row in layers)


def _orders(run: Run, row: int) -> dict[int, int]:
    """Weights by how many powers of two they are a sum of, from the metrics `order_<k>`."""
    found = {}
    for column in map(str, run.trials):
        name = column.removeprefix("metric/order_")
        if name != column and name.isdigit() and len(name) < 4:
            value = run.trials[column].iloc[row]
            if pd.notna(value) and not isinstance(value, str):
                found[int(name)] = int(value)
    return found


def _histogram(models: list[dict[str, Any]]) -> dict[str, list[float]] | None:
    """Values and counts of a model's row, checked: they come from the run folder."""
    for row in models:
        try:
            v = np.asarray(json.loads(row["values"]), dtype=np.float64)
            c = np.asarray(json.loads(row["counts"]), dtype=np.float64)
        except (TypeError, ValueError, RecursionError):
            continue
        if (
            v.ndim == 1
            and v.shape == c.shape
            and len(v) > 0
            and np.isfinite(v).all()
            and np.isfinite(c).all()
        ):
            order = np.argsort(-c, kind="stable")[:MAX_VALUES]
            order = order[np.argsort(v[order], kind="stable")]
            return {
                "values": [float(f"{x:.6g}") for x in v[order]],
                "counts": [int(x) for x in c[order]],
            }
    return None


def _number(value: Any) -> float | int | None:
    if value is None or not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.5g}")


def _plain(value: Any) -> int | str:
    if isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else str(value)
