"""JSON files of a run folder. Nothing in them is trusted: what is malformed is named."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from analysis.contract import READABLE_RECORD_SCHEMAS, TRIALS_FOLDER
from analysis.tables.frames import fits
from analysis.text import clean_text

Row = dict[str, Any]

LARGEST_BYTES = 256 * 2**20
"""A larger file of a run folder is not read. A trial of 100,000 epochs has some 50 MB."""


def file_bytes(path: Path) -> bytes:
    """The content of a file of a run folder.

    Raises:
        OSError: it cannot be read, or is larger than `LARGEST_BYTES`; `strerror` says why.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1) if _may_fit(file) else None
    if content is None or len(content) > LARGEST_BYTES:
        raise OSError(
            errno.EFBIG,
            f"larger than {LARGEST_BYTES // 2**20} MiB, which no file of a run is",
        )
    return content


def _may_fit(file: BinaryIO) -> bool:
    return os.fstat(file.fileno()).st_size <= LARGEST_BYTES


def read_json(path: Path, label: str, problems: list[str]) -> Row | None:
    """The JSON object in a file of a run folder, or None and a problem."""
    try:
        data = json.loads(file_bytes(path))
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError):
        problems.append(f"{label}: not valid JSON (damaged or half-written)")
        return None
    if not isinstance(data, dict):
        problems.append(f"{label}: not a JSON object")
        return None
    schema = data.get("schema")
    if type(schema) is not int or schema not in READABLE_RECORD_SCHEMAS:
        known = " and ".join(map(str, READABLE_RECORD_SCHEMAS))
        problems.append(f"{label}: schema {schema!r}, this reader knows {known}")
        return None
    return data


def trial_label(name: str) -> str:
    """How a trial's folder is named in problems."""
    return f"{TRIALS_FOLDER}/{clean_text(name)}"


def field(
    data: Mapping[str, Any], key: str, dtype: str, label: str, problems: list[str]
) -> Any:
    """data[key] where it is of `dtype` (see `frames.ARROW`; "" is anything).

    None where it is missing, or, with a problem, where it is something else.
    """
    value = data.get(key)
    if value is None or not dtype:
        return value
    if dtype == "datetime":
        return _moment(value, f"{label}: {key}", problems)
    if not fits(value, dtype):
        problems.append(f"{label}: {key} {value!r} is not of type {dtype}")
        return None
    return value


def _moment(value: Any, label: str, problems: list[str]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        problems.append(f"{label} {value!r} is not an ISO time")
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def part(data: Mapping[str, Any], key: str, label: str, problems: list[str]) -> Row:
    """The JSON object data[key]; empty where it is missing, or, with a problem, where it is
    something else.
    """
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{label}: {key} must be a JSON object, got {value!r}")
        return {}
    return value
