"""A run folder to tables: read the records, or the Parquet tables gathered from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.frames import as_float, clean_text, fits, frame
from analysis.pareto import Floats, Objective
from analysis.schema import FIXED, SCHEMA_VERSION, STATUSES, TABLES, TRIALS, table_metadata

_META_KEY = b"sweeps"


@dataclass
class Run:
    """One sweep's results. Times in seconds; `problems` names every file that could not be read, and why.

    `trials` has a row for every trial whatever its outcome, with columns `config/<key>`, `metric/<name>` and
    `version/<library>` beside those of `analysis.schema.TRIALS`; `epochs` and `stages` refer to it by trial_id.
    """

    path: Path
    name: str
    objectives: list[Objective]
    params: list[str]
    created: str
    command: str
    trials: pd.DataFrame
    epochs: pd.DataFrame
    stages: pd.DataFrame
    seed: int | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def complete(self) -> pd.DataFrame:
        """The complete trials."""
        return self.trials[self.trials["status"] == "complete"]

    def values(self, trials: pd.DataFrame) -> Floats:
        """(n, k) the objectives of `trials`, as recorded; NaN where missing."""
        columns = [f"metric/{objective.metric}" for objective in self.objectives]
        return trials[columns].to_numpy(dtype=np.float64)

    def front(self) -> pd.DataFrame:
        """The complete trials, within all bounds, that no other such trial dominates; best first objective first."""
        done = self.complete()
        front = done[pareto.front_mask(self.values(done), self.objectives)]
        if front.empty:
            return front
        by = [f"metric/{objective.metric}" for objective in self.objectives]
        up = [objective.mode == "min" for objective in self.objectives]
        return front.sort_values([*by, "trial_id"], ascending=[*up, True], kind="stable")

    def reference(self) -> dict[str, float]:
        """The reference point that `hypervolume` takes by default: 10 % beyond the worst eligible trial.

        Raises ValueError where no complete trial is eligible.
        """
        point = pareto.reference_point(self.values(self.complete()), self.objectives)
        return {objective.metric: float(value) for objective, value in zip(self.objectives, point, strict=True)}

    def hypervolume(self, reference: Sequence[float] | Mapping[str, float] | None = None) -> float:
        """Volume that the front dominates up to `reference` (in objective order, or by metric; see `reference`).

        In the product of the metrics' units; compare runs with the same reference only. 0 for an empty front.
        Raises ValueError for a reference that is not one finite number for each objective.
        """
        if not self.objectives:
            return 0.0
        values = self.values(self.complete())
        if reference is None:
            if not pareto.eligible(values, self.objectives).any():
                return 0.0
            reference = self.reference()
        return pareto.hypervolume(values, self.objectives, pareto.check_reference(reference, self.objectives))

    def best(self) -> pd.DataFrame:
        """Picks from the front, as rows of `trials` indexed by name: "best <metric>" for each objective, "knee"."""
        front = self.front()
        if front.empty:
            return front.rename_axis("pick")
        costs = pareto.to_costs(self.values(front), self.objectives)
        picks = {f"best {o.metric}": int(costs[:, i].argmin()) for i, o in enumerate(self.objectives)}
        if len(self.objectives) > 1:
            picks["knee"] = pareto.knee(self.values(front), self.objectives)
        rows = front.iloc[list(picks.values())].copy()
        rows.index = pd.Index(list(picks), name="pick")
        return rows


def load(path: str | Path) -> Run:
    """Read the run folder at `path`: its records where there are any, else its Parquet tables.

    Damaged, half-written and foreign files are named in `Run.problems`, and the rest loads. Raises ValueError where
    `path` is not a run folder.
    """
    folder = Path(path)
    trials_folder = folder / "trials"
    has_records = trials_folder.is_dir() and any(trials_folder.iterdir())
    has_tables = (folder / "parquet" / "trials.parquet").is_file()
    if not (has_records or has_tables or (folder / "run.json").is_file()):
        raise ValueError(f"not a run folder: {folder} has neither run.json, trials/ nor parquet/; give a run's folder")
    problems: list[str] = []
    tables: dict[str, pd.DataFrame] = {}
    header = _read_json(folder / "run.json", "run.json", problems) if (folder / "run.json").is_file() else None
    if has_tables and (header is None or not has_records):
        stored, tables = _read_tables(folder / "parquet", problems)
        header = stored if header is None else header
    if header is None:
        problems.append("run.json: missing, so the objectives are not known")
    info = _header(header or {}, folder, problems)
    if has_records or not tables:
        tables = _read_records(trials_folder, info, problems) if has_records else _frames({}, info)
    fields: dict[str, Any] = {**info, **tables}
    return Run(path=folder, problems=problems, **fields)


def gather(path: str | Path) -> Run:
    """Read a run folder and write `<run>/parquet/{trials,epochs,stages}.parquet`, each replaced atomically.

    Schema version, column descriptions and units, and the run's `run.json` are in each table's metadata under the
    key "sweeps". Raises ValueError where `path` is not a run folder, OSError where it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = load(path)
    folder = run.path / "parquet"
    folder.mkdir(exist_ok=True)
    for name in TABLES:
        data: pd.DataFrame = getattr(run, name)
        meta = table_metadata(name, list(data.columns), header_of(run))
        table = pa.Table.from_pandas(data, preserve_index=False)
        fields = [f.with_metadata(meta["columns"][f.name]) for f in table.schema]
        schema = pa.schema(fields, {**(table.schema.metadata or {}), _META_KEY: json.dumps(meta).encode()})
        table = table.cast(schema)
        atomic_write(folder / f"{name}.parquet", partial(pq.write_table, table))
    return run


