"""The part of `benchmarks/gpu_check.py` for parameters that are split over workers (FSDP2)."""

from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from gpu_bench import Bench, allow_tf32, fit_rate, synthetic_data, train_config
from torch import nn

from trainers.config import EmaConfig
from trainers.models.arch import ModelState
from trainers.training import fit as fit_module
from trainers.training.parallel import ShardedModel


def sharded(bench: Bench) -> None:
    """Training of DeiT-S with its parameters in the hands of FSDP2, beside the same without.

    One rank has all parts, so that nothing is saved. It shows that collectives, the fused
    optimiser, averaged weights and checkpoints work on such parameters on this device, and what
    they cost.
    """
    allow_tf32()
    batch, steps = bench.size(256, 8), bench.size(12, 2)
    data = synthetic_data(bench.classes, bench.image_px, batch * steps)
    state = ModelState.initialised(bench.vit("deit_small_patch16_224"), 0)
    dist.init_process_group(
        "nccl" if bench.cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )

    def split(strategy: Any, module: nn.Module, *rest: Any) -> ShardedModel:
        return ShardedModel(module, *rest)

    for name, options in {
        "plain": {},
        "EMA, clipped": {"ema": EmaConfig(use=True), "clip_grad": 1.0},
        "fp16, recomputed": {"amp": "fp16", "grad_checkpointing": True},
    }.items():
        config = train_config(bench, batch, **options)
        whole, parts = state.build(), state.build()
        found = {"whole": fit_rate(bench, whole, data, config)}
        with patch.object(fit_module, "parallel_model", split):
            found["parts"] = fit_rate(bench, parts, data, config)
        far = max(
            float((a.cpu() - b.cpu()).detach().abs().max())
            for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
        )
        for held, rates in found.items():
            bench.emit({"what": name, "parameters": held, "batch": batch, **rates})
        bench.emit({"what": name, "largest_difference_of_weights": far})
    dist.destroy_process_group()
