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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.contract import TABLES_FOLDER, TRIALS_FOLDER
from analysis.files import inside, write_bytes
from analysis.metrics import Metrics
from analysis.tables.frames import all_fit, columns, table
from analysis.tables.json_files import file_bytes
from analysis.tables.parts import (
    Part,
    alike,
    described,
    part_path,
    read_part,
    same_schema,
    write_table,
)
from analysis.tables.read import RAW_TABLES, Signature, TrialRows, read_trial, scan
from analysis.tables.schema import TABLE_SCHEMA, TABLES, Declared
from analysis.text import clean_text

TRIALS_PER_PART = 1000
MANIFEST = "manifest.json"
_NO_PART = -1


@dataclass
class Entry:
    """What the manifest knows of a trial's folder; `part` is -1 where it gave no rows."""

    part: int
    signature: Signature
    running: bool
    problems: list[str]


@dataclass
class Store:
    """All rows of a run, in parts, and where each trial's rows came from."""

    parts: list[Part] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)


def collect(
    run: Path, declared: Declared, problems: list[str], earlier: Store | None = None
) -> Store:
    """The rows of all trials of `run`: those that the stored tables still hold (or `earlier`, what
    this gave before, for the same `declared`), and the others from their files.
    """
    trials = run / TRIALS_FOLDER
    found = scan(trials, problems)
    if earlier is None:
        store, kept = _stored(run / TABLES_FOLDER, declared, found)
    else:
        store, kept = _unchanged(earlier, found)
    fresh = [name for name in found if name not in kept]
    for number, names in _room(store, kept, fresh).items():
        signatures = {name: found[name] for name in names}
        _add(store, number, trials, signatures, declared)
    for name in found:
        problems += store.entries[name].problems
    return store


def _unchanged(earlier: Store, found: dict[str, Signature]) -> tuple[Store, set[str]]:
    """What an earlier reading still holds, and the names of these trials."""
    entries = {
        name: entry
        for name, entry in earlier.entries.items()
        if found.get(name) == entry.signature and not entry.running
    }
    members: dict[int, list[str]] = {}
    for name, entry in entries.items():
        members.setdefault(entry.part, []).append(name)
    parts = [
        _only(part if part.tables else None, members.get(number, []), part.files)
        for number, part in enumerate(earlier.parts)
    ]
    return Store(parts, entries), set(entries)


def _room(store: Store, kept: set[str], fresh: Sequence[str]) -> dict[int, list[str]]:
    """Part → the fresh trials that it takes: the last part until it is full, then new ones."""
    counts = [0] * len(store.parts)
    for name in kept:
        if (part := store.entries[name].part) != _NO_PART:
            counts[part] += 1
    chosen: dict[int, list[str]] = {}
    for name in fresh:
        if not counts or counts[-1] >= TRIALS_PER_PART:
            counts.append(0)
            store.parts.append(Part({}))
        counts[-1] += 1
        chosen.setdefault(len(counts) - 1, []).append(name)
    return chosen


def _add(
    store: Store,
    number: int,
    folder: Path,
    trials: dict[str, Signature],
    declared: Declared,
) -> None:
    """Read trials into part `number`."""
    collecting = gc.isenabled()
    # rows have no cycles, and looking for some among millions of them takes a third of the
    # time
    gc.disable()
    try:
        found = [
            read_trial(folder / name, signature, declared)
            for name, signature in trials.items()
        ]
        new = {name: _to_table(found, name, declared) for name in TABLES}
    finally:
        if collecting:
            gc.enable()
    for trial in found:
        rows = trial.rows["trials"]
        store.entries[trial.name] = Entry(
            part=number if rows else _NO_PART,
            signature=trials[trial.name],
            running=any(row["status"] == "running" for row in rows),
            problems=[clean_text(problem) for problem in trial.problems],
        )
    held = store.parts[number].tables
    if held and not new["trials"].num_rows:
        return
    if held:
        new = {
            name: pa.concat_tables(alike([held[name], new[name]], name, Declared()))
            for name in TABLES
        }
    store.parts[number] = Part(new)


def _to_table(trials: Sequence[TrialRows], name: str, declared: Declared) -> pa.Table:
    values = columns([row for trial in trials for row in trial.rows[name]])
    dtypes = declared.types(name, values)
    if name in RAW_TABLES and not all(
        all_fit(values[k], t) for k, t in dtypes.items() if k in values
    ):
        for trial in trials:
            trial.mend(name, {k: t for k, t in dtypes.items() if k in values})
        values = columns([row for trial in trials for row in trial.rows[name]])
    return table(values, sum(len(trial.rows[name]) for trial in trials), dtypes)


