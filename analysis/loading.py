"""A run folder to a `Run`, and its tables into Parquet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.baseline import Baseline, read_baseline
from analysis.contract import (
    RECORD_SCHEMA,
    RUN_FILE,
    TABLES_FOLDER,
    TRIALS_FOLDER,
    resolved,
)
from analysis.fetching import local_copy
from analysis.fronts import fronts_table
from analysis.header import Header, read_header
from analysis.metrics import to_json
from analysis.notes import read_notes
from analysis.run import Run
from analysis.tables import parts, schema_1, store
from analysis.tables.frames import to_pandas
from analysis.tables.json_files import read_json
from analysis.tables.schema import TABLES, Declared
from analysis.text import clean_text

_LONGEST_PROBLEM = 500


def load(path: str | Path) -> Run:
    """Read the run folder at `path`: its trials where there are any, else its Parquet
    tables. Writes nothing. A URI (`s3://bucket/runs/NAME`) is copied to this machine first.

    Rows that the tables of an earlier `gather` hold, and whose files have not changed, come
    from there. Damaged, half-written and foreign files are named in `Run.problems`, and the
    rest loads. Raises ValueError where `path` is not a run folder.
    """
    if isinstance(path, str) and "://" in path:
        path = local_copy(path)
    return _load(Path(path)).run


class Follower:
    """A run folder that is read again and again while its sweep runs: each time only the trials
    whose files have changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: _Loaded | None = None

    def load(self) -> Run:
        """The run as it is now. Raises ValueError where the folder is no run."""
        self._last = _load(self.folder, self._last)
        return self._last.run


def loaded(run: str | Path | Run) -> Run:
    """A run folder's run; one that is loaded already as it is. Raises ValueError as `load` does."""
    return run if isinstance(run, Run) else load(run)


def gather(path: str | Path) -> Run:
    """Bring `<run>/parquet/` up to date (see `analysis.tables.store`) and give the run.

    Schema version, column descriptions and units, and the run's `run.json` are in the
    metadata of every file under the key "sweeps". Raises ValueError where `path` is not a
    run folder, OSError where it cannot be written.
    """
    found = _load(Path(path))
    run, header = found.run, header_of(found.run)
    if found.to_write:
        store.write(
            run.path, found.rows, found.tables, found.declared, run.metrics, header
        )
    fronts = fronts_table(run.configurations(), run.objectives)
    parts.write_table(
        parts.part_path(run.path / TABLES_FOLDER, "fronts", 0),
        parts.described(fronts, "fronts", run.metrics, header),
    )
    return run


@dataclass(frozen=True)
class _Loaded:
    """A run and its rows in parts; `to_write` says whether the stored tables may lack some."""

    run: Run
    declared: Declared
    rows: store.Store
    tables: dict[str, list[pa.Table]]
    to_write: bool


def _load(folder: Path, earlier: _Loaded | None = None) -> _Loaded:
    stored = folder / TABLES_FOLDER
    single = (stored / "trials.parquet").is_file()  # tables of schema 1
    has_trials = _has_trials(folder)
    has_tables = single or (stored / "trials").is_dir()
    if not (has_trials or has_tables or (folder / RUN_FILE).is_file()):
        raise ValueError(
            f"not a run folder: {folder} has neither {RUN_FILE}, {TRIALS_FOLDER}/ nor"
            f" {TABLES_FOLDER}/; give a run's folder"
        )
    problems: list[str] = []
    data = None
    if (folder / RUN_FILE).is_file():
        data = read_json(folder / RUN_FILE, RUN_FILE, problems)
    rows = store.Store()
    if has_tables and (data is None or not has_trials):
        found: list[str] = []
        stored_data, stored_parts = parts.read_tables(stored, found)
        if data is None:
            data = stored_data
        elif (
            stored_data is not None
        ):  # which knows the baseline, as `run.json` does not
            data = {"baseline": stored_data.get("baseline"), **data}
        if not has_trials:
            problems += found
            rows = store.Store(stored_parts)
    header = read_header(data, folder, problems)
    declared = Declared(
        objectives=[objective.metric for objective in header.objectives],
        parameters=header.parameters,
        metrics=list(header.metrics),
    )
    if has_trials:
        known = earlier.rows if earlier and earlier.declared == declared else None
        rows = store.collect(folder, declared, problems, known)
    tables = parts.unified(rows.parts, declared)
    baseline = read_baseline(folder, declared, problems) or header.baseline
    run = _run(folder, header, tables, baseline, problems)
    # tables without records are not rewritten, but for those of schema 1, whole
    as_they_are = not has_trials and has_tables and (bool(problems) or not single)
    return _Loaded(run, declared, rows, tables, not as_they_are)


def _has_trials(folder: Path) -> bool:
    trials = folder / TRIALS_FOLDER
    return trials.is_dir() and any(trials.iterdir())


def _run(
    folder: Path,
    header: Header,
    tables: dict[str, list[pa.Table]],
    baseline: Baseline | None,
    problems: list[str],
) -> Run:
    frames = {name: to_pandas(parts.whole(tables[name])) for name in TABLES}
    metrics, notes = header.metrics, read_notes(folder, problems)
    if not header.describes_metrics:
        metrics = schema_1.metrics_of(_metric_names(tables))
    return Run(
        path=folder,
        name=header.name,
        title=header.title,
        objectives=resolved(
            header.objectives, None if baseline is None else baseline.metrics
        ),
        parameters=header.parameters,
        created=header.created,
        command=header.command,
        seed=header.seed,
        spec=header.spec,
        data=header.data,
        remarks=header.remarks,
        metrics=metrics,
        baseline=baseline,
        problems=[clean_text(p)[:_LONGEST_PROBLEM] for p in problems],
        trials=frames["trials"],
        epochs=frames["epochs"],
        stages=frames["stages"],
        layers=frames["layers"],
        classes=frames["classes"],
        notes=notes,
    )


def _metric_names(tables: dict[str, list[pa.Table]]) -> list[str]:
    """Names of the metrics that the tables hold, and of the plain columns of epochs."""
    columns = [c for name in TABLES for c in tables[name][0].column_names]
    found = [c.partition("/")[2] for c in columns if c.startswith("metric/")]
    return found + [c for c in tables["epochs"][0].column_names if "/" not in c]


def header_of(run: Run) -> dict[str, Any]:
    """What `run.json` says, from a run, and its baseline."""
    return {
        "schema": RECORD_SCHEMA,
        "name": run.name,
        "title": run.title or None,
        "created": run.created,
        "seed": run.seed,
        "objectives": [asdict(objective) for objective in run.objectives],
        "params": run.parameters,
        "command": run.command,
        "spec": run.spec,
        "metrics": to_json(run.metrics),
        "baseline": None if run.baseline is None else run.baseline.to_json(),
    }
