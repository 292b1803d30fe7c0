"""NViT beside torch-pruning (PyPI) on the bundled digits: the same model, data, latency
ratio and optimiser steps.

    pip install torch-pruning
    python benchmarks/nvit_torch_pruning.py [--workdir DIR] [--seeds 3] [--targets 0.5 0.35]

torch-pruning has no latency target: its global group-Taylor pruner (embedding, head
dimensions and hidden units; the isomorphic ranking of its authors' ViT recipe) goes on in
steps of 2 %, gradients of ten batches anew at each, until the table's estimate meets the
target. It does not train while it prunes, so all epochs are left to its fine-tuning, while
NViT's pruning takes its own from the same number. Printed for both: estimated and measured
latency ratio at batch 64 (alternating with the unpruned model; its own timm module for
torch-pruning), test accuracy, CPU seconds of pruning and in all. A --workdir of
nvit_digits.py gives its teachers and table.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvit_digits import (
    ETA,
    FINETUNE,
    PRUNE,
    TRAIN,
    accuracy,
    arguments,
    context,
    digits,
    epochs_of,
    latency_table,
    spread,
    teacher,
)
from torch import nn

from compress.finetune import Finetune
from compress.measure.latency_table import LatencyTable
from compress.measure.model import alternating_latency
from compress.nvit.stage import Nvit
from trainers.data.splits import Data
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import dense_arch
from trainers.models.parameters import BLOCK_DIMS
from trainers.training.losses import TaskObjective

try:
    import torch_pruning as tp
except ImportError:
    sys.exit("this benchmark needs the peer: pip install torch-pruning")

_STEPS, _BATCHES = 50, 10


@dataclass
class Row:
    """What one run gave. Ratios are of latency, to the unpruned model; seconds of this
    process's CPU time.
    """

    estimated: float
    measured: float
    accuracy: float
    prune_seconds: float
    seconds: float


def tune(
    pruned: ModelState,
    model: ModelState,
    data: Data,
    folder: Path,
    seed: int,
    epochs: int,
) -> float:
    return accuracy(
        Finetune(**FINETUNE, epochs=epochs).run(
            pruned, context(data, folder, seed, model)
        ),
        data,
    )


def measured(pruned: nn.Module, model: ModelState, data: Data) -> float:
    size = data.info.image_size
    images = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(0))
    first, second = alternating_latency([pruned.eval(), model.build()], images)
    return first / second


def ours(
    model: ModelState,
    data: Data,
    table: Path,
    target: float,
    folder: Path,
    seed: int,
    epochs: int,
) -> Row:
    ctx, begin = context(data, folder / "prune", seed), time.process_time()
    pruned = Nvit(
        **PRUNE, latency_target=target, latency_regularization=ETA[target], table=table
    ).run(model, ctx)
    prune_seconds = time.process_time() - begin
    left = epochs - epochs_of(ctx.reported["prune_steps"], data)
    after = tune(pruned, model, data, folder / "tune", seed, left)
    seconds = time.process_time() - begin
    ratio = measured(pruned.build(), model, data)
    return Row(
        ctx.reported["latency_ratio_estimated"], ratio, after, prune_seconds, seconds
    )


def theirs(
    model: ModelState,
    data: Data,
    table: Path,
    target: float,
    folder: Path,
    seed: int,
    epochs: int,
) -> Row:
    ctx, begin = context(data, folder, seed), time.process_time()
    vit, estimate = torch_pruned(model, ctx, LatencyTable.read(table), target)
    pruned = as_pruned_vit(vit, dense_arch(model.arch))
    images = torch.randn(4, 3, data.info.image_size, data.info.image_size)
    with torch.inference_mode():
        torch.testing.assert_close(
            pruned.build()(images), vit.eval()(images), rtol=1e-4, atol=1e-4
        )
    prune_seconds = time.process_time() - begin
    after = tune(pruned, model, data, folder / "tune", seed, epochs)
    seconds = time.process_time() - begin
    return Row(estimate, measured(vit, model, data), after, prune_seconds, seconds)


def torch_pruned(
    model: ModelState, ctx: Any, table: LatencyTable, target: float
) -> tuple[Any, float]:
    """torch-pruning's own module at the target, and the table's estimate of its latency ratio."""
    vit: Any = model.build().requires_grad_(True)
    heads = {block.attn.qkv: block.attn.num_heads for block in vit.blocks}
    size = ctx.data.info.image_size
    pruner = tp.pruner.BasePruner(
        vit,
        torch.randn(1, 3, size, size),
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=_STEPS,
        ignored_layers=[vit.head],
        num_heads=heads,
        prune_head_dims=True,
        round_to=4,
    )
    whole_ms = estimate_ms(vit, table)
    for _ in range(_STEPS):
        vit.zero_grad()
        for images, targets in ctx.batches(_BATCHES, TRAIN["batch_size"]):
            TaskObjective(0.1)(vit, images, targets).backward()
        for group in pruner.step(interactive=True):
            group.prune()
        for block in vit.blocks:
            attn = block.attn
            attn.num_heads = pruner.num_heads[attn.qkv]
            attn.attn_dim = attn.qkv.out_features // 3
            attn.head_dim = attn.attn_dim // attn.num_heads
        if estimate_ms(vit, table) <= target * whole_ms:
            break
    return vit, estimate_ms(vit, table) / whole_ms


def dims(vit: Any) -> dict[str, Any]:
    blocks = [
        (b.attn.num_heads, b.attn.head_dim, b.attn.head_dim, b.mlp.fc1.out_features)
        for b in vit.blocks
    ]
    lists = zip(BLOCK_DIMS, zip(*blocks, strict=True), strict=True)
    return {"embed": vit.head.in_features} | {
        name: list(values) for name, values in lists
    }


def estimate_ms(vit: Any, table: LatencyTable) -> float:
    now = dims(vit)
    return table.model_ms(now["embed"], np.array([now[name] for name in BLOCK_DIMS]).T)


def as_pruned_vit(vit: Any, dense: Arch) -> ModelState:
    """The same function as a `pruned_vit`. timm scales by the pruned head dimension: q
    takes up the difference.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in vit.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if not path.endswith(".qkv"):
            weights[name] = value.clone()
            continue
        factor = (
            vit.get_submodule(path.removesuffix(".qkv")).head_dim ** -0.5
            / dense.args["scale"]
        )
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            weights[f"{path.removesuffix('qkv')}{part}.{leaf}"] = rows * (
                factor if part == "q" else 1.0
            )
    return ModelState(Arch("pruned_vit", dense.name, dense.args, dims(vit)), weights)


