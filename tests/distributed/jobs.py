"""What the ranks of a process group do in the tests: each function gives what its rank saw."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from compress.cache import StageCache
from compress.nvit.importance import TaylorMeter
from compress.nvit.pruner import Pruner
from compress.nvit.stage import Nvit
from compress.pipeline import (
    STAGES,
    NamedStage,
    Pipeline,
    PipelineResult,
    run_pipeline,
)
from compress.stage import Context
from compress.wfn import fixing
from compress.wfn.clustering import Clustering
from trainers import measuring
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.models.source import load_source
from trainers.training.evaluate import evaluate, evaluate_classes

TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 40,
    "lr": 2e-3,
    "lr_scaling": "unscaled",
    "warmup": 0,
    "augment": "none",
}
RESNET = SourceConfig(model="resnet20_cifar", args={"width": 4})
VIT = SourceConfig(
    model="vit_tiny_patch16_224",
    args={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
)
DATA = DataConfig(dataset="digits", limit=160, limit_test=61, val_fraction=0.25)
CPU = torch.device("cpu")
Row = dict[str, Any]


def _run(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    source: SourceConfig = RESNET,
    on_epoch: Callable[[Row], None] | None = None,
) -> tuple[PipelineResult, list[Row]]:
    """One stage through a cache in `folder`, and its epochs."""
    rows: list[Row] = []
    stage = NamedStage(kind, kind, STAGES[kind].model_validate(config))
    result = run_pipeline(
        Pipeline(source, DATA, (stage,), 0),
        cache=StageCache(folder),
        data_cache=_data_cache(),
        device=CPU,
        on_epoch=on_epoch or rows.append,
    )
    return result, rows


def _data_cache() -> Path:
    return Path(os.environ["SWEEPS_DATA_CACHE"])


def evaluated() -> list[tuple[Any, ...]]:
    """Metrics, accuracy by class and predictions over the test set, and over its first image."""
    data = load_data(DATA, _data_cache())
    module = load_source(RESNET, num_classes=10, image_size=32, seed=5).build()
    first = replace(data.test, rows=data.test.rows[:1], labels=data.test.labels[:1])
    found = []
    for part in (data.test, first):
        on_part = replace(data, test=part)
        *known, shown, right = evaluate_classes(
            module, on_part, "test", CPU, batch_size=16, samples=5
        )
        images = [[*s[:2], s.thumbnail.hex()] for s in shown.samples]
        found.append((*known, shown.confusion, images, right.share))
    return found


def training(folder: Path) -> dict[str, Any]:
    """A fit, the same again from the cache, and its model on the test set."""
    result, rows = _run(folder / "cache", "finetune", TRAIN)
    again, rows_again = _run(folder / "cache", "finetune", TRAIN)
    data = load_data(DATA, _data_cache())
    return {
        "hash": result.model.hash(),
        "rows": [[row["train_loss"], row["accuracy"]] for row in rows],
        "scores": evaluate(result.model.build(), data, "test", CPU),
        "cached": [stage.cached for stage in again.stages],
        "again": again.model.hash(),
        "replayed": len(rows_again),
    }


def fixing_weights(folder: Path) -> dict[str, Any]:
    """WFN, and a hash of what each clustering fixed."""
    seen: list[str] = []
    original = fixing.cluster

    def spy(*args: Any, **options: Any) -> Clustering:
        found = original(*args, **options)
        content = found.values.numpy().tobytes() + found.fixed.numpy().tobytes()
        seen.append(hashlib.sha256(content).hexdigest())
        return found

    options = {name: value for name, value in TRAIN.items() if name != "epochs"}
    config = options | {
        "percentages": (0.4, 0.8, 1.0),
        "fixing_epochs": 1,
        "distance_allowed": 0.05,
    }
    with patch.object(fixing, "cluster", spy):
        result, _ = _run(folder / "cache", "wfn", config)
    return {"seen": seen, "hash": result.model.hash(), "metrics": result.metrics}


def standing_still(folder: Path, rank: int) -> dict[str, float]:
    """A fit whose first rank stands still for half a second while another trial measures on its
    node; the second rank is on another node.
    """
    node = measuring.Node(folder / f"node-{rank}")
    node.make()
    if rank == 0:
        use = measuring.Use.of(CPU).to_json() | {"seconds": 60.0}
        owner = {"host": "elsewhere", "pid": 1, "token": "t", "note": json.dumps(use)}
        node.lease.write_text(json.dumps(owner))
        threading.Thread(
            target=_measured_once_it_is_still, args=(node,), daemon=True
        ).start()
    with measuring.taking_part(CPU, "trial", node.folder):
        _, rows = _run(folder / "cache-still", "finetune", TRAIN)
        paused = measuring.paused_seconds()
    return {"paused": paused, "loss": rows[-1]["train_loss"]}


def _measured_once_it_is_still(node: measuring.Node) -> None:
    while not list(node.processes.glob("*.still")):
        time.sleep(0.01)
    time.sleep(0.5)
    node.lease.unlink()


class _Killed(Exception):
    """Ends a rank's stage in place of a signal."""


