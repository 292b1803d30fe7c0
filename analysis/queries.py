"""SQL over a run's tables, by DuckDB: an optional extra."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.files import atomic_write
from analysis.fronts import fronts_table
from analysis.loading import loaded
from analysis.run import Run
from analysis.tables.schema import TABLES

_LOCKED = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET temp_directory = ''",  # nothing spilled to disk
    # no file, no network, no extension; may not be eased after
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",  # no variable of this process
    "SET lock_configuration = true",
)


def query(path: str | Path | Run, sql: str) -> pd.DataFrame:
    """The result of a SQL query over the tables trials, epochs, stages, layers, classes and
    fronts of a run folder or a loaded run.

    Writes nothing; tables that are behind are read from the records (see `analysis.load`).
    Columns with a slash are quoted: `select trial_id, "metric/accuracy" from trials`; their last
    part will do where no other column has that name, and `select accuracy` is over the trials.

    Raises:
        ValueError: not a run folder; see `select`.
    """
    run = loaded(path)
    tables = {
        name: pa.Table.from_pandas(getattr(run, name), preserve_index=False)
        for name in TABLES
    }
    return select(
        tables | {"fronts": fronts_table(run.configurations(), run.objectives)}, sql
    )


def write_rows(rows: pd.DataFrame, out: Path) -> None:
    """A query's result as a Parquet file, written whole or not at all. Raises OSError."""
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(
        None
    )
    atomic_write(out, lambda file: pq.write_table(table, file, compression="zstd"))


def select(tables: Mapping[str, pa.Table], sql: str) -> pd.DataFrame:
    """The result of a SQL query that can read these tables and nothing else: no file, no network.

    Raises:
        ValueError: a query that DuckDB refuses (with its message), or DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise ValueError(
            "sweeps query needs DuckDB; install it: pip install"
            " 'compression-sweeps[analysis]'"
        ) from None
    with duckdb.connect(":memory:") as connection:
        for name, table in tables.items():
            connection.register(name, table)
        for setting in _LOCKED:
            connection.execute(setting)
        try:
            return _frame(connection.execute(sql))
        except duckdb.BinderException as error:
            refusal: duckdb.Error = error  # some name is not known: is it a short one?
        except duckdb.Error as error:
            raise ValueError(f"query: {error}") from None
        for name, table in tables.items():
            connection.register(name, _with_short_names(table, sql))
        try:
            return _frame(connection.execute(_with_table(sql)))
        except duckdb.Error:
            raise ValueError(f"query: {refusal}") from None


def _frame(result: Any) -> pd.DataFrame:
    return result.df() if result.description else pd.DataFrame()


def _with_short_names(table: pa.Table, sql: str) -> pa.Table:
    """`table` with its columns that `sql` calls by a short name under that name too.

    `metric/accuracy` is accuracy, and `config/finetune.lr` is finetune.lr or lr, in any case of
    letters. A metric comes before a parameter; a last part that several columns have means none.
    """
    words = set(re.findall(r'"([^"]+)"', sql)) | set(re.findall(r"\w+", sql))
    names = table.column_names
    taken = {name.lower() for name in names}
    for word in sorted(words):
        meant = _meant(word.lower(), names)
        if meant is not None and word.lower() not in taken:
            taken.add(word.lower())
            table = table.append_column(word, table[meant])
    return table


def _meant(word: str, names: list[str]) -> str | None:
    """The column that a short name in small letters stands for."""
    for prefix in ("metric/", "config/", "sd/", "version/"):
        for name in names:
            if name.lower() == prefix + word:
                return name
    parts = [
        n for n in names if n.startswith("config/") and n.lower().endswith(f".{word}")
    ]
    return parts[0] if len(parts) == 1 else None


def _with_table(sql: str) -> str:
    """`sql` over the trials where it names no table."""
    is_bare = re.match(r"\s*select\b", sql, re.I) and not re.search(
        r"\bfrom\b", sql, re.I
    )
    return f"from trials {sql}" if is_bare else sql
