"""Milliseconds of one pruning decision of NViT for DeiT-B, and of scoring one step.

    python benchmarks/nvit_decision.py [--table FILE]

A decision closes an interval (importance, latency terms of all 39,312 units), ranks all
groups of the model, zeroes two, estimates the latency and makes the masks. Zeroing and
scoring happen at every step. Without a table, latency is counted in multiply-accumulates;
FILE is a table of `sweeps latency-table`, or NViT's published JSON.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from compress.measure.latency_table import LatencyTable
from compress.nvit.cost import LatencyModel, MacsModel
from compress.nvit.groups import GroupSizes, UnitLayout
from compress.nvit.importance import taylor
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.pruner import Pruner, PruneRules
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm
from trainers.models.make import make_arch


def main() -> None:
    """Time decisions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path)
    parser.add_argument("--model", default="deit_base_distilled_patch16_224")
    parser.add_argument("--decisions", type=int, default=100)
    args = parser.parse_args()
    state = from_timm(
        ModelState.initialised(
            make_arch(args.model, num_classes=1000, image_size=224), 0
        )
    )
    vit = MaskedVit.from_state(state)
    layout = UnitLayout.of(state.arch.dims, GroupSizes())
    latency: LatencyModel = (
        LatencyTable.read(args.table) if args.table else MacsModel.of(state.arch)
    )
    rules = PruneRules(
        importance="nvit",
        latency_target=0.01,
        latency_regularization=5e-4,
        latency_unit="dense",
        prune_per_iter=32,
        interval_prune=1,
        momentum=0.9,
        budget=39_000,
        student_eval=True,
        seed=0,
    )
    pruner = Pruner(vit, layout, latency, rules, torch.device("cpu"))
    decisions: list[float] = []
    zeroed: list[float] = []
    scored: list[float] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(args.decisions):
        pruner.meter.add(
            torch.rand(layout.num_units, generator=generator, dtype=torch.float64)
            * 1e-6
        )
        begin = time.perf_counter()
        pruner.decide()
        middle = time.perf_counter()
        pruner.masks.on_values()
        decisions.append(1000 * (middle - begin))
        zeroed.append(1000 * (time.perf_counter() - middle))
    for parameter in vit.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(5):
        begin = time.perf_counter()
        taylor(vit)
        scored.append(1000 * (time.perf_counter() - begin))
    print(
        f"{args.model}: {layout.num_units:,} units in {len(layout.sizes)} structures,"
        f" {pruner.num_pruned} pruned; ",
        end="",
    )
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load"
        f" {os.getloadavg()[0]:.1f}"
    )
    for what, times in (
        ("decision", decisions),
        ("zeroing a step", zeroed),
        ("scoring a step", scored),
    ):
        low, median, high = np.percentile(times, (5, 50, 95))
        print(f"{what:15} median {median:7.2f} ms   5 % {low:7.2f}   95 % {high:7.2f}")


if __name__ == "__main__":
    main()
