"""Queries over tables: short names, what is refused, and no word of a library's own."""

import warnings

import pyarrow as pa
import pytest

from analysis.queries import select

pytest.importorskip("duckdb")

TABLES = {
    "trials": pa.table(
        {
            "trial_id": ["00000", "00001"],
            "config/finetune.lr": [0.1, 0.2],
            "config/teacher.lr": [0.3, 0.4],
            "config/finetune.epochs": [1, 2],
            "config/teacher.epochs": [1, 2],
            "metric/accuracy": [0.5, 0.6],
        }
    ),
    "epochs": pa.table({"trial_id": ["00000"], "lr": [0.1]}),
}


def refusal(sql: str) -> str:
    with pytest.raises(ValueError, match=r"^query: ") as caught:
        select(TABLES, sql)
    return str(caught.value)


def test_a_wide_result_comes_without_a_warning() -> None:
    kinds = ([0.5, None], [1, 2], [True, False], ["a", None])
    columns = {f"c{number}": pa.array(kinds[number % 4]) for number in range(248)}
    # DuckDB adds a time as a column by itself, and pandas warns from 100 pieces on
    zoned = pa.array([0, 1], pa.timestamp("us", tz="UTC"))
    wide = pa.table({**columns, "started": zoned, "ended": zoned})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = select({"trials": wide}, "select * from trials")
        found["more"] = 1  # in one piece, so that a column may be added
    assert found.shape == (2, 251)


@pytest.mark.parametrize("sql", ["", "  ", ";", "/* nothing */", "-- nothing"])
def test_a_query_that_says_nothing_is_refused_in_one_line(sql: str) -> None:
    assert refusal(sql).startswith("query: the SQL says nothing; for example: select")
    assert "\n" not in refusal(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select accuracy, lr from trials",
        "select accuracy, lr",
        "select accuracy from trials t where t.lr > 0 and trial_id != 'epochs'",
    ],
)
def test_of_short_names_the_ambiguous_one_is_named(sql: str) -> None:
    first, second, *_ = refusal(sql).splitlines()
    assert first.endswith(
        ': lr may be "finetune.lr" or "teacher.lr"; write one of them, in quotes'
    )
    assert '"lr"' in second
    assert '"accuracy"' not in second
    assert select(TABLES, 'select accuracy, "teacher.lr" from trials').shape == (2, 2)


def test_a_name_is_not_called_ambiguous_where_it_is_not() -> None:
    of_text = "select nothing from trials where trial_id = 'lr'"
    elsewhere = "select nothing from epochs where lr > 0"
    of_a_table = "select nothing from trials join epochs using (trial_id)"
    for sql in (of_text, elsewhere, of_a_table):
        assert "may be" not in refusal(sql)
        assert '"nothing"' in refusal(sql)
