"""A small spec on digits that runs in about a second a trial."""

import copy
from pathlib import Path
from typing import Any

import pytest

BASE: dict[str, Any] = {
    "name": "small",
    "source": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "data": {"dataset": "digits", "limit": 120, "limit_test": 40, "val_fraction": 0.25},
    "stages": {
        "teacher": {
            "stage": "finetune",
            "epochs": 2,
            "batch_size": 30,
            "warmup": 0,
            "augment": "none",
        },
        "init": {"one_of": {"weight_selection": {}, "random_init": {}, "none": None}},
        "finetune": {"epochs": 1, "batch_size": 30, "warmup": 0, "augment": "none"},
    },
    "objectives": [
        {"metric": "accuracy", "mode": "max"},
        {"metric": "gmacs", "mode": "min"},
    ],
    "search": {
        "sampler": "random",
        "trials": 4,
        "baseline": False,
        "space": {
            "stages.init.*.args.embed_dim": [16, 32],
            "stages.init.weight_selection.element_rule": ["uniform", "consecutive"],
            "stages.finetune.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
    },
    "measure": {"repeats": 3, "batch_size": 4},
}


@pytest.fixture(autouse=True)
def without_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and waiting for disks is a third of these tests' time."""
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A fresh copy of the small spec, stored under this test's folder."""
    return copy.deepcopy(BASE) | {"storage": str(tmp_path / "runs")}
