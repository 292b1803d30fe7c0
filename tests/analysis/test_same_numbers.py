"""Numbers of page, terminal and Markdown are those of the Parquet, to their printed digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import analysis
from analysis import numbers
from analysis.report import data
from tests.analysis.conftest import write_run

THREE = [
    {"metric": "accuracy", "mode": "max", "bound": 0.85},
    {"metric": "latency_ms", "mode": "min", "bound": None},
    {"metric": "num_params", "mode": "min", "bound": None},
]
RUNS = {
    "plain": {"trials": 24},
    "seeds": {"trials": 18, "replicates": 3, "seed": 1},
    "three": {"trials": 20, "seed": 2, "header": {"objectives": THREE}},
}


@pytest.fixture(scope="module", params=RUNS)
def gathered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> analysis.Run:
    folder = tmp_path_factory.mktemp("runs") / request.param
    return analysis.gather(write_run(folder, **RUNS[request.param]))


def parquet(run: analysis.Run, table: str) -> pd.DataFrame:
    """A table as any other program reads it."""
    parts = sorted((Path(run.path) / "parquet" / table).glob("part-*.parquet"))
    return pd.concat([pq.read_table(part).to_pandas() for part in parts])


def test_the_page_shows_the_trials_table(gathered, demo_page) -> None:
    stored = parquet(gathered, "trials").set_index("trial_id")
    shown = data.page_data(gathered)
    compared = 0
    for column in shown["columns"]:
        if column["kind"] != "num":
            continue
        unit = column["unit"]
        is_parameter = column["role"] == "parameter"
        write = "plain(v)" if is_parameter else f"figure(v, {json.dumps(unit)})"
        texts = demo_page.run(
            f"return {json.dumps(column['values'])}.map((v) => {write})"
        )
        for trial, text in zip(shown["ids"], texts, strict=True):
            value = stored.loc[trial, column["key"]]
            known = None if pd.isna(value) else value
            wanted = (
                (numbers.MISSING if known is None else numbers.plain(known))
                if is_parameter
                else numbers.figure(known, unit)
            )
            assert text == wanted, (trial, column["key"])
            compared += 1
    assert compared > 100


def test_the_page_shows_the_epochs_and_the_stages(gathered) -> None:
    epochs, stages = parquet(gathered, "epochs"), parquet(gathered, "stages")
    shown = data.page_data(gathered)
    for curve in shown["curves"]["trials"]:
        mine = epochs[epochs["trial_id"] == shown["ids"][curve["row"]]]
        mine = mine[mine["stage"] == curve["stage"]]
        for metric, values in zip(
            shown["curves"]["metrics"], curve["values"], strict=True
        ):
            assert [numbers.figure(v, metric["unit"]) for v in values] == [
                numbers.figure(v, metric["unit"]) for v in mine[metric["name"]]
            ]
    for row, entries in shown["details"]["stages"].items():
        mine = stages[stages["trial_id"] == shown["ids"][int(row)]]
        assert [e[0] for e in entries] == list(mine["name"])
        assert [e[3] for e in entries] == [numbers.duration(s) for s in mine["seconds"]]


def test_terminal_and_markdown_show_the_fronts_table(gathered, tmp_path) -> None:
    stored = parquet(gathered, "fronts")
    name = "noise" if "noise" in set(stored["front"]) else "mean"
    stored = stored[stored["front"] == name].set_index("trial_id")
    text = analysis.write_markdown(gathered, tmp_path / "out.md").read_text()
    rows = analysis.front_text(gathered)
    assert list(rows["trial_id"]) == list(stored.index)
    for _, row in rows.iterrows():
        for objective in gathered.objectives:
            metric, unit = objective.metric, gathered.metrics.unit(objective.metric)
            value = stored.loc[row["trial_id"], f"metric/{metric}"]
            spread = stored.loc[row["trial_id"]].get(f"sd/{metric}", np.nan)
            known = None if pd.isna(spread) else float(spread)
            wanted = numbers.plus_minus(float(value), known, unit)
            head = next(c for c in rows if str(c).split(" ")[0] == metric)
            assert row[head].startswith(wanted)
            assert row[head] in text
