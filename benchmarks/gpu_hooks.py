"""Parts of `benchmarks/gpu_check.py`: the hooks of methods, and where a step waits."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gpu_bench import Bench, context, fit_rate, synthetic_data, train_config
from torch import nn

from compress.asp import Asp, HoldZeros, asp_masks
from compress.channels.cost import macs
from compress.channels.decide import layout_of
from compress.channels.importance import GradientMeter
from compress.channels.pruner import ChannelPruner
from compress.channels.stage import PruneChannels
from compress.nvit.cost import MacsModel
from compress.nvit.groups import GroupSizes, UnitLayout
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.pruner import Pruner, PruneRules
from compress.wfn.clustering import cluster
from compress.wfn.fixing import HoldFixed, fixable_parameters, flat
from compress.wfn.regulariser import PullTable
from trainers.config import AugmentConfig, EmaConfig
from trainers.models.arch import ModelState
from trainers.models.from_timm import from_timm
from trainers.models.make import make_arch
from trainers.training.fit import Hook


class _WatchSyncs(Hook):
    """Counts operations that wait for the device from the end of one step to the end of another."""

    def __init__(
        self, first: int, last: int, mode: Literal["warn", "error"] = "warn"
    ) -> None:
        self.first, self.last, self.mode = first, last, mode

    def on_step(self, step: int) -> bool:
        if step == self.first:
            torch.cuda.set_sync_debug_mode(self.mode)
        elif step == self.last:
            torch.cuda.set_sync_debug_mode("default")
        return False


def syncs(bench: Bench) -> None:
    """Where a training step waits for the device: file and line → how often in a step."""
    if not bench.cuda:
        bench.emit({"skipped": "no CUDA device"})
        return
    small = {"patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 4}
    state = ModelState.initialised(
        make_arch("vit_tiny_patch16_224", num_classes=10, image_size=32, args=small), 0
    )
    data = synthetic_data(10, 32, 1024)
    first, last = 4, 12
    for name, (module, hooks, options) in _step_variants(bench, state).items():
        config = train_config(bench, 64, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit_rate(
                bench, module, data, config, hooks=(*hooks, _WatchSyncs(first, last))
            )
        where = Counter(
            f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}"
            for w in caught
            if "synchronizing" in str(w.message)
        )
        per_step = {
            place: round(count / (last - first), 2)
            for place, count in where.most_common(12)
        }
        bench.emit(
            {
                "what": name,
                "syncs_per_step": sum(where.values()) / (last - first),
                "where": per_step,
            }
        )


Variant = tuple[nn.Module, tuple[Hook, ...], dict[str, Any]]


def _step_variants(bench: Bench, state: ModelState) -> dict[str, Variant]:
    """Name → module, hooks and options of a fit: the steps that methods make."""
    no_mix = {"mixup": 0.0, "cutmix": 0.0}
    student, pruner = masked_student(bench, state, interval=1000)
    channels = channel_student(bench, state, interval=1000)
    held = state.build()
    sparse = Asp(measure=False).run(state, context(bench, synthetic_data(10, 32, 8)))
    masked = sparse.build().to(bench.device)
    return {
        "plain": (state.build(), (), {}),
        "crop and flip": (state.build(), (), {"augment": AugmentConfig(preset="flip")}),
        "DeiT's augmentation, no mixing": (
            state.build(),
            (),
            {"augment": AugmentConfig(repeats=1, **no_mix)},
        ),
        "DeiT's augmentation": (
            state.build(),
            (),
            {"augment": AugmentConfig(repeats=1)},
        ),
        "three augment": (
            state.build(),
            (),
            {"augment": AugmentConfig(three_augment=True, repeats=1)},
        ),
        "EMA, clipping": (state.build(), (), {"ema": EmaConfig(), "clip_grad": 1.0}),
        "fp16 with loss scale": (state.build(), (), {"amp": "fp16"}),
        "NViT between decisions": (student, (pruner,), {}),
        "prune_channels between decisions": (channels[0], (channels[1],), {}),
        "WFN": (
            held,
            (hold_fixed(bench, held)[0],),
            {"optimizer": "adam", "clip_grad": 0.5},
        ),
        "asp, zeros held": (masked, (HoldZeros(masked, asp_masks(sparse)),), {}),
    }


class TimedPruner(Pruner):
    """Notes how long each decision takes, seconds."""

    def __init__(self, bench: Bench, *args: Any) -> None:
        super().__init__(*args)
        self.bench, self.seconds = bench, list[float]()

    def decide(self) -> bool:
        begin = self.bench.now()
        ended = super().decide()
        self.seconds.append(self.bench.now() - begin)
        return ended


def masked_student(
    bench: Bench, state: ModelState, interval: int
) -> tuple[MaskedVit, TimedPruner]:
    """NViT's student, and the hook that prunes it by operations, two groups an interval."""
    dense = from_timm(state)
    student = MaskedVit.from_state(dense).to(bench.device)
    rules = PruneRules(
        importance="nvit",
        latency_target=0.3,
        latency_regularization=5e-4,
        latency_unit="dense",
        importance_unit="loss",
        prune_per_iter=32,
        interval_prune=interval,
        momentum=0.9,
        budget=39_000,
        student_eval=True,
        seed=0,
    )
    layout = UnitLayout.of(dense.arch.dims, GroupSizes(heads=1))
    return student, TimedPruner(
        bench, student, layout, MacsModel.of(dense.arch), rules, bench.device
    )


def channel_student(
    bench: Bench, state: ModelState, interval: int
) -> tuple[nn.Module, ChannelPruner]:
    """A model whose channels are pruned while it trains, to a half and then a third of its
    operations; the first decision has been made.
    """
    student = state.build().to(bench.device)
    layout = layout_of(state.arch, 32)
    cost = macs(layout)
    whole = float(cost.of(np.ones((1, len(layout.groups))))[0])
    pruner = ChannelPruner(
        student,
        layout,
        PruneChannels().rules(layout),
        cost,
        [whole / 2, whole / 3],
        interval,
        GradientMeter(student, layout, "hessian"),
        "none",
    )
    pruner.decide()
    return student, pruner


def hold_fixed(bench: Bench, module: nn.Module) -> tuple[HoldFixed, float]:
    """WFN's hook with 60 % of the weights fixed, and the seconds that the clustering took."""
    parameters = fixable_parameters(module.to(bench.device), include_norm=False)
    begin = bench.now()
    clustering = cluster(flat(parameters), 0.6, 0.05)
    seconds = bench.now() - begin
    table = PullTable.build(
        clustering.codebook,
        1.5 * float(clustering.values.abs().max()),
        "relative",
        2**-7,
    )
    return HoldFixed(
        parameters, clustering.fixed, clustering.values, table, 0.4
    ), seconds
