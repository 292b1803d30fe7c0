"""A trial's folder to rows of the tables. Nothing in it is trusted: what is malformed is
named, and the rest is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from analysis.contract import (
    CLASSES_FILE,
    EPOCHS_FILE,
    LATENCY_FILE,
    LAYERS_FILE,
    PLAN_FILE,
    RECORD_FILE,
)
from analysis.tables import json_files
from analysis.tables.json_files import Row, read_json, trial_label
from analysis.tables.records import facts_of, measured_again, stage_rows, trial_row
from analysis.tables.schema import TABLES, Declared
from analysis.text import clean_text

Signature = list[list[int] | None]
"""Of each of `FILES`: [modification time in ns, size in bytes], None where it is missing."""

FILES = (
    PLAN_FILE,
    RECORD_FILE,
    EPOCHS_FILE,
    LAYERS_FILE,
    CLASSES_FILE,
    LATENCY_FILE,
)
RAW_TABLES = {
    "epochs": f"{EPOCHS_FILE} line",
    "layers": f"{LAYERS_FILE}: layer",
    "classes": f"{CLASSES_FILE}: class",
}
"""Tables whose rows are taken from a file as they are → how a row of that file is named."""

_MAX_LINES_NAMED = 5


def scan(folder: Path, problems: list[str]) -> dict[str, Signature]:
    """Trial folders under `folder` by name, in order, with the signatures of their files;
    others are problems.
    """
    found: dict[str, Signature] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        label = trial_label(entry.name)
        if not entry.is_dir():
            problems.append(f"{label}: not a trial's folder")
            continue
        signature = signature_of(entry.path)
        if signature[0] is None and signature[1] is None:
            problems.append(f"{label}: neither {PLAN_FILE} nor {RECORD_FILE}")
        else:
            found[entry.name] = signature
    return found


def signature_of(folder: str | Path) -> Signature:
    """The signatures of the files of one trial's folder."""
    return [_signature(f"{folder}/{name}") for name in FILES]


def _signature(path: str) -> list[int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (30,000 of them: a Path each doubles the time)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_mtime_ns, status.st_size]


@dataclass
class TrialRows:
    """Rows of one trial by table.

    Values in typed columns of `RAW_TABLES` may not fit yet: see `mend`. `lines` are the line
    numbers of the epochs.
    """

    name: str
    rows: dict[str, list[Row]]
    problems: list[str]
    lines: Sequence[int] = field(default=())

    def mend(self, table: str, dtypes: dict[str, str]) -> None:
        """Replace values that do not fit their column by None, and name them as problems."""
        numbers = self.lines if table == "epochs" else count()
        for number, row in zip(numbers, self.rows[table], strict=False):
            place = f"{RAW_TABLES[table]} {number}"
            label = f"{trial_label(self.name)}/{place}"
            for column, dtype in dtypes.items():
                row[column] = json_files.field(row, column, dtype, label, self.problems)


def read_trial(folder: Path, signature: Signature, declared: Declared) -> TrialRows:
    """Rows of each of `TABLES` from one trial's folder, and what is wrong with it; no rows
    where it has neither a plan nor a record.
    """
    problems: list[str] = []
    label = trial_label(folder.name)
    found = TrialRows(folder.name, {name: [] for name in TABLES}, problems)
    there = {file: s is not None for file, s in zip(FILES, signature, strict=True)}
    plan, record = (
        read_json(folder / name, f"{label}/{name}", problems) if there[name] else None
        for name in (PLAN_FILE, RECORD_FILE)
    )
    facts = facts_of(folder.name, label, plan, record, problems)
    if facts is None:
        return found
    rows = found.rows
    rows["trials"] = [trial_row(facts, set(declared.objectives), problems)]
    if there[LATENCY_FILE]:
        latency_label = f"{label}/{LATENCY_FILE}"
        again = read_json(folder / LATENCY_FILE, latency_label, problems)
        rows["trials"][0] |= measured_again(
            rows["trials"][0], again, latency_label, problems
        )
    rows["stages"] = stage_rows(facts, problems)
    if there[EPOCHS_FILE]:
        rows["epochs"], found.lines = _epoch_rows(
            folder / EPOCHS_FILE, f"{label}/{EPOCHS_FILE}", problems
        )
    for table, file in (("layers", LAYERS_FILE), ("classes", CLASSES_FILE)):
        if there[file]:
            rows[table] = _listed_rows(
                folder / file, table, f"{label}/{file}", problems
            )
    for index, layer in enumerate(rows["layers"]):
        layer["index"] = index
    for row in chain.from_iterable(rows[table] for table in RAW_TABLES):
        row["trial_id"] = found.name
    return found


def _listed_rows(path: Path, key: str, label: str, problems: list[str]) -> list[Row]:
    """The rows that a JSON file lists under `key`."""
    data = read_json(path, label, problems)
    if data is None:
        return []
    rows = data.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        problems.append(f"{label}: {key} must be a list of JSON objects")
        return []
    return _clean_names(rows)


def _epoch_rows(
    path: Path, label: str, problems: list[str]
) -> tuple[list[Row], Sequence[int]]:
    """Rows and the number of each one's line."""
    try:
        lines = json_files.file_bytes(path).splitlines()
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
        return [], ()
    # all lines in one call: faster than one call a line
    with contextlib.suppress(ValueError, RecursionError):
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
            return _clean_names(rows), range(1, len(lines) + 1)
    rows, numbers, damaged = [], [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row:
            rows.append(row)
            numbers.append(number)
        elif row != {}:
            damaged.append(number)
    for number in damaged[:_MAX_LINES_NAMED]:
        problems.append(f"{label}: line {number} is not a JSON object (half-written?)")
    if len(damaged) > _MAX_LINES_NAMED:
        problems.append(
            f"{label}: {len(damaged) - _MAX_LINES_NAMED} more lines are not JSON"
            " objects"
        )
    return _clean_names(rows), numbers


def _clean_names(rows: list[Row]) -> list[Row]:
    if all(name.isascii() for name in set(chain.from_iterable(rows))):
        return rows
    return [{clean_text(name): value for name, value in row.items()} for row in rows]
