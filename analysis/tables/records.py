"""A trial's plan and record to rows of the tables `trials` and `stages`.

Since schema 2 a trial's facts stand in two files: `plan.json`, written before anything starts, and
`record.json`, which says what became of it. A plan without a record is a trial that has not begun,
or whose process died first: its row says `running`. In schema 1 the record held both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analysis.contract import PLAN_FILE, RECORD_FILE, SEARCH_PREFIX, STATUSES
from analysis.tables.frames import as_float
from analysis.tables.json_files import Row, field, part
from analysis.tables.schema import STAGES, TRIALS
from analysis.text import clean_text

_PLANNED = ("number", "replicate", "seed", "refines")
MOST_METRICS = 2_000
"""Metrics of a trial that become columns; more are not what a trial measured."""
_RECORDED = ("attempts", "feasible", "started", "ended", "seconds", "seconds_full")
_OF_MACHINE = ("host", "world_size")


@dataclass(frozen=True)
class Facts:
    """A trial's facts, wherever they stand.

    Attributes:
        name: the trial's folder.
        planned, planned_in: number, seed and so on, and the file that says so.
        recorded, recorded_in: outcome, and the file that says so; empty without a record.
        machine: host, device, versions and code; empty before the trial began.
        config: the resolved configuration, dotted name → value.
    """

    name: str
    planned: Row
    planned_in: str
    recorded: Row
    recorded_in: str
    machine: Row
    config: Row


def facts_of(
    name: str, label: str, plan: Row | None, record: Row | None, problems: list[str]
) -> Facts | None:
    """The facts of the trial in folder `name`; None where neither file is one of its own.

    Args:
        plan, record: what the two files hold, None where one is missing or damaged.
    """
    plan_label, record_label = f"{label}/{PLAN_FILE}", f"{label}/{RECORD_FILE}"
    if record is not None and not _is_record(record, name, record_label, problems):
        record = None
    if record is not None and record["schema"] == 1:
        return Facts(
            name=name,
            planned=record,
            planned_in=record_label,
            recorded=record,
            recorded_in=record_label,
            machine=record,
            config=part(record, "config", record_label, problems),
        )
    if plan is not None and not _is_of(plan, name, plan_label, problems):
        plan = None
    if plan is None and record is None:
        return None
    if plan is None:
        problems.append(
            f"{plan_label}: missing or unusable, so the trial's configuration is not known"
        )
    return Facts(
        name=name,
        planned=plan or {},
        planned_in=plan_label,
        recorded=record or {},
        recorded_in=record_label,
        machine=part(record or {}, "machine", record_label, problems),
        config=config_of(plan or {}, plan_label, problems),
    )


def _is_of(data: Row, name: str, label: str, problems: list[str]) -> bool:
    """Whether a file says that it belongs to the folder in which it lies."""
    if data.get("trial_id") == name:
        return True
    problems.append(
        f"{label}: trial_id is {data.get('trial_id')!r}, not the folder's name"
    )
    return False


def _is_record(record: Row, name: str, label: str, problems: list[str]) -> bool:
    if not _is_of(record, name, label, problems):
        return False
    if record.get("status") not in STATUSES:
        known = ", ".join(STATUSES)
        problems.append(f"{label}: status {record.get('status')!r} is none of {known}")
        return False
    objects = ("config", "metrics", "versions", "device", "machine")
    wrong = [k for k in objects if not isinstance(record.get(k) or {}, dict)]
    if wrong:
        problems.append(f"{label}: {', '.join(wrong)} must be a JSON object")
    return not wrong


def config_of(plan: Row, label: str, problems: list[str]) -> Row:
    """The resolved configuration of a plan, dotted name → value.

    The leaves of `source`, of `data` and of each stage's config (after the stage's name), and for
    a slot the alternative that was drawn.
    """
    config: Row = {}
    for key, value in part(plan, "configuration", label, problems).items():
        section, _, slot = key.partition(".")
        if section == "stages" and slot and "." not in slot:
            config[slot] = value
    for section in ("source", "data"):
        config |= _leaves(section, part(plan, section, label, problems))
    stages = plan.get("stages") or []
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        problems.append(f"{label}: stages must be a list of JSON objects")
        return config
    for stage in stages:
        stage_name = field(stage, "name", "string", label, problems)
        if stage_name is not None:
            config |= _leaves(stage_name, part(stage, "config", label, problems))
    return config


def _leaves(name: str, value: Row) -> Iterator[tuple[str, Any]]:
    """Dotted names and values below `value`; without recursion, however deep the file nests."""
    waiting: list[tuple[str, Any]] = [(name, value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", v) for key, v in reversed(value.items())]
        else:
            yield name, value


def trial_row(facts: Facts, objectives: Collection[str], problems: list[str]) -> Row:
    """The trial's row. An objective that is not a number is a problem, and missing."""
    row: Row = {"trial_id": facts.name}
    row["status"] = facts.recorded.get("status", "running")
    for names, data, label in (
        (_PLANNED, facts.planned, facts.planned_in),
        (_RECORDED, facts.recorded, facts.recorded_in),
        (_OF_MACHINE, facts.machine, facts.recorded_in),
    ):
        for name in names:
            row[name] = field(data, name, TRIALS[name][0], label, problems)
    label = facts.recorded_in
    row |= _end(facts.recorded, label, problems)
    row["device"] = _device(part(facts.machine, "device", label, problems))
    row["code"] = _code(facts.machine.get("code"))
    row |= _metrics(facts.recorded, objectives, label, problems)
    row |= {_config_column(name): value for name, value in facts.config.items()}
    versions = part(facts.machine, "versions", label, problems).items()
    return row | {
        f"version/{clean_text(k)}": None if v is None else str(v) for k, v in versions
    }


