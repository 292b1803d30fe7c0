"""Parts of the stored tables: Parquet files of up to some thousand trials each.

All parts of a table have the same columns, in the same order and of the same types, whatever their
trials recorded: see `unified`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.files import atomic_write
from analysis.metrics import Metrics
from analysis.tables.frames import ARROW, cast, group_order, known_type, table, unify
from analysis.tables.schema import READABLE, TABLES, Declared, dtypes_of, table_metadata

META_KEY = b"sweeps"
"""Key of a Parquet file's metadata that holds what `table_metadata` says."""

_LARGE_BYTES = 128 * 2**20
"""Up to this a table is read however well it is compressed."""
_MOST_TIMES_SMALLER = 100
"""A larger one is in memory at most so many times its file. Ours are some 10 times."""


@dataclass
class Part:
    """Rows of some trials; `files` are [size, mtime_ns] of its stored files where they hold
    just these rows.
    """

    tables: dict[str, pa.Table]
    files: list[list[int]] | None = None


def part_path(folder: Path, name: str, number: int) -> Path:
    """File of part `number` of table `name` under a run's folder of tables."""
    return folder / name / f"part-{number:05d}.parquet"


def read_part(paths: Sequence[Path]) -> Part | None:
    """A part from its files, one for each of `TABLES`; None where one cannot be read."""
    try:
        return Part(
            {name: read_file(path) for name, path in zip(TABLES, paths, strict=True)}
        )
    except (OSError, ValueError, pa.ArrowException):
        return None


def read_file(path: Path) -> pa.Table:
    """A table of ours. Raises ValueError where its columns are not."""
    # not by the dataset reader, which would take `a=b` in a path for a column
    with pq.ParquetFile(path) as file:
        footer = file.metadata
        texts = [f.name for f in file.schema_arrow if _holds_text(f.type)]
        names = Counter(file.schema_arrow.names)
    _refuse_large(footer, path)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise ValueError(f"columns that are there twice: {', '.join(twice)}")
    # texts as dictionaries: what is written a million times is held once until it is counted
    with pq.ParquetFile(path, metadata=footer, read_dictionary=texts) as file:
        data = file.read()
    _refuse_long_texts(data, path)
    short = [
        f.with_type(pa.string()) if _holds_text(f.type) else f for f in data.schema
    ]
    data = data.cast(pa.schema(short, data.schema.metadata))
    foreign = [f.name for f in data.schema if f.type not in ARROW.values()]
    if foreign or "trial_id" not in data.column_names or data["trial_id"].null_count:
        raise ValueError(
            f"columns that are not ours: {', '.join(foreign) or 'no trial_id'}"
        )
    return data


def _most_bytes(path: Path) -> int:
    """What a table may have in memory: more than any that is written here."""
    return max(_LARGE_BYTES, _MOST_TIMES_SMALLER * path.stat().st_size)


def _refuse_large(metadata: pq.FileMetaData, path: Path) -> None:
    """Raises ValueError where the footer tells of more than fits."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    cells = 8 * metadata.num_rows * metadata.num_columns
    if max(sum(g.total_byte_size for g in groups), cells) > _most_bytes(path):
        raise ValueError(
            f"{metadata.num_rows:,} rows of {metadata.num_columns} columns in"
            f" {path.stat().st_size:,} bytes are no table of a run"
        )


def _refuse_long_texts(data: pa.Table, path: Path) -> None:
    """Raises ValueError where texts that are stored once would fill the memory when repeated."""
    total = 0
    for column in data.columns:
        if pa.types.is_dictionary(column.type):
            for chunk in column.chunks:
                lengths = pc.binary_length(chunk.dictionary)
                total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    if total > _most_bytes(path):
        raise ValueError(
            f"{total:,} bytes of text in a file of {path.stat().st_size:,} bytes are no table of"
            " a run"
        )


def alike(tables: Sequence[pa.Table], name: str, declared: Declared) -> list[pa.Table]:
    """The tables with the same columns in the same order; columns that lack in one are null
    there.
    """
    first = declared.first(name)
    names = group_order(
        [*first, *(c for t in tables for c in t.column_names)], first, declared.metrics
    )
    known = {c: ARROW[t] for c, t in declared.always(name).items()}
    numbers = {c: ARROW[t] for c, t in declared.types(name, names).items()}
    if _alike_already(tables, names, numbers):
        return list(tables)
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
    for data in tables:
        for key in data.column_names:
            types[key] = unify(types[key], known_type(data[key]))
    final = {c: pa.string() if pa.types.is_null(t) else t for c, t in types.items()}
    final |= known
    # tables without their records may hold text where numbers are wanted: it stays text
    final |= {c: t for c, t in numbers.items() if c in known or not _is_text(final[c])}
    return [_as(data, final) for data in tables]


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype))


def _holds_text(dtype: pa.DataType) -> bool:
    """Whether values of this type are text, however it is stored."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _as(part: pa.Table, final: dict[str, pa.DataType]) -> pa.Table:
    """A part with just these columns and types."""
    if part.column_names == list(final) and part.schema.types == list(final.values()):
        return part
    known = set(part.column_names)
    return pa.table(
        {
            column: (
                cast(part[column], dtype)
                if column in known
                else pa.nulls(part.num_rows, dtype)
            )
            for column, dtype in final.items()
        }
    )


