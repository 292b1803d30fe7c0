"""Models of finished trials, and their coded files."""

import json
import re
from pathlib import Path

import safetensors.torch

from compress.cache import StageCache
from compress.codec.file import CodedSize, decode, encode
from sweeps.run.record import named_record
from trainers.files import write_atomic
from trainers.models.arch import ModelState


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
        raise ValueError(
            f"trial {trial_id} has no stages: its model is the source itself"
        )
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
