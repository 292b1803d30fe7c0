"""The Parquet tables of a run, brought up to date without reading again what they hold already.

    parquet/<table>/part-00000.parquet   up to `TRIALS_PER_PART` trials each, in order of
                                         arrival; one row group
    parquet/fronts/part-00000.parquet    derived, rewritten whole
    parquet/manifest.json                which part holds which trial, and the trial's files
                                         as they were when read

All parts of a table have the same columns. A part is believed only while its files are
those that the manifest names, and a trial only while its own files are; the manifest is
written last. So a killed or a concurrent writer costs a second reading at worst. A running
trial is always read again.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.tables.frames import (
    ARROW,
    all_fit,
    cast,
    clean_text,
    columns,
    group_order,
    known_type,
    table,
    unify,
)
from analysis.tables.read import Signature, TrialRows, read_trial, scan
from analysis.tables.schema import (
    FIXED,
    READABLE,
    TABLE_SCHEMA,
    TABLES,
    dtypes_of,
    table_metadata,
)

TRIALS_PER_PART = 1000
META_KEY = b"sweeps"
_NO_PART = -1


@dataclass
class Entry:
    """What the manifest knows of a trial's folder; `part` is -1 where it gave no rows."""

    part: int
    signature: Signature
    running: bool
    problems: list[str]


@dataclass
class Part:
    """Rows of some trials; `files` are [size, mtime_ns] of its stored files where they hold
    just these rows.
    """

    tables: dict[str, pa.Table]
    files: list[list[int]] | None = None


@dataclass
class Store:
    """All rows of a run, in parts, and where each trial's rows came from."""

    parts: list[Part] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)


def part_path(folder: Path, name: str, number: int) -> Path:
    """File of part `number` of table `name` under a run's parquet folder."""
    return folder / name / f"part-{number:05d}.parquet"


