"""`benchmarks/shrink.py`: what its table counts. Its ways need hours, and other packages."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from shrink_table import (
    Row,
    append,
    counted,
    limit_seconds,
    read,
    standing,
    table,
    wanted,
)

ROW = Row(
    pair="vit-digits",
    goals={"latency": "0.5x"},
    seed=0,
    way="shrink",
    seconds=90,
    limit_seconds=1800,
    met=True,
    ms=0.5,
    source_ms=1.0,
    bytes=1000,
    source_bytes=4000,
    val_accuracy=0.96,
    source_val_accuracy=0.97,
    test_accuracy=0.95,
    source_test_accuracy=0.96,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"met": False, "ms": 0.1}, "ahead"),
        ({"ms": 0.6}, "ahead"),
        ({"ms": 0.505}, "level"),
        ({"ms": 0.495}, "level"),
        ({"ms": 0.4}, "behind"),
        # each is compared by its own ratio: the machine was slower, source and all
        ({"ms": 1.0, "source_ms": 2.0}, "level"),
        # bytes are not what this goal asks for
        ({"bytes": 10}, "level"),
    ],
)
def test_who_is_ahead(changes: dict[str, float], expected: str) -> None:
    assert standing(ROW, replace(ROW, way="int8", **changes)) == expected


def test_who_is_ahead_where_the_goal_is_not_met() -> None:
    missed = replace(ROW, met=False)
    assert standing(missed, replace(ROW, way="int8")) == "behind"
    assert standing(missed, replace(missed, way="int8", ms=0.9)) == "level"
    small = replace(ROW, goals={"bytes": "0.5x"})
    assert standing(small, replace(small, way="int8", bytes=2000)) == "ahead"


def test_goals_are_counted() -> None:
    other = replace(ROW, goals={"bytes": "0.3x"})
    rows = [
        *(ROW, replace(ROW, way="int8", ms=0.7), replace(ROW, way="nncf", met=False)),
        *(other, replace(other, way="int8"), replace(other, way="nncf", bytes=1200)),
        replace(ROW, seed=1, way="int8"),  # without a row of shrink it is no goal
    ]
    assert counted(rows) == [
        "goals kept: shrink 2 of 2, int8 3 of 3, nncf 1 of 2",
        "shrink beside all others, of 2 goals: ahead in 1, level in 1, behind in 0"
        " (int8: ahead in 1, level in 1, behind in 0;"
        " nncf: ahead in 2, level in 0, behind in 0)",
    ]
    better = replace(rows[1], val_accuracy=0.98)
    assert table([ROW, better, *rows[2:]]) == [
        "| pair | goal | seed | shrink | int8 | nncf | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| vit-digits | bytes 0.3x | 0 | **0.250, −1.0 (−1.0)** | **0.250, −1.0 (−1.0)**"
        " | **0.300, −1.0 (−1.0)** | 90 |",
        "| vit-digits | latency 0.5x | 0 | **0.500, −1.0 (−1.0)** | **0.700, +1.0 (−1.0)**"
        " | 0.500, −1.0 (−1.0) | 90 |",
        "| vit-digits | latency 0.5x | 1 | – | **0.500, −1.0 (−1.0)** | – | – |",
        "",
        *counted(rows),
    ]


def test_tuning_has_the_time_that_shrink_took() -> None:
    assert limit_seconds("shrink", [], 1800) == 1800
    assert limit_seconds("torch_pruning", [], 1800) == 1800
    assert limit_seconds("torch_pruning", [replace(ROW, way="int8")], 1800) == 1800
    assert limit_seconds("torch_pruning", [ROW], 1800) == 90
    assert limit_seconds("int8", [ROW], 1800) is None


def test_rows_there_and_back(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
    append(tmp_path / "rows.jsonl", ROW)
    append(tmp_path / "rows.jsonl", replace(ROW, seed=1))
    assert read(tmp_path / "rows.jsonl") == [ROW, replace(ROW, seed=1)]


def test_a_goal_that_is_not_measured_is_refused() -> None:
    assert wanted({"latency": "0.5x"})[0].times == 0.5
    with pytest.raises(ValueError, match="memory is not measured"):
        wanted({"memory": "0.5x"})