def header_of(run: Run) -> dict[str, Any]:
    """What `run.json` says, from a run."""
    objectives = [{"metric": o.metric, "mode": o.mode, "bound": o.bound} for o in run.objectives]
    return {
        **{"schema": SCHEMA_VERSION, "name": run.name, "created": run.created, "seed": run.seed},
        **{"objectives": objectives, "params": run.params, "command": run.command, "spec": run.spec},
    }


def atomic_write(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`, so that readers see the old or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read_json(path: Path, label: str, problems: list[str]) -> dict[str, Any] | None:
    """The JSON object in a file of ours, or None and a problem."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{label}: cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError):
        problems.append(f"{label}: not valid JSON (damaged or half-written)")
        return None
    if not isinstance(data, dict):
        problems.append(f"{label}: not a JSON object")
        return None
    if data.get("schema") != SCHEMA_VERSION:
        problems.append(f"{label}: schema {data.get('schema')!r}, this reader knows {SCHEMA_VERSION}")
        return None
    return data


def _header(data: dict[str, Any], folder: Path, problems: list[str]) -> dict[str, Any]:
    """The fields of `Run` that run.json gives; what is malformed is a problem and takes its default."""
    defaults: dict[str, Any] = {"name": folder.resolve().name, "created": "", "command": "", "spec": {}}
    info: dict[str, Any] = {}
    for key, default in defaults.items():
        value = data.get(key, default)
        if not isinstance(value, type(default)):
            problems.append(f"run.json: {key} must be {type(default).__name__}, got {value!r}")
            value = default
        info[key] = clean_text(value) if isinstance(value, str) else value
    info["seed"] = data.get("seed") if fits(data.get("seed"), "Int64") else None
    params = data.get("params", [])
    if not isinstance(params, list) or not all(isinstance(p, str) for p in params):
        problems.append(f"run.json: params must be a list of names, got {params!r}")
        params = []
    info["params"] = list(dict.fromkeys(clean_text(p) for p in params))
    info["objectives"] = _objectives(data.get("objectives", []), problems)
    return info


def _objectives(items: Any, problems: list[str]) -> list[Objective]:
    found: dict[str, Objective] = {}
    for item in items if isinstance(items, list) else [items]:
        try:
            metric, bound = item["metric"], item.get("bound")
            if not isinstance(metric, str) or not (bound is None or as_float(bound) is not None):
                raise ValueError("metric must be text and bound a number or null")
            found[clean_text(metric)] = Objective(clean_text(metric), item["mode"], as_float(bound))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            problems.append(f"run.json: objective {item!r} is malformed ({type(error).__name__}: {error})")
    return list(found.values())


def _read_tables(folder: Path, problems: list[str]) -> tuple[dict[str, Any] | None, dict[str, pd.DataFrame]]:
    """The run's header and its tables; a table that cannot be read is a problem, and empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header: dict[str, Any] | None = None
    tables: dict[str, pd.DataFrame] = {}
    for name in TABLES:
        label = f"parquet/{name}.parquet"
        tables[name] = frame([], {column: dtype for column, (dtype, _, _) in FIXED[name].items()})
        try:
            table = pq.read_table(folder / f"{name}.parquet")
            meta = json.loads((table.schema.metadata or {}).get(_META_KEY, b"null"))
        except (OSError, pa.ArrowException, ValueError) as error:
            problems.append(f"{label}: cannot be read ({str(error).splitlines()[0]})")
            continue
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA_VERSION or meta.get("table") != name:
            problems.append(f"{label}: not this project's table, or of another schema than {SCHEMA_VERSION}")
            continue
        header = header or meta["run"]
        data = table.to_pandas()
        texts = [c for c in data.columns if pd.api.types.is_string_dtype(data[c].dtype)]
        tables[name] = data.astype(dict.fromkeys(texts, "string"))
    return header, tables


def _read_records(folder: Path, info: dict[str, Any], problems: list[str]) -> dict[str, pd.DataFrame]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    metrics = {objective.metric for objective in info["objectives"]}
    for path in sorted(folder.iterdir()):
        label = f"trials/{clean_text(path.name)}"
        if not path.is_dir():
            problems.append(f"{label}: not a trial's folder")
            continue
        if not (path / "record.json").is_file():
            problems.append(f"{label}: no record.json")
            continue
        record = _read_json(path / "record.json", f"{label}/record.json", problems)
        if record is None or not _is_record(record, path.name, label, problems):
            continue
        rows["trials"].append(_trial_row(record, label, metrics, problems))
        rows["stages"] += _stage_rows(record, label, problems)
        if (path / "epochs.jsonl").is_file():
            rows["epochs"] += _epoch_rows(path / "epochs.jsonl", label, record["trial_id"], problems)
    return _frames(rows, info)


def _frames(rows: Mapping[str, list[dict[str, Any]]], info: dict[str, Any]) -> dict[str, pd.DataFrame]:
    tables = {}
    for name in TABLES:
        dtypes = {column: dtype for column, (dtype, _, _) in FIXED[name].items()}
        if name == "trials":
            # A searched value that no trial has yet is a column too; its type is that of the values that come.
            dtypes |= {f"metric/{objective.metric}": "float64" for objective in info["objectives"]}
            rows_here: list[dict[str, Any]] = [{f"config/{p}": None for p in info["params"]}, *rows.get(name, [])]
            tables[name] = frame(rows_here, dtypes).iloc[1:].reset_index(drop=True)
        else:
            tables[name] = frame(rows.get(name, []), dtypes)
    return tables


def _is_record(record: dict[str, Any], folder_name: str, label: str, problems: list[str]) -> bool:
    wrong = [k for k in ("config", "metrics", "versions", "device") if not isinstance(record.get(k) or {}, dict)]
    if record.get("trial_id") != folder_name:
        problems.append(f"{label}/record.json: trial_id is {record.get('trial_id')!r}, not the folder's name")
    elif record.get("status") not in STATUSES:
        problems.append(f"{label}/record.json: status {record.get('status')!r} is none of {', '.join(STATUSES)}")
    elif wrong:
        problems.append(f"{label}/record.json: {', '.join(wrong)} must be a JSON object")
    else:
        return True
    return False


def _field(data: Mapping[str, Any], key: str, dtype: str, label: str, problems: list[str]) -> Any:
    """data[key] where it is of `dtype`; None where missing, or, with a problem, where it is something else."""
    value = data.get(key)
    if value is None:
        return None
    if dtype == "datetime":
        try:
            return datetime.fromisoformat(value)
        except (TypeError, ValueError):
            problems.append(f"{label}: {key} {value!r} is not an ISO time")
            return None
    if not fits(value, dtype):
        problems.append(f"{label}: {key} {value!r} is not of type {dtype}")
        return None
    return value


def _trial_row(record: dict[str, Any], label: str, objectives: set[str], problems: list[str]) -> dict[str, Any]:
    label = f"{label}/record.json"
    derived = ("error", "error_traceback", "device")
    row = {k: _field(record, k, t, label, problems) for k, (t, _, _) in TRIALS.items() if k not in derived}
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
    row |= {f"config/{clean_text(name)}": value for name, value in (record.get("config") or {}).items()}
    row |= {
        f"version/{clean_text(k)}": None if v is None else str(v) for k, v in (record.get("versions") or {}).items()
    }
    return row


def _stage_rows(record: dict[str, Any], label: str, problems: list[str]) -> list[dict[str, Any]]:
    stages = record.get("stages") or []
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        problems.append(f"{label}/record.json: stages must be a list of JSON objects")
        return []
    rows = []
    for stage in stages:
        row = {k: _field(stage, k, t, f"{label}/record.json", problems) for k, (t, _, _) in FIXED["stages"].items()}
        row["trial_id"] = record["trial_id"]
        metrics = stage.get("metrics")
        if isinstance(metrics, dict):
            row |= {f"metric/{clean_text(name)}": value for name, value in metrics.items()}
        rows.append(row)
    return rows


def _epoch_rows(path: Path, label: str, trial_id: str, problems: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError
        except (ValueError, RecursionError):
            problems.append(f"{label}/epochs.jsonl: line {number} is not a JSON object (half-written?)")
            continue
        where = f"{label}/epochs.jsonl line {number}"
        row = {clean_text(k): v for k, v in data.items() if k not in FIXED["epochs"]}
        row |= {k: _field(data, k, t, where, problems) for k, (t, _, _) in FIXED["epochs"].items()}
        rows.append({**row, "trial_id": trial_id})
    return rows