def _stored(
    folder: Path, declared: Declared, found: dict[str, Signature]
) -> tuple[Store, set[str]]:
    """The stored parts less the trials that have changed or gone, and the names of those
    that have not.
    """
    manifest = _read_manifest(folder / MANIFEST, declared)
    if manifest is None:
        return Store(), set()
    files, entries = manifest
    parts: list[Part | None] = []
    for number, known in enumerate(files):
        paths = [part_path(folder, name, number) for name in TABLES]
        unchanged = [_stat(path) for path in paths] == known
        parts.append(read_part(paths) if unchanged else None)
    kept = {
        name
        for name, entry in entries.items()
        if found.get(name) == entry.signature
        and not entry.running
        and (entry.part == _NO_PART or parts[entry.part] is not None)
    }
    members: dict[int, list[str]] = {}
    for name in kept:
        members.setdefault(entries[name].part, []).append(name)
    whole = [
        _only(part, members.get(number, []), files[number])
        for number, part in enumerate(parts)
    ]
    return Store(whole, {name: entries[name] for name in kept}), kept


def _only(part: Part | None, names: list[str], files: list[list[int]] | None) -> Part:
    """What a stored part holds of these trials; the part as it is where it holds no others."""
    if part is None:
        return Part({})
    if len(names) == part.tables["trials"].num_rows:
        return Part(part.tables, files)
    wanted = pa.array(names, pa.string())
    return Part(
        {
            name: data.filter(pc.is_in(data["trial_id"], value_set=wanted))
            for name, data in part.tables.items()
        }
    )


def _stat(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_manifest(
    path: Path, declared: Declared
) -> tuple[list[list[list[int]]], dict[str, Entry]] | None:
    """Files of each part and entries by trial; None where there is none, or it was written for
    other objectives, other metrics or another version.
    """
    try:
        data = json.loads(file_bytes(path))
        known = [data[key] for key in ("schema", "objectives", "metrics")]
        files = [
            [[int(size), int(time)] for size, time in part] for part in data["parts"]
        ]
        entries = {
            name: Entry(int(p), s, bool(r), [str(t) for t in texts])
            for name, (p, s, r, texts) in data["trials"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    wrong = any(not _NO_PART <= e.part < len(files) for e in entries.values())
    wanted = [TABLE_SCHEMA, list(declared.objectives), list(declared.metrics)]
    return None if wrong or known != wanted else (files, entries)


def write(
    run: Path,
    store: Store,
    made: dict[str, list[pa.Table]],
    declared: Declared,
    metrics: Metrics,
    header: dict[str, Any],
) -> None:
    """Write the parts that are new or have changed, then the manifest; remove what no part
    needs.

    Raises:
        OSError: a file cannot be written.
        ValueError: the folder of a table is a link that leads out of the run folder.
    """
    folder = run / TABLES_FOLDER
    for name in (*TABLES, "fronts"):
        inside(run, folder / name)
    before = _count_of_parts(folder / MANIFEST)
    files: list[list[list[int]]] = []
    for number in range(len(made["trials"])):
        part = store.parts[number] if number < len(store.parts) else Part({})
        files.append([])
        for name in TABLES:
            path = part_path(folder, name, number)
            data = described(made[name][number], name, metrics, header)
            stored = part.files is not None and same_schema(
                part.tables[name].schema, data.schema
            )
            if not stored:
                write_table(path, data)
            files[-1].append(_stat(path) or [0, 0])
    manifest = {
        "schema": TABLE_SCHEMA,
        "objectives": list(declared.objectives),
        "metrics": list(declared.metrics),
        "parts": files,
        "trials": {
            name: [e.part, e.signature, e.running, e.problems]
            for name, e in sorted(store.entries.items())
        },
    }
    text = json.dumps(manifest, separators=(",", ":")).encode("utf-8")
    write_bytes(folder / MANIFEST, text)
    _remove_parts(folder, range(len(files), before))


def _count_of_parts(manifest: Path) -> int:
    """The parts that the manifest lists, whatever version wrote it; 0 without one."""
    try:
        return len(json.loads(file_bytes(manifest))["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def _remove_parts(folder: Path, numbers: range) -> None:
    """Remove the files of these parts, and the tables of schema 1."""
    for name in TABLES:
        for number in numbers:
            part_path(folder, name, number).unlink(missing_ok=True)
        (folder / f"{name}.parquet").unlink(missing_ok=True)
