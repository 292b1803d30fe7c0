"""Models of finished trials, and their coded files."""

import json
import re
from pathlib import Path

import safetensors.torch

from compress.cache import StageCache
from compress.codec.file import CodedSize, decode, encode
from sweeps.run.plan import TrialPlan
from sweeps.run.record import named_record
from trainers.data.splits import data_info
from trainers.files import write_atomic
from trainers.models.arch import ModelState
from trainers.models.source import load_source
from trainers.seeding import derive_seed


def trial_model(run: Path, trial_id: str) -> ModelState:
    """The model that a trial ended with, from the stage cache beside its run folder.

    Raises:
        ValueError: no such trial, one that is not complete, or a model that is no longer in
            the cache.
    """
    record = named_record(run, trial_id)
    if record.status != "complete":
        raise ValueError(
            f"trial {trial_id} is {record.status}; only complete trials have a model"
        )
    if not record.outcome.stage_runs:
        return _source_of(record.plan)
    key = record.outcome.stage_runs[-1].key
    if not re.fullmatch("[0-9a-f]{64}", key):  # it becomes a path
        raise ValueError(
            f"trial {trial_id}: its record is damaged, {key!r} is no key of the stage"
            " cache"
        )
    artifact = StageCache(run.parent / "_cache").load(key)
    if artifact is None:
        raise ValueError(
            f"trial {trial_id}: its model {key[:12]} is not in {run.parent / '_cache'};"
            " run the sweep again"
        )
    return artifact.model


def _source_of(plan: TrialPlan) -> ModelState:
    """The source itself, which a trial without stages ends with."""
    info = data_info(plan.data)
    return load_source(
        plan.source,
        num_classes=info.num_classes,
        image_size=info.image_size,
        seed=derive_seed(plan.seed, "source"),
    )


def pack(run: Path, trial_id: str, out: Path) -> CodedSize:
    """Write a trial's model as a coded file.

    Raises:
        ValueError: see `trial_model`.
    """
    return encode(trial_model(run, trial_id), out).size


def unpack(coded: Path, out: Path) -> ModelState:
    """Write a coded file's tensors as safetensors, the architecture in its metadata.

    Raises:
        ValueError: not a coded model, or a damaged one.
    """
    state = decode(coded)
    metadata = {
        "arch": json.dumps(state.arch.to_json()),
        "meta": json.dumps(state.meta),
    }
    write_atomic(
        out,
        safetensors.torch.save(
            {k: v.contiguous() for k, v in state.weights.items()}, metadata
        ),
    )
    return state
