"""The work of a trial: pipeline and measurements, without records. Runs on every rank of a
trial's workers.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compress.cache import StageCache
from compress.measure.layers import measure_layers
from compress.measure.model import static_cost
from compress.metrics import FinalModel, measure
from compress.pipeline import (
    NamedStage,
    Pipeline,
    PipelineResult,
    StageRun,
    run_pipeline,
)
from sweeps.spec.load import validated
from sweeps.spec.model import Measure
from sweeps.spec.stages import build_stage
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.remote import Remote
from trainers.training import distributed

Plan = dict[str, Any]
"""JSON-able: trial_id, number, replicate, seed, source, data, stages, measure, config,
params, run, cache, data_cache, device, threads, workers, max_failures, objectives, watch,
refines, code, remote."""

Row = dict[str, Any]
RowSink = Callable[[Row], None]


@dataclass(frozen=True)
class Execution:
    """What a trial's work gives. `seconds_full`: what it would have taken without the stage cache.

    Attributes:
        metrics: name → value, of the final model.
        layers: rows of `compress.measure.layers`.
        inputs: hashes of the source's weights and of the data.
    """

    metrics: dict[str, Any]
    layers: list[Row]
    seconds: float
    seconds_full: float
    inputs: dict[str, str]


def pipeline_of(plan: Plan) -> Pipeline:
    """The validated pipeline of a plan."""
    stages = [
        NamedStage(
            s["name"],
            s["stage"],
            build_stage(s["stage"], s["config"], f"stages.{s['name']}"),
        )
        for s in plan["stages"]
    ]
    source = validated(SourceConfig, plan["source"], "source")
    data = validated(DataConfig, plan["data"], "data")
    return Pipeline(source, data, tuple(stages), plan["seed"])


def execute(plan: Plan, on_epoch: RowSink, on_stage: RowSink) -> Execution:
    """Run a plan's pipeline and measure its model.

    In a process group every rank calls this with the same plan; the sinks are called on all
    ranks, at the same points, and rank 0's results are those of the trial.
    """
    torch.set_num_threads(plan["threads"])
    begun = time.perf_counter()
    device = _device(plan["device"])
    pipeline = pipeline_of(plan)

    def note_stage(run: StageRun) -> None:
        row = asdict(run)
        on_stage({"stage": row.pop("kind"), **row})

    on_begin, on_epoch = _with_cost(plan, pipeline, on_epoch)
    result = run_pipeline(
        pipeline,
        cache=_cache(plan),
        data_cache=Path(plan["data_cache"]),
        device=device,
        on_begin=on_begin,
        on_epoch=on_epoch,
        on_stage=note_stage,
    )
    metrics = _measured(pipeline, result, plan, device)
    layers = measure_layers(result.model) if distributed.rank() == 0 else []
    seconds = time.perf_counter() - begun
    saved = sum(s.seconds_full - s.seconds for s in result.stages if s.cached)
    return Execution(metrics, layers, seconds, seconds + max(0.0, saved), result.inputs)


def _with_cost(
    plan: Plan, pipeline: Pipeline, on_epoch: RowSink
) -> tuple[Callable[[NamedStage, ModelState], None], RowSink]:
    """Add what the model costs to the rows of the watched stage, where early stopping
    compares by it.
    """
    watch = plan.get("watch") or {}
    if "cost" not in watch:
        return lambda stage, model: None, on_epoch
    cost: Row = {}

    def on_begin(stage: NamedStage, model: ModelState) -> None:
        if stage.name == watch["stage"]:
            image_size = load_data(
                pipeline.data, Path(plan["data_cache"])
            ).info.image_size
            cost[watch["cost"]] = static_cost(model.arch, image_size)[watch["cost"]]

    def note_epoch(row: Row) -> None:
        on_epoch(row | cost if row["stage"] == watch["stage"] else row)

    return on_begin, note_epoch


def _cache(plan: Plan) -> StageCache:
    remote = Remote(f"{plan['remote']}/_cache") if plan.get("remote") else None
    return StageCache(Path(plan["cache"]), remote=remote)


def _device(kind: str) -> torch.device:
    """With several workers a process may see all GPUs of its node; its own is the current one."""
    if kind == "cuda" and distributed.active():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(kind)


def _measured(
    pipeline: Pipeline, result: PipelineResult, plan: Plan, device: torch.device
) -> dict[str, Any]:
    """All metrics of the final model: on the validation part for the search, on the test
    set once, to report.
    """
    final = FinalModel(
        result.model,
        load_data(pipeline.data, Path(plan["data_cache"])),
        device,
        validated(Measure, plan["measure"], "measure"),
        dict(result.metrics),
    )
    quantized = any(stage.config.phase == "quantize" for stage in pipeline.stages)
    return measure(final, quantized=quantized, rank=distributed.rank())
