"""What `run.json` says of a sweep. Nothing in it is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.baseline import Baseline, from_json
from analysis.contract import RUN_FILE, Objective, RelativeBound
from analysis.metrics import Metrics, read_metrics
from analysis.tables import schema_1
from analysis.tables.frames import as_float, fits
from analysis.tables.json_files import read_json
from analysis.text import clean_text


@dataclass(frozen=True)
class Header:
    """The fields of `Run` that `run.json` gives.

    Attributes:
        title: as in `Run`; empty where it has none.
        describes_metrics: whether the run describes its metrics; those of schema 1 do not.
        data, remarks: as in `Run`.
    """

    name: str
    title: str
    created: str
    command: str
    seed: int | None
    spec: dict[str, Any]
    objectives: list[Objective]
    parameters: list[str]
    metrics: Metrics
    describes_metrics: bool
    data: str
    remarks: list[str]
    baseline: Baseline | None


def read_header(
    data: Mapping[str, Any] | None, folder: Path, problems: list[str]
) -> Header:
    """The header of a run; what is malformed is a problem and takes its default.

    Args:
        data: what `run.json` holds, or the copy of it in the Parquet tables; None for neither.
    """
    if data is None:
        problems.append(f"{RUN_FILE}: missing, so the objectives are not known")
        data = {}
    describes = "metrics" in data
    seed = data.get("seed")
    return Header(
        name=_text(data, "name", folder.resolve().name, problems),
        title=_title(data, problems),
        created=_text(data, "created", "", problems),
        command=_text(data, "command", "", problems),
        seed=seed if fits(seed, "Int64") else None,
        spec=_spec(data.get("spec", {}), problems),
        objectives=_objectives(data.get("objectives", []), problems),
        parameters=_texts(data, "params", problems),
        metrics=(
            read_metrics(data["metrics"], problems) if describes else schema_1.DECLARED
        ),
        describes_metrics=describes,
        data=_text(data, "data", "", problems),
        remarks=_texts(data, "remarks", problems),
        baseline=from_json(data.get("baseline"), problems),
    )


def _text(data: Mapping[str, Any], key: str, default: str, problems: list[str]) -> str:
    value = data.get(key, default)
    if not isinstance(value, str):
        problems.append(f"{RUN_FILE}: {key} must be text, got {value!r}")
        return default
    return clean_text(value)


def _title(data: Mapping[str, Any], problems: list[str]) -> str:
    """What a sweep's writer calls it; most runs have a name only."""
    return "" if data.get("title") is None else _text(data, "title", "", problems)


def heading_of_run(folder: Path) -> str:
    """What readers call the run in `folder`, without reading its trials; see `Run.heading`."""
    problems: list[str] = []
    header = read_header(
        read_json(folder / RUN_FILE, RUN_FILE, problems), folder, problems
    )
    return header.title or header.name


def _spec(value: Any, problems: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        problems.append(f"{RUN_FILE}: spec must be a JSON object, got {value!r}")
        return {}
    try:
        json.dumps(value)
    except RecursionError:
        problems.append(f"{RUN_FILE}: spec is nested too deeply")
        return {}
    cleaned: dict[str, Any] = _cleaned(value)
    return cleaned


def _cleaned(value: Any) -> Any:
    """`value` with all its texts made fit to be shown."""
    if isinstance(value, dict):
        return {clean_text(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean_text(value) if isinstance(value, str) else value


def _texts(data: Mapping[str, Any], key: str, problems: list[str]) -> list[str]:
    """A list of texts, each once."""
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        problems.append(f"{RUN_FILE}: {key} must be a list of texts, got {value!r}")
        return []
    return list(dict.fromkeys(clean_text(text) for text in value))


def _objective(item: Mapping[str, Any]) -> Objective:
    """Raises TypeError, KeyError, AttributeError or ValueError for what is none."""
    metric, mode, bound = item["metric"], item["mode"], item.get("bound")
    if not isinstance(metric, str):
        raise ValueError("metric must be text")
    if mode not in ("min", "max"):
        raise ValueError("mode must be min or max")
    if isinstance(bound, dict):
        return Objective(clean_text(metric), mode, RelativeBound(**bound))
    number = as_float(bound)
    if bound is not None and (number is None or not math.isfinite(number)):
        raise ValueError("bound must be a finite number or null")
    return Objective(clean_text(metric), mode, number)


def _objectives(items: Any, problems: list[str]) -> list[Objective]:
    found: dict[str, Objective] = {}
    for item in items if isinstance(items, list) else [items]:
        try:
            found[clean_text(item["metric"])] = _objective(item)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            problems.append(
                f"{RUN_FILE}: objective {item!r} is malformed ({type(error).__name__}:"
                f" {error})"
            )
    return list(found.values())


def metrics_of_run(folder: Path, names: Iterable[str] = ()) -> Metrics:
    """The metrics that the run in `folder` describes, without reading its trials.

    Args:
        names: metrics of interest, which a run of schema 1 does not describe.
    """
    problems: list[str] = []
    data = read_json(folder / RUN_FILE, RUN_FILE, problems) or {}
    if "metrics" not in data:
        return schema_1.metrics_of(names)
    return read_metrics(data["metrics"], problems)
