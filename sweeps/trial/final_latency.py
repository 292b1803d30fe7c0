"""The latencies of several finished trials, measured in turns, so that they can be compared.

While a search runs, its trials are measured minutes or hours apart. Here their models take turns
within one process, pass by pass, beside the models that they began with. It runs without Ray.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
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
"""Time of all timed passes together, but for the least number of rounds."""

Found = Mapping[str, Any]
"""`host`, `alone`, `rounds`, and `metrics` of each trial by its id."""


def measure_in_turns(trial_ids: Sequence[str], site: Site) -> dict[str, Any]:
    """Measure the final models of these trials once more, nothing else running on this node.

    Trials whose model is not in the stage cache, as far as this node sees it, are left out.

    Returns:
        See `Found`.
    """
    torch.set_num_threads(site.threads)
    device = torch.device(site.device)
    models: dict[str, Deployed] = {}
    image_size = 0
    source_of: dict[str, str] = {}
    records = [TrialRecord.read(trial_folder(site.run, name)) for name in trial_ids]
    kept = [record for record in records if record is not None]
    for record in kept:
        model = _final_model(record, site)
        if model is None:
            continue
        plan = record.plan
        source = f"source {json.dumps(plan.source.model_dump(mode='json'))}"
        source_of[record.trial_id] = source
        image_size = load_data(plan.data, site.data_cache).info.image_size
        models[record.trial_id] = _deployed(model, plan, site, device)
        if source not in models:
            models[source] = _deployed(_source(plan, site), plan, site, device)
    if not models:
        return {
            "host": socket.gethostname(),
            "alone": False,
            "rounds": 0,
            "metrics": {},
        }
    options = kept[0].plan.measure
    passes = {name: _pass(model, image_size) for name, model in models.items()}
    turn = measuring_turn(device, options, MAX_SECONDS)
    with turn as quiet, torch.inference_mode():
        times = times_in_turns(
            list(passes.values()),
            warmup=options.warmup,
            rounds=options.repeats,
            max_seconds=MAX_SECONDS,
        )
    by_name = dict(zip(passes, times, strict=True))
    metrics = {
        name: latency_metrics(summary([[ms] for ms in by_name[name]], by_name[source]))
        for name, source in source_of.items()
    }
    return {
        "host": socket.gethostname(),
        "alone": quiet,
        "rounds": len(times[0]),
        "metrics": metrics,
    }


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


def _deployed(
    state: ModelState, plan: TrialPlan, site: Site, device: torch.device
) -> Deployed:
    """The model in the runtime in which its trial was measured."""
    image_size = load_data(plan.data, site.data_cache).info.image_size
    return deploy(state, image_size, plan.measure, device.type)


def _pass(model: Deployed, image_size: int) -> Callable[[], float]:
    images = batch_of(model.state, image_size, model.options.batch_size)
    return model.session.timed_pass(images)
