"""A run folder to a `Run`, and its tables into Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.contract import Objective
from analysis.points import fronts_table
from analysis.run import Run
from analysis.tables import store
from analysis.tables.frames import as_float, clean_text, fits, to_pandas
from analysis.tables.read import read_json
from analysis.tables.schema import RECORD_SCHEMA, TABLES

_LONGEST_PROBLEM = 500


def load(path: str | Path) -> Run:
    """Read the run folder at `path`: its records where there are any, else its Parquet
    tables. Writes nothing.

    Rows that the tables of an earlier `gather` hold, and whose files have not changed, come
    from there. Damaged, half-written and foreign files are named in `Run.problems`, and the
    rest loads. Raises ValueError where `path` is not a run folder.
    """
    return _load(Path(path))[0]


def loaded(run: str | Path | Run) -> Run:
    """A run folder's run; one that is loaded already as it is. Raises ValueError as `load` does."""
    return run if isinstance(run, Run) else load(run)


def gather(path: str | Path) -> Run:
    """Bring `<run>/parquet/` up to date (see `analysis.tables.store`) and give the run.

    Schema version, column descriptions and units, and the run's `run.json` are in the
    metadata of every file under the key "sweeps". Raises ValueError where `path` is not a
    run folder, OSError where it cannot be written.
    """
    run, rows = _load(Path(path))
    folder, header = run.path / "parquet", header_of(run)
    if rows is not None:
        store.write(
            run.path, *rows, [objective.metric for objective in run.objectives], header
        )
    fronts = store.described(fronts_table(run), "fronts", header)
    store.write_table(store.part_path(folder, "fronts", 0), fronts)
    return run


def _load(
    folder: Path,
) -> tuple[Run, tuple[store.Store, dict[str, list[pa.Table]]] | None]:
    """The run, and its rows in parts where the stored tables may lack some."""
    trials, tables = folder / "trials", folder / "parquet"
    has_records = trials.is_dir() and any(trials.iterdir())
    has_tables = (tables / "trials").is_dir() or (tables / "trials.parquet").is_file()
    if not (has_records or has_tables or (folder / "run.json").is_file()):
        raise ValueError(
            f"not a run folder: {folder} has neither run.json, trials/ nor parquet/;"
            " give a run's folder"
        )
    problems: list[str] = []
    header = (
        read_json(folder / "run.json", "run.json", problems)
        if (folder / "run.json").is_file()
        else None
    )
    stored: dict[str, Any] | None = None
    rows: store.Store | None = None
    if has_tables and (header is None or not has_records):
        found: list[str] = []
        stored, rows = store.read_tables(tables, found)
        problems += [] if has_records else found
        header = stored if header is None else header
    if header is None:
        problems.append("run.json: missing, so the objectives are not known")
    info = _header(header or {}, folder, problems)
    objectives = [objective.metric for objective in info["objectives"]]
    if has_records or rows is None:
        rows = (
            store.collect(folder, objectives, problems)
            if has_records
            else store.Store()
        )
    made = store.unified(rows, objectives, info["params"])
    frames: dict[str, Any] = {
        name: to_pandas(store.whole(made[name])) for name in TABLES
    }
    run = Run(
        path=folder,
        problems=[clean_text(p)[:_LONGEST_PROBLEM] for p in problems],
        **info,
        **frames,
    )
    # tables without records are not rewritten, but for those of schema 1, whole
    as_they_are = (
        not has_records
        and has_tables
        and (bool(problems) or not (tables / "trials.parquet").is_file())
    )
    return run, None if as_they_are else (rows, made)


def header_of(run: Run) -> dict[str, Any]:
    """What `run.json` says, from a run."""
    objectives = [
        {"metric": o.metric, "mode": o.mode, "bound": o.bound} for o in run.objectives
    ]
    return {
        **{
            "schema": RECORD_SCHEMA,
            "name": run.name,
            "created": run.created,
            "seed": run.seed,
        },
        **{
            "objectives": objectives,
            "params": run.params,
            "command": run.command,
            "spec": run.spec,
        },
    }


def _header(
    data: Mapping[str, Any], folder: Path, problems: list[str]
) -> dict[str, Any]:
    """The fields of `Run` that run.json gives; what is malformed is a problem and takes its
    default.
    """
    defaults: dict[str, Any] = {
        "name": folder.resolve().name,
        "created": "",
        "command": "",
        "spec": {},
    }
    info: dict[str, Any] = {}
    for key, default in defaults.items():
        value = data.get(key, default)
        if not isinstance(value, type(default)):
            problems.append(
                f"run.json: {key} must be {type(default).__name__}, got {value!r}"
            )
            value = default
        info[key] = clean_text(value) if isinstance(value, str) else value
    try:
        json.dumps(info["spec"])
    except RecursionError:
        problems.append("run.json: spec is nested too deeply")
        info["spec"] = {}
    info["seed"] = data.get("seed") if fits(data.get("seed"), "Int64") else None
    params = data.get("params", [])
    if not isinstance(params, list) or not all(isinstance(p, str) for p in params):
        problems.append(f"run.json: params must be a list of names, got {params!r}")
        params = []
    info["params"] = list(dict.fromkeys(clean_text(p) for p in params))
    info["objectives"] = _objectives(data.get("objectives", []), problems)
    return info


def _objective(item: Mapping[str, Any]) -> Objective:
    """Raises TypeError, KeyError, AttributeError or ValueError for what is none."""
    metric, mode, bound = item["metric"], item["mode"], item.get("bound")
    if not isinstance(metric, str):
        raise ValueError("metric must be text")
    if mode not in ("min", "max"):
        raise ValueError("mode must be min or max")
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
                f"run.json: objective {item!r} is malformed ({type(error).__name__}:"
                f" {error})"
            )
    return list(found.values())
