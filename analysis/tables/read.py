"""A trial's folder to rows of the tables. Nothing in it is trusted: what is malformed is
named, and the rest is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from analysis.tables.frames import as_float, clean_text, fits
from analysis.tables.schema import FIXED, RECORD_SCHEMA, STATUSES, TABLES, TRIALS

Row = dict[str, Any]
Signature = list[list[int] | None]
"""Of each of `FILES`: [modification time in ns, size in bytes], None where it is missing."""

FILES = ("record.json", "epochs.jsonl", "layers.json")
_MAX_LINES_NAMED = 5


def scan(folder: Path, problems: list[str]) -> dict[str, Signature]:
    """Trial folders under `folder` by name, in order, with the signatures of their files;
    others are problems.
    """
    found: dict[str, Signature] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        label = _label(entry.name)
        if not entry.is_dir():
            problems.append(f"{label}: not a trial's folder")
            continue
        signature = [_signature(f"{entry.path}/{name}") for name in FILES]
        if signature[0] is None:
            problems.append(f"{label}: no record.json")
        else:
            found[entry.name] = signature
    return found


def _signature(path: str) -> list[int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (30,000 of them: a Path each doubles the time)
    except OSError:
        return None
    return (
        [status.st_mtime_ns, status.st_size] if stat.S_ISREG(status.st_mode) else None
    )


def read_json(path: Path, label: str, problems: list[str]) -> dict[str, Any] | None:
    """The JSON object in a file of ours, or None and a problem."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError):
        problems.append(f"{label}: not valid JSON (damaged or half-written)")
        return None
    if not isinstance(data, dict):
        problems.append(f"{label}: not a JSON object")
        return None
    if data.get("schema") != RECORD_SCHEMA:
        problems.append(
            f"{label}: schema {data.get('schema')!r}, this reader knows {RECORD_SCHEMA}"
        )
        return None
    return data


@dataclass
class TrialRows:
    """Rows of one trial by table. Values in fixed columns of `epochs` and `layers` may not
    fit yet: see `mend`.
    """

    name: str
    rows: dict[str, list[Row]]
    lines: Sequence[int]
    problems: list[str]

    def mend(self, table: str) -> None:
        """Replace values that do not fit the fixed columns of `table` by None, and name
        them as problems.
        """
        for number, row in zip(
            self.lines if table == "epochs" else count(), self.rows[table], strict=False
        ):
            place = (
                f"epochs.jsonl line {number}"
                if table == "epochs"
                else f"layers.json: layer {number}"
            )
            for column, (dtype, _, _) in FIXED[table].items():
                row[column] = _field(
                    row, column, dtype, f"{_label(self.name)}/{place}", self.problems
                )


def read_trial(folder: Path, signature: Signature, objectives: set[str]) -> TrialRows:
    """Rows of each of `TABLES` from one trial's folder, and what is wrong with it; no rows
    where it has no record.
    """
    problems: list[str] = []
    label = _label(folder.name)
    found = TrialRows(folder.name, {name: [] for name in TABLES}, (), problems)
    record = read_json(folder / "record.json", f"{label}/record.json", problems)
    if record is None or not _is_record(record, folder.name, label, problems):
        return found
    found.rows["trials"] = [
        _trial_row(record, f"{label}/record.json", objectives, problems)
    ]
    found.rows["stages"] = _stage_rows(record, f"{label}/record.json", problems)
    if signature[1] is not None:
        found.rows["epochs"], found.lines = _epoch_rows(
            folder / "epochs.jsonl", f"{label}/epochs.jsonl", problems
        )
    if signature[2] is not None:
        found.rows["layers"] = _layer_rows(
            folder / "layers.json", f"{label}/layers.json", problems
        )
    for name in ("stages", "epochs", "layers"):
        for row in found.rows[name]:
            row["trial_id"] = found.name
    return found


def _label(name: str) -> str:
    return f"trials/{clean_text(name)}"


