"""A trial once more, on one node and without Ray, from its record alone.

Nothing comes from the stage cache: the work is done again in a folder of its own. On the
CPU with the same threads, one worker and the same libraries the metrics are the same to the
last bit; where a condition differs, within a tolerance. A trial of several workers runs
here as one that accumulates what its workers had.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.keys import library_versions
from sweeps.run.code_version import code_version
from sweeps.run.record import named_record
from sweeps.spec.stages import build_stage
from sweeps.trial.attempt import cpu_name
from sweeps.trial.execute import Plan, Row, execute, pipeline_of
from trainers.config import FitOptions
from trainers.data.splits import load_data
from trainers.files import default_data_cache
from trainers.models.source import load_source
from trainers.seeding import derive_seed

DEFAULT_TOLERANCE = 0.05


class CannotReproduceError(ValueError):
    """What a trial needs is missing or is not what it was."""


@dataclass(frozen=True)
class Comparison:
    """One metric, then and now. `difference` is None for text; `same` by the rule that applies."""

    name: str
    old: Any
    new: Any
    difference: float | None
    same: bool


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        rows: every metric that is not a measured time.
        conditions: in what this machine or run differs from the trial's; none: identity is
            expected.
        notes: what else is worth knowing.
        tolerance: allowed |new - old| / max(1, |old|); 0 where identity is expected.
    """

    rows: list[Comparison]
    conditions: list[str]
    notes: list[str]
    tolerance: float

    @property
    def same(self) -> bool:
        return all(row.same for row in self.rows)


def read_record(run: Path, trial_id: str) -> dict[str, Any]:
    """A complete trial's record.

    Raises:
        CannotReproduceError: none of that name, not complete, or one that lacks what is needed.
    """
    try:
        record = named_record(run, trial_id)
    except ValueError as error:
        raise CannotReproduceError(str(error)) from None
    if record.status != "complete":
        raise CannotReproduceError(
            f"trial {trial_id} is {record.status}; only a complete trial can be"
            " compared"
        )
    if not record.content.get("inputs"):
        raise CannotReproduceError(
            f"trial {trial_id}: its record lacks the hashes of its inputs; an older"
            " version wrote it"
        )
    return record.content


def reproduce(
    record: dict[str, Any],
    *,
    device: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    data_cache: Path | None = None,
) -> Reproduction:
    """Run a record's trial again and compare.

    Args:
        record: of a complete trial.
        device: cpu or cuda; default: the record's.
        tolerance: where identity cannot be expected.

    Raises:
        CannotReproduceError: data, source or device are missing or differ from the trial's.
    """
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        plan = plan_of(
            record,
            Path(folder),
            device or record["device"]["type"],
            data_cache or default_data_cache(),
        )
        _check_device(plan)
        _check_inputs(plan, record["inputs"])
        stages: list[Row] = []
        try:
            done = execute(plan, lambda row: None, stages.append)
        except (ValueError, OSError) as error:
            raise CannotReproduceError(
                f"the trial does not run here: {error}"
            ) from error
    conditions = list(_conditions(record, plan))
    allowed = tolerance if conditions else 0.0
    rows = list(_compared(record["metrics"], done.metrics, allowed))
    return Reproduction(
        rows, conditions, list(_notes(record, stages, bool(conditions))), allowed
    )


def plan_of(
    record: dict[str, Any], folder: Path, device: str, data_cache: Path
) -> Plan:
    """The plan of a record's trial for one process, with its cache in `folder`."""
    workers = record["world_size"]
    stages = (
        record["pipeline"]
        if workers == 1
        else [_accumulating(stage, workers) for stage in record["pipeline"]]
    )
    same = {
        key: record[key]
        for key in (
            "trial_id",
            "number",
            "replicate",
            "seed",
            "source",
            "data",
            "config",
            "params",
        )
    }
    return same | {
        "stages": stages,
        "run": str(folder),
        "cache": str(folder / "cache"),
        "data_cache": str(data_cache),
        "measure": record["measure"] | {"latency": False},
        "device": device,
        "threads": record["device"]["threads"],
        "workers": 1,
        "max_failures": 0,
    }


