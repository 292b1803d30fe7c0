"""What the report shows of a model's layers: dimensions a block, entropy and values a
layer, where each came from.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.configurations import is_numeric
from analysis.fronts import KNEE
from analysis.report.columns import compact, compact_all
from analysis.tables.schema import BLOCK_DIMENSIONS

if TYPE_CHECKING:
    from analysis.run import Run

MAX_TRIALS = 60
"""Trials whose layers the report carries: the picks, the rest of the front, then the others
as they come.
"""
MAX_VALUES = 400
"""Different values of a model that are drawn one by one."""
_NUMBERED = re.compile(r"metric/(.+)_(\d{1,3})")
FEW_VALUES = 4096
"""A model of which no layer has more different values than this is quantised."""


def layer_data(run: Run) -> list[dict[str, Any]]:
    """For each shown trial: its row, and of its layers what there is to see (see
    `trial_layers`).
    """
    if run.layers.empty:
        return []
    shown = _shown_trials(run)
    rows: dict[str, list[dict[str, Any]]] = {trial: [] for trial in shown}
    kept = run.layers[run.layers["trial_id"].isin(shown)]
    kept = kept.sort_values(["trial_id", "index"], kind="stable")
    for record in kept.astype(object).where(kept.notna(), None).to_dict("records"):
        rows[record["trial_id"]].append({str(k): v for k, v in record.items()})
    families = numbered_metrics(run)
    return [
        {"row": row, **trial_layers(rows[trial], _counts(run, row, families))}
        for trial, row in shown.items()
    ]


def _shown_trials(run: Run) -> dict[str, int]:
    """Trial → row of those that are shown: the recommended one, the other picks, the rest of
    the front, then others.
    """
    front = run.front()
    picks = sorted(run.picks(front).items(), key=lambda pick: pick[0] != KNEE)
    rows = [*(row for _, row in picks), *front.index, *run.configurations().index]
    known = set(run.layers["trial_id"].unique())
    ids = run.trials["trial_id"]
    found = {str(ids.iloc[int(r)]): int(r) for r in rows if ids.iloc[int(r)] in known}
    return dict(list(found.items())[:MAX_TRIALS])


def numbered_metrics(run: Run) -> dict[str, list[int]]:
    """Metrics that count the same thing for 0, 1, 2 …: their common name → the numbers.

    `order_0`, `order_1` and `order_2` are such a family; it needs two members at least.
    """
    found: dict[str, list[int]] = {}
    for column in map(str, run.trials):
        match = _NUMBERED.fullmatch(column)
        if match and is_numeric(run.trials[column]):
            found.setdefault(match[1], []).append(int(match[2]))
    return {
        name: sorted(numbers)
        for name, numbers in found.items()
        if len(numbers) > 1 and sorted(numbers) == list(range(len(numbers)))
    }


def _counts(run: Run, row: int, families: dict[str, list[int]]) -> list[dict[str, Any]]:
    """What one trial counted in each family: its name, and number, count and description of
    each member.
    """
    found = []
    for name, numbers in families.items():
        items = []
        for number in numbers:
            value = run.trials[f"metric/{name}_{number}"].iloc[row]
            if pd.notna(value):
                description = run.metrics.of(f"{name}_{number}").description
                items.append([number, compact(value), description])
        if items:
            found.append({"name": name, "items": items})
    return found


def trial_layers(
    rows: list[dict[str, Any]], counts: list[dict[str, Any]]
) -> dict[str, Any]:
    """What there is to see of one model, from its rows of the `layers` table in order.

    Returns:
        blocks: names; dims: name → one number a block.
        mapped: names of the layers that came from a learngene; sources: where each came from.
        layers: names of those with weights, and of each its weights, bits, unique values
            and share of zeros.
        quantised: whether most weights lie in layers of few values.
        histogram: the model's values, ascending, with their counts; None where they are many.
        counts: as given.
    """
    blocks = [row for row in rows if row["kind"] == "block"]
    layers = [
        row for row in rows if (row["num_weights"] or 0) > 0 and row["kind"] != "model"
    ]
    mapped = [row for row in rows if row["source_layer"] is not None]
    dims = {name: _column(blocks, name) for name in BLOCK_DIMENSIONS}
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
        "weights": _column(layers, "num_weights"),
        "bits": _column(layers, "entropy_bits"),
        "unique": _column(layers, "num_unique"),
        "zeros": _column(layers, "zero_fraction"),
        "quantised": _mostly_few(layers),
        "histogram": _histogram([row for row in rows if row["kind"] == "model"]),
        "counts": counts,
    }


def _column(rows: list[dict[str, Any]], name: str) -> list[float | int | None]:
    """One number of each layer."""
    return compact_all(np.array([row[name] for row in rows], dtype=np.float64))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _mostly_few(layers: list[dict[str, Any]]) -> bool:
    """Whether most weights lie in layers with few different values for their size."""
    weights = [(row["num_weights"], row["num_unique"]) for row in layers]
    few = [
        size
        for size, unique in weights
        if unique is not None and unique <= FEW_VALUES and 2 * unique < size
    ]
    return sum(few) > 0.5 * sum(size for size, _ in weights)


def _histogram(models: list[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """Values and counts of a model's row, checked: they come from the run folder."""
    for row in models:
        try:
            v = np.asarray(json.loads(row["values"]), dtype=np.float64)
            c = np.asarray(json.loads(row["counts"]), dtype=np.float64)
        except (TypeError, ValueError, RecursionError):
            continue
        if v.ndim != 1 or v.shape != c.shape or not len(v):
            continue
        if np.isfinite(v).all() and np.isfinite(c).all():
            order = np.argsort(-c, kind="stable")[:MAX_VALUES]
            order = order[np.argsort(v[order], kind="stable")]
            return {
                "values": compact_all(v[order]),
                "counts": [int(x) for x in c[order]],
            }
    return None


def _plain(value: Any) -> int | str:
    if isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else str(value)