def main() -> None:
    """Run both for each seed and target; print every run and the means."""
    parser = arguments(__doc__)
    parser.set_defaults(targets=[0.5, 0.35], epochs=[6, 8])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(args, args.workdir or Path(temporary), Path(temporary))


def run(args: argparse.Namespace, workdir: Path, scratch: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    data = digits(workdir)
    rows: dict[tuple[float, str], list[Row]] = {}
    for seed in range(args.seeds):
        model = teacher(data, workdir, seed)
        table = latency_table(model.arch, workdir)
        for target, epochs in zip(args.targets, args.epochs, strict=True):
            folder = scratch / f"{seed}-{target}"
            first = ours(model, data, table, target, folder / "ours", seed, epochs)
            second = theirs(model, data, table, target, folder / "theirs", seed, epochs)
            for name, row in (("nvit", first), ("torch-pruning", second)):
                rows.setdefault((target, name), []).append(row)
                print(
                    f"{target} seed {seed} {name:13} {row}, load"
                    f" {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    print(
        f"\n{'target':6} {'':13} {'estimated':15} {'measured':15} {'accuracy':15}"
        f" {'CPU s pruning':15} {'CPU s in all':15}"
    )
    for (target, name), group in rows.items():
        columns = ("estimated", "measured", "accuracy", "prune_seconds", "seconds")
        cells = [
            spread([getattr(row, c) for row in group], 1 if "seconds" in c else 3)
            for c in columns
        ]
        print(f"{target:<6} {name:13} " + " ".join(f"{cell:15}" for cell in cells))


if __name__ == "__main__":
    main()