def _alike_already(
    tables: Sequence[pa.Table], names: list[str], fixed: dict[str, pa.DataType]
) -> bool:
    first = tables[0].schema
    return (
        all(part.schema.equals(first) for part in tables)
        and first.names == names
        and not any(
            pa.types.is_null(f.type) or fixed.get(f.name, f.type) != f.type
            for f in first
        )
    )


def unified(parts: Sequence[Part], declared: Declared) -> dict[str, list[pa.Table]]:
    """For each of `TABLES` its parts with the same columns: the fixed ones, then `config/`,
    `metric/`, `version/`.
    """
    made: dict[str, list[pa.Table]] = {}
    for name in TABLES:
        empty = table({}, 0, dtypes_of(name))
        tables = [part.tables.get(name, empty) for part in parts] or [empty]
        made[name] = alike(tables, name, declared)
    return made


def whole(parts: Sequence[pa.Table]) -> pa.Table:
    """The parts as one table in the order of trial ids; rows of a trial stay as they are."""
    data = pa.concat_tables(parts).combine_chunks()
    ids = data["trial_id"].combine_chunks().dictionary_encode()
    rank = np.empty(len(ids.dictionary), np.int64)
    rank[np.argsort(ids.dictionary.to_pylist(), kind="stable") if len(rank) else []] = (
        np.arange(len(rank))
    )
    order = rank[ids.indices.to_numpy(zero_copy_only=False)] if len(ids) else rank[:0]
    return (
        data
        if (np.diff(order) >= 0).all()
        else data.take(pa.array(np.argsort(order, kind="stable")))
    )


def described(
    data: pa.Table, name: str, metrics: Metrics, header: dict[str, Any]
) -> pa.Table:
    """`data` with its schema version, its columns' descriptions and units, and the run's
    header in its metadata.
    """
    meta = table_metadata(name, data.column_names, metrics, header)
    fields = [f.with_metadata(meta["columns"][f.name]) for f in data.schema]
    return data.cast(pa.schema(fields, {META_KEY: json.dumps(meta).encode()}))


def same_schema(a: pa.Schema, b: pa.Schema) -> bool:
    """Whether a stored table has the columns of a described one, and says the same of them."""
    return bool(
        a.equals(b) and (a.metadata or {}).get(META_KEY) == b.metadata[META_KEY]
    )


def write_table(path: Path, data: pa.Table) -> None:
    """Write one Parquet file atomically: one row group, zstd, text dictionary-encoded."""
    texts = [f.name for f in data.schema if pa.types.is_string(f.type)]
    options = {
        "compression": "zstd",
        "use_dictionary": texts,
        "row_group_size": max(1, data.num_rows),
    }
    atomic_write(path, partial(pq.write_table, data, **options))


def read_tables(
    folder: Path, problems: list[str]
) -> tuple[dict[str, Any] | None, list[Part]]:
    """The run's header and its rows from the Parquet tables alone; files that cannot be
    read are problems.
    """
    header: dict[str, Any] | None = None
    tables: dict[str, pa.Table] = {}
    for name in TABLES:
        single = folder / f"{name}.parquet"  # of schema 1
        paths = sorted((folder / name).glob("part-*.parquet"))
        found = []
        for path in paths or ([single] if single.is_file() else []):
            label = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            read = _read_described(path, name, label, problems)
            if read is not None:
                run = read[1].get("run")
                header = header or (run if isinstance(run, dict) else None)
                found.append(read[0])
        if found:
            tables[name] = pa.concat_tables(alike(found, name, Declared()))
    return header, [Part(tables)]


def _read_described(
    path: Path, name: str, label: str, problems: list[str]
) -> tuple[pa.Table, dict[str, Any]] | None:
    """A table and what it says of itself, or None and a problem."""
    try:
        data = read_file(path)
        meta = json.loads((data.schema.metadata or {}).get(META_KEY, b"null"))
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problems.append(f"{label}: cannot be read ({reason})")
        return None
    ours = isinstance(meta, dict) and meta.get("table") == name
    if not ours or meta.get("schema") not in READABLE:
        known = " or ".join(map(str, READABLE))
        problems.append(
            f"{label}: not this project's table, or of another schema than {known}"
        )
        return None
    return data, meta
