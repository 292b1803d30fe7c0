"""A run folder made by version 0.1 gives the tables that version 0.1 gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = json.loads((FIXTURES / "run-0.1-tables.json").read_text())
"""Table → column → its type and its values, as version 0.1 read them."""


def plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.item() if hasattr(value, "item") else value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "run-0.1", tmp_path / "run-0.1")
    return tmp_path / "run-0.1"


@pytest.mark.parametrize("read", [analysis.load, analysis.gather])
@pytest.mark.parametrize("table", EXPECTED)
def test_tables(folder, read, table):
    run = read(folder)
    assert run.problems == []
    assert run.classes.empty
    found = getattr(run, table)
    assert set(found) == set(EXPECTED[table])
    for column, wanted in EXPECTED[table].items():
        assert str(found[column].dtype) == wanted["dtype"], column
        assert [plain(v) for v in found[column]] == wanted["values"], column


def test_its_metrics_have_units_and_its_report_is_written(folder):
    run = analysis.load(folder)
    assert run.metrics.unit("accuracy") == "fraction"
    assert run.metrics.unit("latency_ms") == "ms"
    assert run.metrics.of("latency_ms").is_time
    assert run.metrics.unit("seen_seconds") == ""
    front = analysis.front_text(run)
    assert front["accuracy"].tolist() == ["23.33 %", "10.00 %"]
    assert front["finetune.lr"].tolist() == ["0.001", "0.001"]
    assert "23.33 %" in analysis.write_report(run).read_text()
