"""Parts of `benchmarks/gpu_check.py` that train.

`share_of_peak` is the model's own arithmetic (forward and backward, 6 operations for each
multiply-accumulate of a forward pass) over the card's dense bf16 rate by its data sheet.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import (
    Bench,
    allow_tf32,
    bare_step,
    fit_rate,
    loop_rate,
    synthetic_data,
    timm_step,
    train_config,
)
from gpu_hooks import hold_fixed, masked_student

from compress.measure.model import count_gmacs
from trainers.config import AugmentConfig, EmaConfig, TrainConfig
from trainers.data.splits import Data, TrainBatches
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import from_timm
from trainers.models.make import make_arch
from trainers.training.losses import KlObjective, TaskObjective

PEAK_BF16_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-80GB": 312.0,
}
"""Dense, by the data sheets."""


def _models_224(bench: Bench) -> dict[str, tuple[ModelState, bool]]:
    """Name → weights, and whether channels_last is worth trying."""
    return {
        "DeiT-S": (
            ModelState.initialised(bench.vit("deit_small_patch16_224"), 0),
            False,
        ),
        "ResNet-50": (ModelState.initialised(bench.resnet(), 0), True),
    }


def _share(bench: Bench, arch: Arch, images_per_s: float) -> dict[str, float]:
    """The model's arithmetic, and its share of the card's peak where that is known."""
    tflops = 6e9 * count_gmacs(arch, bench.image_px) * images_per_s / 1e12
    peak = PEAK_BF16_TFLOPS.get(torch.cuda.get_device_name(0)) if bench.cuda else None
    return {"model_tflops": round(tflops, 3)} | (
        {"share_of_peak": round(tflops / peak, 3)} if peak else {}
    )


def train_224(bench: Bench, compiled: bool = False) -> None:
    """Training at 224 px in bf16: `fit` beside the bare loop and beside timm's."""
    allow_tf32()
    batch, steps = bench.size(256, 8), bench.size(16, 2)
    data = synthetic_data(bench.classes, bench.image_px, batch * steps)
    for name, (state, convolutional) in _models_224(bench).items():
        for channels_last in (
            (False, True) if convolutional and not compiled else (convolutional,)
        ):
            layout = {"channels_last": channels_last}
            contenders: dict[str, Callable[[], dict[str, float]]] = {
                "bare": lambda s=state, o=layout: loop_rate(
                    bench,
                    bare_step(bench, s.build(), batch, compiled=compiled, **o),
                    batch,
                    steps,
                ),
                "fit": lambda s=state, o=layout: fit_rate(
                    bench,
                    s.build(),
                    data,
                    train_config(bench, batch, compile=compiled, **o),
                ),
                "timm": lambda s=state, o=layout: loop_rate(
                    bench,
                    timm_step(bench, s.build(), batch, compiled=compiled, **o),
                    batch,
                    steps,
                ),
            }
            if not compiled:
                contenders["bare, fused AdamW"] = lambda s=state, o=layout: loop_rate(
                    bench,
                    bare_step(bench, s.build(), batch, fused=True, **o),
                    batch,
                    steps,
                )
            first = 0.0
            for contender, run in contenders.items():
                found = run()
                first = first or found["images_per_s"]
                bench.emit(
                    {
                        "model": name,
                        "loop": contender,
                        "compiled": compiled,
                        **layout,
                        "batch": batch,
                        **found,
                        "of_bare": round(found["images_per_s"] / first, 3),
                        **_share(bench, state.arch, found["images_per_s"]),
                    }
                )


def compile_224(bench: Bench) -> None:
    """The same with torch.compile; `first_epoch_s` and `warm_up_s` hold its time."""
    train_224(bench, compiled=True)