def _is_record(record: Row, folder_name: str, label: str, problems: list[str]) -> bool:
    wrong = [
        k
        for k in ("config", "metrics", "versions", "device")
        if not isinstance(record.get(k) or {}, dict)
    ]
    if record.get("trial_id") != folder_name:
        problems.append(
            f"{label}/record.json: trial_id is {record.get('trial_id')!r}, not the"
            " folder's name"
        )
    elif record.get("status") not in STATUSES:
        problems.append(
            f"{label}/record.json: status {record.get('status')!r} is none of"
            f" {', '.join(STATUSES)}"
        )
    elif wrong:
        problems.append(
            f"{label}/record.json: {', '.join(wrong)} must be a JSON object"
        )
    else:
        return True
    return False


def _field(
    data: Mapping[str, Any], key: str, dtype: str, label: str, problems: list[str]
) -> Any:
    """data[key] where it is of `dtype`; None where missing, or, with a problem, where it is
    something else.
    """
    value = data.get(key)
    if value is None or not dtype:
        return value
    if dtype == "datetime":
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            problems.append(f"{label}: {key} {value!r} is not an ISO time")
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not fits(value, dtype):
        problems.append(f"{label}: {key} {value!r} is not of type {dtype}")
        return None
    return value


def _trial_row(
    record: Row, label: str, objectives: set[str], problems: list[str]
) -> Row:
    derived = (
        "error",
        "error_traceback",
        "device",
        "pruned_stage",
        "pruned_epoch",
        "code",
    )
    row = {
        k: _field(record, k, t, label, problems)
        for k, (t, _, _) in TRIALS.items()
        if k not in derived
    }
    if isinstance(pruned := record.get("pruned"), dict):
        row["pruned_stage"] = _field(pruned, "stage", "string", label, problems)
        row["pruned_epoch"] = _field(pruned, "epoch", "Int64", label, problems)
    if isinstance(code := record.get("code"), dict) and (
        version := code.get("commit") or code.get("sha256")
    ):
        row["code"] = str(version) + ("+" if code.get("dirty") else "")
    error = record.get("error")
    if isinstance(error, dict):
        row["error"] = f"{error.get('type', 'Error')}: {error.get('message', '')}"
        row["error_traceback"] = _field(error, "traceback", "string", label, problems)
    elif error is not None:
        row["error"] = str(error)
    device = record.get("device") or {}
    parts = [str(device[k]) for k in ("type", "name") if device.get(k)]
    count = device.get("threads")
    threads = [f"{count} thread{'' if count == 1 else 's'}"] if count else []
    row["device"] = ", ".join([*dict.fromkeys(parts), *threads]) or None
    for name, value in (record.get("metrics") or {}).items():
        if name in objectives and value is not None and as_float(value) is None:
            problems.append(f"{label}: objective {name!r} is {value!r}, not a number")
            value = None
        row[f"metric/{clean_text(name)}"] = value
    row |= {
        _config_column(name): value
        for name, value in (record.get("config") or {}).items()
    }
    versions = (record.get("versions") or {}).items()
    return row | {
        f"version/{clean_text(k)}": None if v is None else str(v) for k, v in versions
    }


@lru_cache(maxsize=10_000)
def _config_column(name: str) -> str:
    return f"config/{clean_text(name)}"


def _stage_rows(record: Row, label: str, problems: list[str]) -> list[Row]:
    stages = record.get("stages") or []
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        problems.append(f"{label}: stages must be a list of JSON objects")
        return []
    rows = []
    for stage in stages:
        row = {
            k: _field(stage, k, t, label, problems)
            for k, (t, _, _) in FIXED["stages"].items()
        }
        metrics = stage.get("metrics")
        if isinstance(metrics, dict):
            row |= {
                f"metric/{clean_text(name)}": value for name, value in metrics.items()
            }
        rows.append(row)
    return rows


def _layer_rows(path: Path, label: str, problems: list[str]) -> list[Row]:
    data = read_json(path, label, problems)
    layers = [] if data is None else data.get("layers")
    if not isinstance(layers, list) or not all(
        isinstance(layer, dict) for layer in layers
    ):
        problems.append(f"{label}: layers must be a list of JSON objects")
        return []
    for index, layer in enumerate(layers):
        layer["index"] = index
    return _clean_names(layers)


def _epoch_rows(
    path: Path, label: str, problems: list[str]
) -> tuple[list[Row], Sequence[int]]:
    """Rows and the number of each one's line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
        return [], ()
    with contextlib.suppress(
        ValueError, RecursionError
    ):  # all lines in one call: faster than one call a line
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
