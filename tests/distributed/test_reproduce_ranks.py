"""A trial of two workers is reproduced by one process that accumulates what they had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.trial.reproduce import read_record, reproduce

Ranks = Callable[..., list[Any]]

PLAN: dict[str, Any] = {
    "trial_id": "00000",
    "number": 0,
    "replicate": 0,
    "seed": 3,
    "draw": {},
    "configuration": {},
    "source": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "data": {"dataset": "digits", "limit": 160, "limit_test": 60, "val_fraction": 0.25},
    "stages": [
        {
            "name": "finetune",
            "kind": "finetune",
            "config": {
                "epochs": 3,
                "batch_size": 24,
                "warmup": 0,
                "augment": {"preset": "none"},
                "lr": 1e-3,
                "lr_scaling": "unscaled",
            },
        }
    ],
    "measure": {"latency": False},
}

TRIAL = """
from sweeps.run.plan import Site, TrialPlan
from sweeps.trial.attempt import run_trial
from sweeps.trial.execute import execute
plan = TrialPlan.model_validate(json.loads({plan!r}))
site = Site.model_validate(json.loads({site!r}))
if rank == 0:
    give(run_trial(plan, site).status)
else:
    execute(plan, site, lambda row: None, lambda row: None)
    give(None)
"""


@pytest.mark.slow
def test_two_workers_again_with_one(
    ranks: Ranks, tmp_path: Path, data_cache: Path
) -> None:
    site = {
        "run": str(tmp_path),
        "cache": str(tmp_path / "_cache"),
        "data_cache": str(data_cache),
        "workers": 2,
    }
    first, _ = ranks(TRIAL.format(plan=json.dumps(PLAN), site=json.dumps(site)))
    assert first == "complete"
    record = read_record(tmp_path, "00000")
    assert record.machine is not None
    assert record.machine.world_size == 2
    found = reproduce(record, tolerance=1e-3, data_cache=data_cache)
    assert found.conditions == [
        "2 workers then, one that accumulates now: same batches, other draws of"
        " augmentation and dropout"
    ]
    assert found.same, [row for row in found.rows if not row.same]
    # without accumulation: the same batches in one
    record.machine = record.machine.model_copy(update={"world_size": 1})
    alone = reproduce(record, data_cache=data_cache)
    loss = next(row for row in alone.rows if row.name == "loss")
    assert abs(loss.new - loss.old) < 1e-3