def vit_32(bench: Bench) -> None:
    """A ViT at 32 px on images in memory, augmented on the device, beside the same model
    without data: medians of rounds that alternate.
    """
    allow_tf32()
    batch, steps = bench.size(512, 8), bench.size(32, 2)
    args = bench.size(
        {"patch_size": 4},
        {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2},
    )
    arch = make_arch("vit_tiny_patch16_224", num_classes=100, image_size=32, args=args)
    state = ModelState.initialised(arch, 0)
    data = synthetic_data(100, 32, batch * steps)
    small = Bench(bench.device, True, bench.emit)  # a batch at 32 px
    presets = {
        "no augmentation": AugmentConfig(preset="none"),
        "crop and flip": AugmentConfig(preset="flip"),
        "DeiT's augmentation": AugmentConfig(repeats=1),
    }
    bare, rates = bare_step(small, state.build(), batch), dict[str, list[float]]()
    for _ in range(bench.size(3, 1)):
        found = {"bare loop, no data": loop_rate(bench, bare, batch, steps)}
        for name, augment in presets.items():
            config = train_config(bench, batch, augment=augment)
            found[f"fit, {name}"] = fit_rate(bench, state.build(), data, config)
        for name, values in found.items():
            rates.setdefault(name, []).append(values["images_per_s"])
    first = rates["bare loop, no data"]
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, first, strict=True)]
        line: dict[str, Any] = {"what": name, "batch": batch, "images_per_s": values}
        bench.emit(line | {"of_bare": round(statistics.median(ratios), 3)})
    for name, augment in presets.items():
        batches = TrainBatches(
            data, augment, batch_size=batch, seed=0, device=bench.device
        )
        seconds = [_drain(bench, batches, epoch) for epoch in range(3)]
        rate = round(batch * steps / min(seconds[1:]))
        bench.emit({"what": f"batches alone, {name}", "images_per_s": rate})


def _drain(bench: Bench, batches: TrainBatches, epoch: int) -> float:
    begin = bench.now()
    for _ in batches.epoch(epoch):
        pass
    return bench.now() - begin


def methods(bench: Bench) -> None:
    """What methods add to a training step of DeiT-S at 224 px in bf16."""
    allow_tf32()
    batch, steps = bench.size(256, 8), bench.size(12, 2)
    data = synthetic_data(bench.classes, bench.image_px, batch * steps)
    state = ModelState.initialised(bench.vit("deit_small_patch16_224"), 0)
    plain = 0.0

    def tell(name: str, found: dict[str, float], **more: Any) -> None:
        nonlocal plain
        plain = plain or found["ms_per_step"]
        bench.emit(
            {
                "what": name,
                "batch": batch,
                **found,
                "of_plain": round(found["ms_per_step"] / plain, 3),
                **more,
            }
        )

    config = train_config(bench, batch)
    tell("plain", fit_rate(bench, state.build(), data, config))
    tell(
        "EMA",
        fit_rate(
            bench, state.build(), data, train_config(bench, batch, ema=EmaConfig())
        ),
    )
    _nvit_methods(bench, state, data, config, tell)
    adam = train_config(bench, batch, optimizer="adam", clip_grad=0.5)
    tell("Adam, clipped", fit_rate(bench, state.build(), data, adam))
    module = state.build()
    hook, seconds = hold_fixed(bench, module)
    tell(
        "WFN (Adam, clipped)",
        fit_rate(bench, module, data, adam, hooks=(hook,)),
        clustering_s=round(seconds, 2),
    )


def _nvit_methods(
    bench: Bench,
    state: ModelState,
    data: Data,
    config: TrainConfig,
    tell: Callable[..., None],
) -> None:
    """NViT's student alone, beside its frozen teacher, and pruned."""
    student, _ = masked_student(bench, state, interval=1000)
    tell("NViT's masked model, no hook", fit_rate(bench, student, data, config))
    teacher = from_timm(state).build().to(bench.device).requires_grad_(False)
    student, _ = masked_student(bench, state, interval=1000)
    objective = KlObjective(TaskObjective(0.1), teacher, 1e5, 3.0)
    tell(
        "the same beside its teacher", fit_rate(bench, student, data, config, objective)
    )
    student, pruner = masked_student(bench, state, interval=1000)
    tell(
        "NViT between decisions",
        fit_rate(bench, student, data, config, objective, hooks=(pruner,)),
    )
    student, pruner = masked_student(bench, state, interval=bench.size(4, 2))
    found = fit_rate(bench, student, data, config, objective, hooks=(pruner,))
    decision_ms = round(1000 * statistics.median(pruner.seconds), 2)
    tell(
        f"NViT, a decision every {pruner.rules.interval_prune} steps",
        found,
        decision_ms=decision_ms,
    )
