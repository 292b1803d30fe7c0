"""The latencies of several finished trials, measured in turns, so that they can be compared.

While a search runs, its trials are measured minutes or hours apart. Here their models take turns
within one process, pass by pass, beside the models that they began with. It runs without Ray.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compress.measure.latency import (
    latency_metrics,
    measuring_turn,
    summary,
    times_in_turns,
)
from compress.measure.through_runtime import Deployed, batch_of, deploy
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.trial.execute import stage_cache
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.models.source import load_source
from trainers.seeding import derive_seed

MAX_SECONDS = 60.0
"""Time of all timed passes of a runtime together, but for the least number of rounds."""
MOST_ROUNDS = 100
"""More say no more: in each, every model settles before its pass is timed."""


def measure_in_turns(
    trial_ids: Sequence[str], site: Site, prefixes: Sequence[str] = ("",)
) -> dict[str, Any]:
    """Measure the final models of these trials once more, nothing else running on this node.

    Trials whose model is not in the stage cache, as far as this node sees it, are left out.

    Args:
        prefixes: what the metrics of each runtime begin with (`MeasureConfig.runtimes`).

    Returns:
        `host`, `alone`, `rounds`, and `metrics`: name → value of each trial by its id.
    """
    torch.set_num_threads(site.threads)
    records = (TrialRecord.read(trial_folder(site.run, name)) for name in trial_ids)
    models = {
        record.trial_id: (record.plan, model)
        for record in records
        if record is not None and (model := _final_model(record, site)) is not None
    }
    metrics: dict[str, dict[str, Any]] = {name: {} for name in models}
    found = {"host": socket.gethostname(), "alone": True, "rounds": 0}
    for prefix in prefixes if models else ():
        quiet, rounds = _in_runtime(models, site, prefix, metrics)
        found |= {"alone": quiet and found["alone"], "rounds": rounds}
    return found | {"metrics": metrics}


def _in_runtime(
    models: Mapping[str, tuple[TrialPlan, ModelState]],
    site: Site,
    prefix: str,
    metrics: Mapping[str, dict[str, Any]],
) -> tuple[bool, int]:
    """Fill `metrics` with the latencies of one runtime; whether alone, and in how many rounds."""
    deployed: dict[str, Deployed] = {}
    source_of: dict[str, str] = {}
    for name, (plan, model) in models.items():
        source = f"source {json.dumps(plan.source.model_dump(mode='json'))}"
        source_of[name] = source
        deployed[name] = _deployed(model, plan, site, prefix)
        if source not in deployed:
            deployed[source] = _deployed(_source(plan, site), plan, site, prefix)
    plan = next(iter(models.values()))[0]
    options, size = plan.measure, load_data(plan.data, site.data_cache).info.image_size
    batch_size = options.runtimes[prefix].batch_size
    passes = [
        each.session.timed_pass(batch_of(each.state, size, batch_size))
        for each in deployed.values()
    ]
    device = next(iter(deployed.values())).device
    with measuring_turn(torch.device(device), options, MAX_SECONDS) as quiet:
        times = times_in_turns(
            passes,
            warmup=options.warmup,
            rounds=min(options.repeats, MOST_ROUNDS),
            max_seconds=MAX_SECONDS,
        )
    by_name = dict(zip(deployed, times, strict=True))
    for name, source in source_of.items():
        timing = summary([[ms] for ms in by_name[name]], by_name[source])
        values = latency_metrics(timing)
        values["throughput"] = 1000 * batch_size / timing.median_ms
        metrics[name].update({prefix + key: value for key, value in values.items()})
    return quiet, len(times[0])


def _final_model(record: TrialRecord, site: Site) -> ModelState | None:
    """The model that a trial ended with; None where the stage cache has it no more."""
    runs = record.outcome.stage_runs
    if not runs:
        return _source(record.plan, site)
    key = runs[-1].key
    if not re.fullmatch("[0-9a-f]{64}", key):  # it becomes a path
        return None
    artifact = stage_cache(site).load(key)
    return None if artifact is None else artifact.model


def _source(plan: TrialPlan, site: Site) -> ModelState:
    info = load_data(plan.data, site.data_cache).info
    return load_source(
        plan.source,
        num_classes=info.num_classes,
        image_size=info.image_size,
        seed=derive_seed(plan.seed, "source"),
    )


def _deployed(state: ModelState, plan: TrialPlan, site: Site, prefix: str) -> Deployed:
    """A model as its trial measured it: the same runtime, precision, batch and threads."""
    size = load_data(plan.data, site.data_cache).info.image_size
    return deploy(state, size, plan.measure.runtimes[prefix], site.device)
