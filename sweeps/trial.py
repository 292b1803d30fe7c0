"""One trial: config in, record and metrics out. Runs anywhere, without Ray."""

import os
import platform
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compress.cache import StageCache
from compress.codec import encode
from compress.measure import measure_latency, measure_static
from compress.measure_layers import measure_layers
from compress.pipeline import NamedStage, Pipeline, PipelineResult, StageRun, library_versions, run_pipeline
from sweeps.records import TrialRecord, trial_folder
from sweeps.spec import Measure, build_stage, validated
from trainers.config import DataConfig
from trainers.data import load_data
from trainers.evaluate import evaluate
from trainers.fit import NonFiniteLossError
from trainers.models import ModelState
from trainers.source_model import SourceConfig

Plan = dict[str, Any]
"""JSON-able: trial_id, number, replicate, seed, source, data, stages, measure, config, params, run, cache,
data_cache, device, threads, max_failures."""


def pipeline_of(plan: Plan) -> Pipeline:
    """The validated pipeline of a plan."""
    stages = [
        NamedStage(s["name"], s["stage"], build_stage(s["stage"], s["config"], f"stages.{s['name']}"))
        for s in plan["stages"]
    ]
    source = validated(SourceConfig, plan["source"], "source")
    data = validated(DataConfig, plan["data"], "data")
    return Pipeline(source, data, tuple(stages), plan["seed"])


def run_trial(plan: Plan) -> dict[str, Any]:
    """Run a trial to a final record; every failure of the trial ends in the record, not in the caller.

    Returns:
        {"status": "complete" or "failed", "metrics": name → value}
    """
    folder = trial_folder(Path(plan["run"]), plan["trial_id"])
    retries_left = plan["max_failures"]
    earlier = TrialRecord.read(folder)
    if earlier is not None and earlier.status == "running":
        retries_left -= earlier.content.get("attempts", 1)  # attempts whose process died
    while True:
        record = TrialRecord.begin(folder, _facts(plan))
        begun = time.perf_counter()
        try:
            metrics = _attempt(plan, record)
        except Exception as error:  # noqa: BLE001 (the boundary: whatever a stage raises belongs in the record)
            record.finish("failed", error=error, seconds=time.perf_counter() - begun)
            # the same bits would fail the same way again
            deterministic = isinstance(error, NonFiniteLossError | ValueError)
            if deterministic or retries_left <= 0:
                return {"status": "failed", "metrics": {}}
            retries_left -= 1
            continue
        except BaseException as error:
            record.finish("interrupted", error=error, seconds=time.perf_counter() - begun)
            raise
        return {"status": "complete", "metrics": metrics}


def _facts(plan: Plan) -> dict[str, Any]:
    keep = ("trial_id", "number", "replicate", "seed", "config", "params", "source", "data", "measure")
    device = torch.device(plan["device"])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {key: plan[key] for key in keep} | {
        "pipeline": plan["stages"],
        "versions": library_versions(),
        "device": {"type": device.type, "name": name, "threads": plan["threads"]},
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _attempt(plan: Plan, record: TrialRecord) -> dict[str, Any]:
    torch.set_num_threads(plan["threads"])
    begun = time.perf_counter()
    device = torch.device(plan["device"])
    pipeline = pipeline_of(plan)

    def note_stage(run: StageRun) -> None:
        row = asdict(run)
        record.add_stage({"stage": row.pop("kind"), **row})

    result = run_pipeline(
        pipeline, cache=StageCache(Path(plan["cache"])), data_cache=Path(plan["data_cache"]),
        device=device, on_epoch=record.add_epoch, on_stage=note_stage,
    )  # fmt: skip
    metrics = _measured(pipeline, result, plan, device)
    record.set_layers(measure_layers(result.model))
    seconds = time.perf_counter() - begun
    saved = sum(s.seconds_full - s.seconds for s in result.stages if s.cached)
    record.finish("complete", metrics=metrics, seconds=seconds, seconds_full=seconds + max(0.0, saved))
    return metrics


def _measured(pipeline: Pipeline, result: PipelineResult, plan: Plan, device: torch.device) -> dict[str, Any]:
    """All metrics of the final model: on the validation part for the search, on the test set once, to report."""
    data = load_data(pipeline.data, Path(plan["data_cache"]))
    model: ModelState = result.model
    module = model.build().to(device)
    metrics: dict[str, Any] = dict(result.metrics)
    if data.size("val"):
        metrics |= evaluate(module, data, "val", device)
    if data.size("test"):
        metrics |= {f"test_{name}": value for name, value in evaluate(module, data, "test", device).items()}
    metrics |= measure_static(model, data.info.image_size)
    if any(stage.config.phase == "quantize" for stage in pipeline.stages):
        metrics |= _coded(model, metrics)
    wanted = validated(Measure, plan["measure"], "measure")
    if wanted.latency:
        latency = measure_latency(
            module, data.info.image_size, device, batch_size=wanted.batch_size, dtype=wanted.precision,
            warmup=wanted.warmup, repeats=wanted.repeats, max_seconds=wanted.max_seconds,
        )  # fmt: skip
        metrics |= {
            "latency_ms": latency.median_ms, "latency_p25_ms": latency.p25_ms, "latency_p75_ms": latency.p75_ms,
            "latency_batch_size": latency.batch_size, "latency_repeats": latency.repeats, "latency_dtype": latency.dtype,
        }  # fmt: skip
    return metrics


def _coded(model: ModelState, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the coded model file takes; the last two only where weights share values."""
    size = encode(model).size
    coded: dict[str, Any] = {
        "coded_bytes": size.total_bytes, "coded_ratio": metrics["model_bytes"] / size.total_bytes,
    }  # fmt: skip
    if size.coded_weights and metrics["entropy_bits"]:
        bits = 8 * size.index_bytes / size.coded_weights
        coded |= {"coded_bits_per_weight": bits, "coded_to_entropy": bits / metrics["entropy_bits"]}
    return coded
