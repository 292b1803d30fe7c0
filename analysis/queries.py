"""SQL over a run's tables, by DuckDB: an optional extra."""

from __future__ import annotations

import re
import warnings
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

_MOST_MEANT = 5
"""Columns that a message names, of those that a short name may stand for."""


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
        ValueError: a query that says nothing or that DuckDB refuses (with its message, and the
            columns that a short name could mean), or DuckDB is not installed.
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
        except duckdb.BinderException:
            pass  # some name is not known: is it a short one?
        except duckdb.Error as error:
            raise ValueError(f"query: {error}") from None
        for name, table in tables.items():
            connection.register(name, _with_short_names(table, sql))
        try:
            return _frame(connection.execute(_with_table(sql)))
        except duckdb.Error as error:
            raise ValueError(f"query: {_ambiguous(tables, sql)}{error}") from None


def _frame(result: Any) -> pd.DataFrame:
    """The rows of what DuckDB executed, which gives nothing at all for a query without words.

    Raises:
        ValueError: there was nothing to execute.
    """
    if result is None:
        raise ValueError(
            "query: the SQL says nothing; for example: select trial_id, status from trials"
        )
    if not result.description:
        return pd.DataFrame()
    with warnings.catch_warnings():
        # DuckDB adds one column after the other; the copy puts them together
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        return result.df().copy()


def _with_short_names(table: pa.Table, sql: str) -> pa.Table:
    """`table` with its columns that `sql` calls by a short name under that name too.

    `metric/accuracy` is accuracy, and `config/finetune.lr` is finetune.lr or lr, in any case of
    letters. A metric comes before a parameter; a last part that several columns have means none.
    """
    names = table.column_names
    taken = {name.lower() for name in names}
    for word in _words(sql):
        meant = _meant(word.lower(), names)
        if len(meant) == 1 and word.lower() not in taken:
            taken.add(word.lower())
            table = table.append_column(word, table[meant[0]])
    return table


def _words(sql: str) -> list[str]:
    """What may be a name in a query: its words, and what stands in double quotes."""
    return sorted({*re.findall(r'"([^"]+)"', sql), *re.findall(r"\w+", sql)})


def _meant(word: str, names: list[str]) -> list[str]:
    """The columns that a short name in small letters may stand for."""
    for prefix in ("metric/", "config/", "sd/", "version/"):
        for name in names:
            if name.lower() == prefix + word:
                return [name]
    return [
        n for n in names if n.startswith("config/") and n.lower().endswith(f".{word}")
    ]


def _ambiguous(tables: Mapping[str, pa.Table], sql: str) -> str:
    """A line for each short name in a refused query that several parameters end with."""
    words = _words(re.sub("'[^']*'", "", _with_table(sql)))  # without what is text
    used = [tables[word.lower()] for word in words if word.lower() in tables]
    names = list(dict.fromkeys(name for table in used for name in table.column_names))
    known = {name.lower() for name in (*tables, *names)}
    lines = ""
    for word in words:
        meant = [name.removeprefix("config/") for name in _meant(word.lower(), names)]
        if len(meant) > 1 and word.lower() not in known:
            shown = " or ".join(f'"{name}"' for name in meant[:_MOST_MEANT])
            more = ", …" if len(meant) > _MOST_MEANT else ""
            lines += f"{word} may be {shown}{more}; write one of them, in quotes\n"
    return lines


def _with_table(sql: str) -> str:
    """`sql` over the trials where it names no table."""
    is_bare = re.match(r"\s*select\b", sql, re.I) and not re.search(
        r"\bfrom\b", sql, re.I
    )
    return f"from trials {sql}" if is_bare else sql