def killed_and_resumed(folder: Path) -> list[Any]:
    """Hashes of a fit killed after two epochs and run again, and of an uninterrupted one;
    and how many epochs the former has.
    """
    config = TRAIN | {"epochs": 3}
    seen: list[Row] = []

    def kill(row: Row) -> None:
        seen.append(row)
        if len(seen) == 2:
            raise _Killed

    try:
        _run(folder / "killed", "finetune", config, on_epoch=kill)
    except _Killed:
        dist.barrier()
    resumed, rows = _run(folder / "killed", "finetune", config)
    whole, _ = _run(folder / "whole", "finetune", config)
    return [resumed.model.hash(), whole.model.hash(), len(rows)]


def vit(folder: Path, world: int) -> dict[str, Any]:
    """A ViT trained on `world` ranks; one rank accumulates two micro-batches."""
    micro = None if world == 2 else 20
    config = TRAIN | {"max_batch_per_worker": micro, "clip_grad": 1.0}
    result, rows = _run(folder / "cache", "finetune", config, VIT)
    weights = result.model.weights.values()
    return {
        "rows": [[row["train_loss"], row["accuracy"], row["loss"]] for row in rows],
        "norm": float(sum(value.double().pow(2).sum() for value in weights)),
    }


def pruning(folder: Path, rank: int) -> dict[str, Any]:
    """NViT: the importance of ranks that saw other contributions, the units that were kept
    after each step, and the result.
    """
    meter = TaylorMeter(2, 0.9, CPU)
    meter.add(torch.tensor([1.0, 2.0]).double() * (rank + 1))
    reduced = meter.close().tolist()

    args = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    arch = make_arch(
        "deit_tiny_distilled_patch16_224", num_classes=10, image_size=32, args=args
    )
    stage = Nvit.model_validate(
        {
            "latency": "macs",
            "measure": False,
            "latency_target": 0.5,
            "epochs": 4,
            "interval_prune": 2,
            "prune_per_iter": 96,
            "batch_size": 40,
            "augment": "none",
            "kl_loss_coeff": 100.0,
            "groups": {"embed": 2, "heads": 1, "qk": 2, "v": 2, "mlp": 4},
        }
    )
    keeps: list[str] = []
    on_step = Pruner.on_step

    def spy(pruner: Pruner, step: int) -> bool | None:
        ended = on_step(pruner, step)
        keeps.append("".join("01"[kept] for kept in pruner.keep.tolist()))
        return ended

    def no_teacher(name: str, checkpoint: Path | None) -> ModelState:
        raise AssertionError(name)

    data = load_data(DATA, _data_cache())
    ctx = Context(data, CPU, 11, folder / "work", no_teacher)
    with patch.object(Pruner, "on_step", spy):
        result = stage.run(ModelState.initialised(arch, 3), ctx)
    return {
        "reduced": reduced,
        "keeps": keeps,
        "hash": result.hash(),
        "reason": ctx.reported["stop_reason"],
    }
