"""SQL over a run's tables, by DuckDB: an optional extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
    Columns with a slash are quoted: `select trial_id, "metric/accuracy" from trials`.

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
            result = connection.execute(sql)
            return result.df() if result.description else pd.DataFrame()
        except duckdb.Error as error:
            raise ValueError(f"query: {error}") from None
