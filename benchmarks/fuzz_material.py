"""What `fuzz.py` damages, made once: a run folder, a narrow network and its coded file."""

from __future__ import annotations

import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import analysis
from compress.codec.file import encode
from sweeps.check import check_spec
from sweeps.drive.driver import run_header
from sweeps.run.folder import trial_folder
from sweeps.run.plan import Site
from sweeps.run.record import TrialRecord, to_json
from sweeps.run.storage import RunStorage
from sweeps.search.searcher import StudySearch
from sweeps.spec.load import spec_from
from sweeps.trial.attempt import machine_of
from trainers.models.arch import Arch, ModelState

SPEC: dict[str, Any] = {
    "name": "fuzzed",
    "source": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "data": {"dataset": "digits", "limit": 60, "limit_test": 20, "val_fraction": 0.25},
    "stages": {
        "teacher": {
            "stage": "finetune",
            "epochs": 2,
            "batch_size": 15,
            "warmup": 0,
            "augment": "none",
        },
        "init": {"one_of": {"weight_selection": {}, "random_init": {}, "none": None}},
        "finetune": {"epochs": 3, "batch_size": 15, "warmup": 0, "augment": "none"},
        "wfn": {"percentages": [0.5, 1.0], "fixing_epochs": 1, "batch_size": 15},
    },
    "objectives": [
        {"metric": "accuracy", "mode": "max"},
        {"metric": "gmacs", "mode": "min", "bound": 1.0},
    ],
    "search": {
        "sampler": "tpe",
        "trials": 6,
        "replicates": 2,
        "space": {
            "stages.init.*.args.embed_dim": [16, 32],
            "stages.init.weight_selection.element_rule": ["uniform", "consecutive"],
            "stages.finetune.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "points": [{"stages.finetune.lr": 1e-3, "stages.init": "none"}],
        "early_stopping": {
            "scheduler": "asha",
            "metric": "accuracy",
            "grace_epochs": 1,
        },
    },
    "measure": {"repeats": 3, "batch_size": 4, "latency": False},
    "resources": {"cpus_per_worker": 1},
}


class Material:
    """What is damaged, made once, and a folder for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def run(self) -> Path:
        """A run folder of six trials with its tables."""
        raw = SPEC | {"storage": str(self.folder)}
        sweep = check_spec(spec_from(json.loads(json.dumps(raw))))
        run = self.folder / "fuzzed"
        run.mkdir()
        (run / "run.json").write_bytes(to_json(run_header(sweep, ["sweeps", "run"])))
        (run / "spec.yaml").write_text(yaml.safe_dump(sweep.spec.raw))
        search = StudySearch(sweep, RunStorage(run))
        site = Site(run=run, cache=run / "c", data_cache=run / "d")
        rng = random.Random(0)
        for number in range(6):
            plan = search.ask()
            assert plan is not None
            record = TrialRecord.begin(
                trial_folder(run, plan.trial_id), plan, machine_of(site)
            )
            for epoch in range(3):
                record.add_epoch(
                    {"stage": "finetune", "epoch": epoch, "accuracy": rng.random()}
                )
            layer = {"name": "blocks.0", "kind": "Linear", "params": 7, "macs": 9}
            record.set_layers([layer, layer | {"name": "head"}])
            record.set_classes([{"class": c, "recall": 0.5} for c in range(3)])
            metrics = {"accuracy": rng.random(), "gmacs": rng.random()}
            status = "failed" if number == 4 else "complete"
            record.finish(status, metrics=metrics, error="no" if number == 4 else None)
            search.tell(record)
        analysis.gather(run)
        return run

    @cached_property
    def state(self) -> ModelState:
        """A narrow network whose convolutions share nine values."""
        arch = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 3, "width": 2})
        state = ModelState.initialised(arch, 0)
        shared = {
            name: (w * 4).round().clip(-4, 4) / 4 if w.ndim == 4 else w
            for name, w in state.weights.items()
        }
        return ModelState(arch, shared)

    @cached_property
    def coded(self) -> bytes:
        return encode(self.state).content

    def fresh(self, name: str) -> Path:
        """An empty place of that name."""
        path = self.folder / "case" / name
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        return path

    def copy_of_run(self, ignore: str = "") -> Path:
        path = self.fresh("fuzzed")
        shutil.copytree(self.run, path, ignore=shutil.ignore_patterns(ignore))
        return path
