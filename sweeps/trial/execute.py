"""The work of a trial: pipeline and measurements, without records.

It runs on every rank of a trial's workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.cache import StageCache
from compress.evaluated import class_rows, recognised_images, shown_predictions
from compress.measure.layers import measure_layers
from compress.measure.model import static_cost
from compress.metrics import FinalModel, measure, needs_quantized
from compress.pipeline import (
    NamedStage,
    Pipeline,
    PipelineResult,
    StageRun,
    run_pipeline,
)
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import Row, StageRow
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import SpecError
from trainers import measuring
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.remote import Remote, child_uri
from trainers.training import distributed

RowSink = Callable[[Row], None]
StageSink = Callable[[StageRow], None]


@dataclass(frozen=True)
class Execution:
    """What a trial's work gives.

    Attributes:
        metrics: name → value, of the final model.
        layers: rows of `compress.measure.layers`.
        seconds: spent, without those in which it stood still while others measured.
        seconds_full: what it would have taken without the stage cache.
        inputs: hashes of the source's weights and of the data.
        classes: rows of `compress.evaluated.class_rows`.
        recognised: what `compress.evaluated.recognised_images` gives.
        predictions: what `compress.evaluated.shown_predictions` gives.
    """

    metrics: dict[str, Any]
    layers: list[Row]
    seconds: float
    seconds_full: float
    inputs: dict[str, str]
    classes: list[Row] = field(default_factory=list)
    recognised: dict[str, Row] = field(default_factory=dict)
    predictions: Row | None = None


def pipeline_of(plan: TrialPlan) -> Pipeline:
    """The validated pipeline of a plan.

    Raises:
        ValueError: a stage that is not known here, or a config that it refuses.
    """
    if plan.refused is not None:
        raise SpecError(plan.refused)
    stages = [
        NamedStage(
            stage.name,
            stage.kind,
            build_stage(stage.kind, stage.config, f"stages.{stage.name}"),
        )
        for stage in plan.stages
    ]
    return Pipeline(plan.source, plan.data, tuple(stages), plan.seed)


def execute(
    plan: TrialPlan, site: Site, on_epoch: RowSink, on_stage: StageSink
) -> Execution:
    """Run a plan's pipeline and measure its model.

    In a process group every rank calls this with the same plan; the sinks are called on all
    ranks, at the same points, and rank 0's results are those of the trial.
    """
    torch.set_num_threads(site.threads)
    device = _device(site.device)
    with measuring.taking_part(device, group=f"{site.run}/{plan.trial_id}"):
        return _execute(plan, site, device, on_epoch, on_stage)


def _execute(
    plan: TrialPlan,
    site: Site,
    device: torch.device,
    on_epoch: RowSink,
    on_stage: StageSink,
) -> Execution:
    begun = measuring.working_seconds()
    pipeline = pipeline_of(plan)
    on_begin, on_epoch = _with_cost(plan, site, on_epoch)
    result = run_pipeline(
        pipeline,
        cache=stage_cache(site),
        data_cache=site.data_cache,
        device=device,
        on_begin=on_begin,
        on_epoch=on_epoch,
        on_stage=lambda run: on_stage(_stage_row(run)),
        strategy=site.strategy,
    )
    final, metrics = _measured(pipeline, result, plan, site, device)
    layers = measure_layers(result.model) if distributed.rank() == 0 else []
    seconds = measuring.working_seconds() - begun
    saved = sum(s.seconds_full - s.seconds for s in result.stages if s.cached)
    # stages that went on from the end of others with fewer epochs
    saved += sum(
        max(0.0, s.seconds_full - s.seconds) for s in result.stages if not s.cached
    )
    return Execution(
        metrics,
        layers,
        seconds,
        seconds + max(0.0, saved),
        result.inputs,
        class_rows(final),
        recognised_images(final),
        shown_predictions(final),
    )


def _stage_row(run: StageRun) -> StageRow:
    return StageRow(
        index=run.index,
        name=run.name,
        stage=run.kind,
        phase=run.phase,
        key=run.key,
        cached=run.cached,
        seconds=run.seconds,
        seconds_full=run.seconds_full,
        metrics=run.metrics,
    )


def _with_cost(
    plan: TrialPlan, site: Site, on_epoch: RowSink
) -> tuple[Callable[[NamedStage, ModelState], None], RowSink]:
    """Add what the model costs to its stage's rows, where a stopping rule compares by that."""
    stopping = plan.stopping
    if stopping is None or stopping.cost is None:
        return lambda stage, model: None, on_epoch
    stage_name, name = stopping.stage, stopping.cost
    cost: Row = {}

    def on_begin(stage: NamedStage, model: ModelState) -> None:
        if stage.name == stage_name:
            image_size = load_data(plan.data, site.data_cache).info.image_size
            cost[name] = static_cost(model.arch, image_size)[name]

    def note_epoch(row: Row) -> None:
        on_epoch(row | cost if row["stage"] == stage_name else row)

    return on_begin, note_epoch


_cleaned: set[Path] = set()


def stage_cache(site: Site) -> StageCache:
    """The stage cache of a site; a process cleans it once."""
    remote = None if site.remote is None else Remote(child_uri(site.remote, "_cache"))
    cache = StageCache(site.cache, remote=remote)
    if site.cache not in _cleaned:
        _cleaned.add(site.cache)
        cache.clean()
    return cache


def _device(kind: str) -> torch.device:
    """With several workers a process may see all GPUs of its node; its own is the current one."""
    if kind == "cuda" and distributed.active():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(kind)


def _measured(
    pipeline: Pipeline,
    result: PipelineResult,
    plan: TrialPlan,
    site: Site,
    device: torch.device,
) -> tuple[FinalModel, dict[str, Any]]:
    """The final model, evaluated on the validation part for the search and on the test set once, to
    report; and all its metrics.
    """
    final = FinalModel(
        result.model,
        load_data(pipeline.data, site.data_cache),
        device,
        plan.measure,
        dict(result.metrics),
        result.source,
        site.cache / "sources" / result.inputs["source"],
    )
    # a baseline without a quantize stage is measured by what the search optimises, too
    quantized = any(stage.config.phase == "quantize" for stage in pipeline.stages)
    quantized |= needs_quantized(objective.metric for objective in site.objectives)
    metrics = measure(final, quantized=quantized, rank=distributed.rank())
    return final, metrics