def _end(record: Row, label: str, problems: list[str]) -> Row:
    """Why a trial ended, where it did not complete."""
    row: Row = {}
    if isinstance(pruned := record.get("pruned"), dict):
        row["pruned_stage"] = field(pruned, "stage", "string", label, problems)
        row["pruned_epoch"] = field(pruned, "epoch", "Int64", label, problems)
    error = record.get("error")
    if isinstance(error, dict):
        row["error"] = f"{error.get('type', 'Error')}: {error.get('message', '')}"
        row["error_traceback"] = field(error, "traceback", "string", label, problems)
    elif error is not None:
        row["error"] = str(error)
    return row


def _device(device: Mapping[str, Any]) -> str | None:
    """'cuda, NVIDIA H100, 8 threads'."""
    parts = [str(device[k]) for k in ("type", "name") if device.get(k)]
    if threads := device.get("threads"):
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join(dict.fromkeys(parts)) or None


def _code(code: Any) -> str | None:
    """The commit, or without git the hash of the files; '+' where there were changes."""
    if not isinstance(code, dict):
        return None
    version = code.get("commit") or code.get("sha256")
    return str(version) + ("+" if code.get("dirty") else "") if version else None


def _metrics(
    record: Row, objectives: Collection[str], label: str, problems: list[str]
) -> Row:
    row: Row = {}
    metrics = record.get("metrics") or {}
    if len(metrics) > MOST_METRICS:
        problems.append(
            f"{label}: {len(metrics):,} metrics; {MOST_METRICS:,} are read, the objectives first"
        )
        kept = sorted(metrics, key=lambda name: name not in objectives)[:MOST_METRICS]
        metrics = {name: metrics[name] for name in kept}
    for name, value in metrics.items():
        if name in objectives and value is not None and as_float(value) is None:
            problems.append(f"{label}: objective {name!r} is {value!r}, not a number")
            value = None
        row[f"metric/{clean_text(name)}"] = value
    return row


def measured_again(
    row: Row, content: Row | None, label: str, problems: list[str]
) -> Row:
    """Columns of a trial's `row` in place of which a later measurement counts, and what they had
    held, as `search_<metric>`.
    """
    if content is None or row["status"] != "complete":
        return {}
    if not _is_of(content, row["trial_id"], label, problems):
        return {}
    found: Row = {}
    for name, value in part(content, "metrics", label, problems).items():
        column = f"metric/{clean_text(name)}"
        if column not in row:
            continue
        if as_float(value) is None:
            problems.append(f"{label}: metric {name!r} is {value!r}, not a number")
            continue
        found[column] = value
        found[f"metric/{SEARCH_PREFIX}{clean_text(name)}"] = row[column]
    return found


@lru_cache(maxsize=10_000)
def _config_column(name: str) -> str:
    return f"config/{clean_text(name)}"


def stage_rows(facts: Facts, problems: list[str]) -> list[Row]:
    """A row for each stage that the trial has run."""
    stages, label = facts.recorded.get("stages") or [], facts.recorded_in
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        problems.append(f"{label}: stages must be a list of JSON objects")
        return []
    rows = []
    for stage in stages:
        row = {
            k: field(stage, k, t, label, problems) for k, (t, _, _) in STAGES.items()
        }
        metrics = stage.get("metrics")
        if isinstance(metrics, dict):
            row |= {f"metric/{clean_text(k)}": value for k, value in metrics.items()}
        rows.append(row | {"trial_id": facts.name})
    return rows