def _accumulating(stage: dict[str, Any], workers: int) -> dict[str, Any]:
    """A stage's plan whose micro-batches are those that each of several workers had."""
    config = build_stage(stage["stage"], stage["config"], f"stages.{stage['name']}")
    if not isinstance(config, FitOptions):
        return stage
    micro_batch, _ = config.accumulation(workers)
    return stage | {"config": stage["config"] | {"max_batch_per_worker": micro_batch}}


def _check_device(plan: Plan) -> None:
    if plan["device"] == "cuda" and not torch.cuda.is_available():
        raise CannotReproduceError(
            "the trial ran on a GPU and there is none here; --device cpu compares"
            " within a tolerance"
        )


def _check_inputs(plan: Plan, wanted: dict[str, str]) -> None:
    pipeline = pipeline_of(plan)
    try:
        data = load_data(pipeline.data, Path(plan["data_cache"]))
    except (ValueError, OSError) as error:
        raise CannotReproduceError(f"the data cannot be read: {error}") from error
    if data.fingerprint != wanted["data"]:
        where = pipeline.data.root or pipeline.data.dataset
        raise CannotReproduceError(
            f"the data in {where} are not the trial's: fingerprint"
            f" {data.fingerprint[:12]} here, {wanted['data'][:12]} then"
        )
    try:
        source = load_source(
            pipeline.source,
            num_classes=data.info.num_classes,
            image_size=data.info.image_size,
            seed=derive_seed(pipeline.seed, "source"),
        )
    except (ValueError, OSError) as error:
        raise CannotReproduceError(
            f"the source model cannot be read: {error}"
        ) from error
    if source.hash() != wanted["source"]:
        name = pipeline.source.checkpoint or pipeline.source.model
        raise CannotReproduceError(
            f"the source model {name} is not the trial's: hash {source.hash()[:12]}"
            f" here, {wanted['source'][:12]} then"
        )


def _conditions(record: dict[str, Any], plan: Plan) -> Iterator[str]:
    """What lets bits differ."""
    here = library_versions()
    for name, version in record["versions"].items():
        if here.get(name) != version:
            yield f"{name} {version} then, {here.get(name)} now"
    if record["device"]["type"] != plan["device"]:
        yield f"on {record['device']['type']} then, on {plan['device']} now"
    elif plan["device"] == "cuda":
        yield "on a GPU sums have no fixed order"
    elif record["device"]["name"] != cpu_name():
        yield f"another processor: {record['device']['name']} then, {cpu_name()} now"
    if record["world_size"] > 1:
        yield (
            f"{record['world_size']} workers then, one that accumulates now: same"
            " batches, other draws of augmentation and dropout"
        )
    for stage in record["pipeline"]:
        if (
            stage["config"].get("latency") == "measured"
            and stage["config"].get("table") is None
        ):
            yield f"stage {stage['name']} decides by latencies that it measures"


def _notes(
    record: dict[str, Any], stages: list[Row], other_conditions: bool
) -> Iterator[str]:
    then, now = record.get("code") or {}, code_version()
    if then.get("sha256") != now["sha256"]:
        yield f"the code differs: commit {_commit(then)} then, {_commit(now)} now"
    if not other_conditions:
        for old, new in zip(record["stages"], stages, strict=True):
            if old["key"] != new["key"]:
                yield (
                    f"from stage {old['name']} on the inputs differ: a teacher, a table"
                    " or a stage's version"
                )
                return


def _commit(code: dict[str, Any]) -> str:
    return f"{(code.get('commit') or 'unknown')[:12]}{' with changes' if code.get('dirty') else ''}"


def is_measured(name: str) -> bool:
    """Whether a metric is a time, or made of times: no run gives it twice."""
    made_of_times = (
        name.endswith(("_measured", "_ms", "_seconds", "_per_second"))
        or name == "not_faster"
    )
    return made_of_times or (
        name.startswith("latency") and not name.endswith("_estimated")
    )


def _compared(
    old: dict[str, Any], new: dict[str, Any], tolerance: float
) -> Iterator[Comparison]:
    for name in dict.fromkeys([*old, *new]):
        if is_measured(name):
            continue
        before: Any = old.get(name)
        after: Any = new.get(name)
        if not (_is_number(before) and _is_number(after)):
            yield Comparison(name, before, after, None, before == after)
            continue
        difference = after - before
        same = before == after or (math.isnan(before) and math.isnan(after))
        yield Comparison(
            name,
            before,
            after,
            difference,
            same or abs(difference) <= tolerance * max(1.0, abs(before)),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
