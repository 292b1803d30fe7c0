"""A trial once more, on one node and without Ray, from its plan and record alone.

Nothing comes from the stage cache: the work is done again in a folder of its own. On the CPU
with the same threads, one worker and the same libraries the metrics are the same to the last
bit; where a condition differs, they are the same within a tolerance that follows from what each
metric is (`allowed_difference`). A trial of several workers
runs here as one that accumulates the batches that its workers had.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.keys import library_versions
from compress.metrics import METRICS, trial_metrics
from compress.pipeline import stages
from sweeps.run.code_version import code_version
from sweeps.run.plan import Site, StageSpec, TrialPlan
from sweeps.run.record import Machine, StageRow, TrialRecord, named_record
from sweeps.spec.stages import build_stage
from sweeps.trial.execute import execute, pipeline_of
from trainers import plugins
from trainers.config import FitOptions
from trainers.data.info import DataInfo
from trainers.data.splits import load_data
from trainers.files import default_data_cache
from trainers.machine import processor_name
from trainers.models.source import load_source
from trainers.seeding import derive_seed

STANDARD_ERRORS = 3.0
"""How many standard errors two shares of the same images may differ by."""
COMPUTED = 1e-6
"""Relative rounding of what is computed from a model's shape, such as gmacs."""
MEASURED = 0.05
"""Relative difference of other measured values, such as a loss."""


class CannotReproduceError(ValueError):
    """What a trial needs is missing or is not what it was."""


@dataclass(frozen=True)
class Comparison:
    """One metric, then and now. `difference` is None for text; `same` by `rule`, words for what
    may differ.
    """

    name: str
    old: Any
    new: Any
    difference: float | None
    same: bool
    rule: str = "equal"


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        rows: every metric of the trial's that is not a measured time.
        conditions: in what this machine or run differs from the trial's; none: identity is
            expected.
        notes: what else is worth knowing.
        is_exact: identity was expected.
    """

    rows: list[Comparison]
    conditions: list[str]
    notes: list[str]
    is_exact: bool

    @property
    def same(self) -> bool:
        return all(row.same for row in self.rows)


def read_record(run: Path, trial_id: str) -> TrialRecord:
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
            f"trial {trial_id} is {record.status}; only a complete trial can be compared"
        )
    if not record.outcome.inputs:
        raise CannotReproduceError(
            f"trial {trial_id}: its record lacks the hashes of its inputs; a version"
            " before 0.1 wrote it"
        )
    return record


def reproduce(
    record: TrialRecord,
    *,
    device: str | None = None,
    tolerance: float | None = None,
    data_cache: Path | None = None,
) -> Reproduction:
    """Run a record's trial again and compare.

    Args:
        record: of a complete trial.
        device: cpu or cuda; default: the record's.
        tolerance: allowed |new - old| / max(1, |old|) of every metric where identity cannot be
            expected; default: what follows from each metric.

    Raises:
        CannotReproduceError: data, source, device or a plugin are missing or are not the trial's.
    """
    machine = record.machine
    assert machine is not None, "a complete trial has run somewhere"
    try:
        plugins.require_unchanged(record.plan.plugins)
    except ValueError as error:
        raise CannotReproduceError(f"trial {record.trial_id}: {error}") from error
    plan = plan_again(record)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        site = site_again(
            machine,
            Path(folder),
            device or machine.device.type,
            data_cache or default_data_cache(),
        )
        _check_device(site)
        info = _check_inputs(plan, site, record.outcome.inputs)
        rows_now: list[StageRow] = []
        try:
            done = execute(plan, site, lambda row: None, rows_now.append)
        except (ValueError, OSError) as error:
            raise CannotReproduceError(
                f"the trial does not run here: {error}"
            ) from error
    conditions = list(_conditions(record, machine, site))
    rule: Rule = _equal
    if conditions and tolerance is not None:
        rule = functools.partial(_within, tolerance)
    elif conditions:
        rule = functools.partial(allowed_difference, num_images=_num_images(info))
    rows = list(_compared(record, done.metrics, rule))
    added = [name for name in done.metrics if name not in record.outcome.metrics]
    notes = list(_notes(record, machine, rows_now, added, bool(conditions)))
    return Reproduction(rows, conditions, notes, not conditions)


def plan_again(record: TrialRecord) -> TrialPlan:
    """The plan of a record's trial for one process that measures no time."""
    plan, machine = record.plan, record.machine
    workers = 1 if machine is None else machine.world_size
    specs = plan.stages
    if workers > 1:
        specs = tuple(_accumulating(stage, workers) for stage in specs)
    measure = plan.measure.model_copy(update={"latency": False})
    update = {"stages": specs, "measure": measure, "stopping": None}
    return plan.model_copy(update=update)


def site_again(machine: Machine, folder: Path, device: str, data_cache: Path) -> Site:
    """One process on this machine, with its stage cache in `folder`."""
    return Site(
        run=folder,
        cache=folder / "cache",
        data_cache=data_cache,
        device="cuda" if device == "cuda" else "cpu",
        threads=machine.device.threads,
    )


def _accumulating(stage: StageSpec, workers: int) -> StageSpec:
    """A stage whose micro-batches are those that each of several workers had."""
    config = build_stage(stage.kind, stage.config, f"stages.{stage.name}")
    if not isinstance(config, FitOptions):
        return stage
    micro_batch, _ = config.accumulation(workers)
    changed = stage.config | {"max_batch_per_worker": micro_batch}
    return stage.model_copy(update={"config": changed})