def atomic_write(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`, so that readers see
    the old or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, written whole or not at all."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def collect(run: Path, objectives: Sequence[str], problems: list[str]) -> Store:
    """The rows of all trials of `run`: those that the stored tables still hold, and the
    others from their records.
    """
    found = scan(run / "trials", problems)
    store, kept = _stored(run / "parquet", objectives, found)
    fresh = [name for name in found if name not in kept]
    counts = [0] * len(store.parts)
    for name in kept:
        if (part := store.entries[name].part) != _NO_PART:
            counts[part] += 1
    places: dict[int, list[str]] = {}
    for name in fresh:
        place = next(
            (
                i
                for i in range(max(0, len(counts) - 1), len(counts))
                if counts[i] < TRIALS_PER_PART
            ),
            len(counts),
        )
        if place == len(counts):
            counts.append(0)
            store.parts.append(Part({}))
        counts[place] += 1
        places.setdefault(place, []).append(name)
    for place, names in places.items():
        _add(
            store,
            place,
            run / "trials",
            {name: found[name] for name in names},
            set(objectives),
        )
    for name in found:
        problems += store.entries[name].problems
    return store


def _add(
    store: Store,
    place: int,
    folder: Path,
    trials: dict[str, Signature],
    objectives: set[str],
) -> None:
    """Read trials into part `place`."""
    collecting = gc.isenabled()
    # rows have no cycles, and looking for some among millions of them takes a third of the
    # time
    gc.disable()
    try:
        found = [
            read_trial(folder / name, signature, objectives)
            for name, signature in trials.items()
        ]
        new = {name: _to_table(found, name) for name in TABLES}
        for trial in found:
            running = any(row["status"] == "running" for row in trial.rows["trials"])
            problems = [clean_text(problem) for problem in trial.problems]
            part = place if trial.rows["trials"] else _NO_PART
            store.entries[trial.name] = Entry(
                part, trials[trial.name], running, problems
            )
    finally:
        if collecting:
            gc.enable()
    held = store.parts[place]
    if held.tables and not new["trials"].num_rows:
        return
    if held.tables:
        new = {
            name: pa.concat_tables(_alike([held.tables[name], new[name]], name, (), ()))
            for name in TABLES
        }
    store.parts[place] = Part(new)


def _to_table(trials: Sequence[TrialRows], name: str) -> pa.Table:
    values, dtypes = (
        columns([row for trial in trials for row in trial.rows[name]]),
        dtypes_of(name),
    )
    if name in ("epochs", "layers") and not all(
        all_fit(values[k], t) for k, t in dtypes.items() if k in values
    ):
        for trial in trials:
            trial.mend(name)
        values = columns([row for trial in trials for row in trial.rows[name]])
    return table(values, sum(len(trial.rows[name]) for trial in trials), dtypes)


def _stored(
    folder: Path, objectives: Sequence[str], found: dict[str, Signature]
) -> tuple[Store, set[str]]:
    """The stored parts less the trials that have changed or gone, and the names of those
    that have not.
    """
    manifest = _read_manifest(folder / "manifest.json", list(objectives))
    if manifest is None:
        return Store(), set()
    files, entries = manifest
    parts: list[Part | None] = []
    for number, known in enumerate(files):
        paths = [part_path(folder, name, number) for name in TABLES]
        parts.append(
            _read_part(paths) if [_stat(path) for path in paths] == known else None
        )
    kept = {
        name
        for name, entry in entries.items()
        if found.get(name) == entry.signature
        and not entry.running
        and (entry.part == _NO_PART or parts[entry.part] is not None)
    }
    whole: list[Part] = []
    members: dict[int, list[str]] = {}
    for name in kept:
        members.setdefault(entries[name].part, []).append(name)
    for number, part in enumerate(parts):
        names = members.get(number, [])
        if part is None:
            whole.append(Part({}))
        elif len(names) == part.tables["trials"].num_rows:
            whole.append(Part(part.tables, files[number]))
        else:
            wanted = pa.array(names, pa.string())
            whole.append(
                Part(
                    {
                        k: t.filter(pc.is_in(t["trial_id"], value_set=wanted))
                        for k, t in part.tables.items()
                    }
                )
            )
    return Store(whole, {name: entries[name] for name in kept}), kept


def _stat(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_part(paths: Sequence[Path]) -> Part | None:
    try:
        return Part(
            {name: _read_file(path) for name, path in zip(TABLES, paths, strict=True)}
        )
    except (OSError, ValueError, pa.ArrowException):
        return None


def _read_file(path: Path) -> pa.Table:
    """A table of ours. Raises ValueError where its columns are not."""
    # not by the dataset reader, which would take `a=b` in a path for a column
    with pq.ParquetFile(path) as file:
        data = file.read()
    short = [
        f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f
        for f in data.schema
    ]
    data = data.cast(pa.schema(short, data.schema.metadata))
    foreign = [f.name for f in data.schema if f.type not in ARROW.values()]
    if foreign or "trial_id" not in data.column_names or data["trial_id"].null_count:
        raise ValueError(
            f"columns that are not ours: {', '.join(foreign) or 'no trial_id'}"
        )
    return data


def _read_manifest(
    path: Path, objectives: list[str]
) -> tuple[list[list[list[int]]], dict[str, Entry]] | None:
    """Files of each part and entries by trial; None where there is none, or of other
    objectives or another version.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["schema"] != TABLE_SCHEMA or data["objectives"] != objectives:
            return None
        files = [
            [[int(size), int(time)] for size, time in part] for part in data["parts"]
        ]
        entries = {
            name: Entry(int(p), s, bool(r), [str(t) for t in texts])
            for name, (p, s, r, texts) in data["trials"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (
        None
        if any(not _NO_PART <= e.part < len(files) for e in entries.values())
        else (files, entries)
    )


def _alike(
    tables: Sequence[pa.Table],
    name: str,
    objectives: Sequence[str],
    params: Sequence[str],
) -> list[pa.Table]:
    """The tables with the same columns in the same order; columns that lack in one are null
    there.
    """
    wanted = [f"config/{p}" for p in params] + [f"metric/{o}" for o in objectives]
    names = group_order(
        [*FIXED[name], *wanted, *(c for t in tables for c in t.column_names)],
        [*FIXED[name], *wanted],
    )
    fixed = {column: ARROW[dtype] for column, dtype in dtypes_of(name).items()}
    fixed |= dict.fromkeys((f"metric/{o}" for o in objectives), pa.float64())
    if _alike_already(tables, names, fixed):
        return list(tables)
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
    for part in tables:
        for key in part.column_names:
            types[key] = unify(types[key], known_type(part[key]))
    final = {
        c: pa.string() if pa.types.is_null(dtype) else dtype
        for c, dtype in (types | fixed).items()
    }
    return [_as(part, final) for part in tables]


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


def unified(
    store: Store, objectives: Sequence[str], params: Sequence[str]
) -> dict[str, list[pa.Table]]:
    """For each of `TABLES` its parts with the same columns: the fixed ones, then `config/`,
    `metric/`, `version/`.
    """
    made: dict[str, list[pa.Table]] = {}
    for name in TABLES:
        own = (objectives, params) if name == "trials" else ((), ())
        empty = table({}, 0, dtypes_of(name))
        made[name] = _alike(
            [part.tables.get(name, empty) for part in store.parts] or [empty],
            name,
            *own,
        )
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


def write(
    run: Path,
    store: Store,
    made: dict[str, list[pa.Table]],
    objectives: Sequence[str],
    header: dict[str, Any],
) -> None:
    """Write the parts that are new or have changed, then the manifest; remove what no part
    needs.
    """
    folder = run / "parquet"
    files: list[list[list[int]]] = []
    for number in range(len(made["trials"])):
        part = store.parts[number] if number < len(store.parts) else Part({})
        done = []
        for name in TABLES:
            path, data = (
                part_path(folder, name, number),
                described(made[name][number], name, header),
            )
            if part.files is None or not _same(part.tables[name].schema, data.schema):
                write_table(path, data)
            done.append(_stat(path) or [0, 0])
        files.append(done)
    entries = {
        n: [e.part, e.signature, e.running, e.problems]
        for n, e in sorted(store.entries.items())
    }
    manifest = {
        "schema": TABLE_SCHEMA,
        "objectives": list(objectives),
        "parts": files,
        "trials": entries,
    }
    text = json.dumps(manifest, separators=(",", ":")).encode("utf-8")
    atomic_write(folder / "manifest.json", lambda file: file.write(text))
    for name in TABLES:
        kept = {part_path(folder, name, number) for number in range(len(files))}
        for path in (folder / name).glob("part-*.parquet"):
            if path not in kept:
                path.unlink()
        (folder / f"{name}.parquet").unlink(missing_ok=True)  # of schema 1


def _same(a: pa.Schema, b: pa.Schema) -> bool:
    return bool(
        a.equals(b) and (a.metadata or {}).get(META_KEY) == b.metadata[META_KEY]
    )


def described(data: pa.Table, name: str, header: dict[str, Any]) -> pa.Table:
    """`data` with its schema version, its columns' descriptions and units, and the run's
    header in its metadata.
    """
    meta = table_metadata(name, data.column_names, header)
    fields = [f.with_metadata(meta["columns"][f.name]) for f in data.schema]
    return data.cast(pa.schema(fields, {META_KEY: json.dumps(meta).encode()}))


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
) -> tuple[dict[str, Any] | None, Store]:
    """The run's header and its rows from the Parquet tables alone; files that cannot be
    read are problems.
    """
    header: dict[str, Any] | None = None
    found: dict[str, list[pa.Table]] = {}
    for name in TABLES:
        single = folder / f"{name}.parquet"
        paths = sorted((folder / name).glob("part-*.parquet")) or (
            [single] if single.is_file() else []
        )
        for path in paths:
            label = f"parquet/{path.relative_to(folder).as_posix()}"
            try:
                data = _read_file(path)
                meta = json.loads((data.schema.metadata or {}).get(META_KEY, b"null"))
            except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
                problems.append(
                    f"{label}: cannot be read ({str(error).splitlines()[0]})"
                )
                continue
            if (
                not isinstance(meta, dict)
                or meta.get("schema") not in READABLE
                or meta.get("table") != name
            ):
                known = " or ".join(map(str, READABLE))
                problems.append(
                    f"{label}: not this project's table, or of another schema than"
                    f" {known}"
                )
                continue
            header = header or (
                meta.get("run") if isinstance(meta.get("run"), dict) else None
            )
            found.setdefault(name, []).append(data)
    tables = {
        name: pa.concat_tables(_alike(parts, name, (), ()))
        for name, parts in found.items()
    }
    return header, Store([Part(tables)])