def _check_device(site: Site) -> None:
    if site.device == "cuda" and not torch.cuda.is_available():
        raise CannotReproduceError(
            "the trial ran on a GPU and there is none here; --device cpu compares"
            " within a tolerance"
        )


def _check_inputs(plan: TrialPlan, site: Site, wanted: dict[str, str]) -> DataInfo:
    pipeline = pipeline_of(plan)
    try:
        data = load_data(pipeline.data, site.data_cache)
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
    return data.info


def _conditions(record: TrialRecord, machine: Machine, site: Site) -> Iterator[str]:
    """In what this machine differs from the trial's, so that bits may differ."""
    here = library_versions()
    for name, version in machine.versions.items():
        if here.get(name) != version:
            yield f"{name} {version} then, {here.get(name)} now"
    if machine.device.type != site.device:
        yield f"on {machine.device.type} then, on {site.device} now"
    elif site.device == "cuda":
        yield "on a GPU sums have no fixed order"
    elif machine.device.name != processor_name():
        yield f"another processor: {machine.device.name} then, {processor_name()} now"
    if machine.world_size > 1:
        shared = " that shared each model" if machine.strategy == "fsdp" else ""
        yield (
            f"{machine.world_size} workers{shared} then, one that accumulates now: same"
            " batches, other draws of augmentation and dropout"
        )
    for stage in record.plan.stages:
        measures = stage.config.get("latency") == "measured"
        if measures and stage.config.get("table") is None:
            yield f"stage {stage.name} decides by latencies that it measures"


def _notes(
    record: TrialRecord,
    machine: Machine,
    stage_rows: list[StageRow],
    added: Sequence[str],
    other_conditions: bool,
) -> Iterator[str]:
    then, now = machine.code, code_version()
    if then.get("sha256") != now["sha256"]:
        yield f"the code differs: commit {_commit(then)} then, {_commit(now)} now"
    if added:
        yield f"measured now, and not then: {', '.join(added)}"
    if not other_conditions:
        for old, new in zip(record.outcome.stage_runs, stage_rows, strict=True):
            if old.key != new.key:
                yield (
                    f"from stage {old.name} on the inputs differ: a teacher, a table"
                    " or a stage's version"
                )
                return


def _commit(code: dict[str, Any]) -> str:
    commit = str(code.get("commit") or "unknown")[:12]
    return f"{commit}{' with changes' if code.get('dirty') else ''}"


def times_of(record: TrialRecord) -> set[str]:
    """Metrics of such a trial that are times or made of times: no run gives them twice."""
    known = stages()
    kinds = [known[stage.kind] for stage in record.plan.stages if stage.kind in known]
    runtimes = tuple(record.plan.measure.runtimes)
    known_metrics = trial_metrics(kinds, runtimes=runtimes)
    return {m.name for m in known_metrics.values() if m.is_time}


Rule = Callable[[str, float, float], tuple[float, str]]
"""(metric, then, now) → the largest |now - then| that counts as the same, and why in words."""


def _equal(name: str, then: float, now: float) -> tuple[float, str]:
    return 0.0, "equal"


def _within(tolerance: float, name: str, then: float, now: float) -> tuple[float, str]:
    allowed = tolerance * max(1.0, abs(then))
    return allowed, f"within {allowed:.3g}, as asked for"


def _num_images(info: DataInfo) -> dict[bool, int]:
    """Images that a metric is of: of the test set, else of the validation part."""
    return {True: info.num_test, False: info.num_val or info.num_test}


def allowed_difference(
    name: str, then: float, now: float, *, num_images: dict[bool, int]
) -> tuple[float, str]:
    """How far two values of a metric may lie apart where the last bits may differ.

    A share of n images has the binomial standard error sqrt(p (1 - p) / n), the difference of two
    such shares sqrt(2) of it; one image more or less is always allowed. `num_params` is equal,
    `gmacs` equal but for rounding; all else follows from the weights: within `MEASURED`.

    Args:
        num_images: of the test set (True) and of the validation part (False).
    """
    metric = METRICS.get(name)
    if metric is not None and metric.unit == "fraction":
        images = num_images[name.startswith("test_")]
        share = min(1.0, max(0.0, (then + now) / 2))
        error = math.sqrt(2 * share * (1 - share) / images)
        allowed = max(STANDARD_ERRORS * error, 1.5 / images)
        return allowed, f"within {allowed:.3g}: 3 standard errors of {images:,} images"
    if name == "num_params":
        return 0.0, "a count: equal"
    if name == "gmacs":
        return COMPUTED * abs(then), f"within {COMPUTED:g} of it: computed from shapes"
    return MEASURED * abs(then), f"within {MEASURED:.0%} of it"


def _compared(
    record: TrialRecord, new: dict[str, Any], rule: Rule
) -> Iterator[Comparison]:
    old, times = record.outcome.metrics, times_of(record)
    for name in old:
        if name in times:
            continue
        before: Any = old.get(name)
        after: Any = new.get(name)
        if not (_is_number(before) and _is_number(after)):
            yield Comparison(name, before, after, None, before == after)
            continue
        difference = after - before
        allowed, words = rule(name, before, after)
        same = before == after or (math.isnan(before) and math.isnan(after))
        same = same or abs(difference) <= allowed
        yield Comparison(name, before, after, difference, same, words)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
