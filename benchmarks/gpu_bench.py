"""What the parts of `benchmarks/gpu_check.py` share: sizes, synthetic images, and three ways
to train on them.

Names of values carry their unit. `peak_gib` is the most memory that tensors took on the
device during a measurement.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compress.stage import Context
from trainers.config import AugmentConfig, DataConfig, TrainConfig
from trainers.data.splits import Data, DataInfo, Images, PixelStore
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch
from trainers.timm_library import timm
from trainers.training.fit import Hook, fit
from trainers.training.losses import Objective, TaskObjective

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """Where a part runs.

    Attributes:
        device: the accelerator, or the CPU.
        tiny: whether sizes are such that a CPU does a part in seconds.
        emit: takes one line of results.
    """

    device: torch.device
    tiny: bool
    emit: Callable[[dict[str, Any]], None]

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def size(self, full: T, tiny: T) -> T:
        """The one that applies."""
        return tiny if self.tiny else full

    def now(self) -> float:
        """Seconds, when the device has done all that it was asked to."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak_gib(self) -> float:
        """Most memory of tensors since `forget_peak`; 0 on the CPU."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else 0.0

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def vit(self, name: str, classes: int = 1000) -> Arch:
        """A ViT at 224 px (tiny: at 32 px, two blocks of 128 channels)."""
        if self.tiny:
            args = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 4}
            return make_arch(name, num_classes=10, image_size=32, args=args)
        return make_arch(name, num_classes=classes, image_size=224)

    def resnet(self) -> Arch:
        """ResNet-50 at 224 px (tiny: the smallest CIFAR ResNet)."""
        if self.tiny:
            return make_arch(
                "resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}
            )
        return make_arch("resnet50", num_classes=1000, image_size=224)

    @property
    def image_px(self) -> int:
        return self.size(224, 32)

    @property
    def classes(self) -> int:
        return self.size(1000, 10)


def synthetic_data(classes: int, image_px: int, count: int) -> Data:
    """Random images in memory, uint8, nothing to validate or test on."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(
        0,
        256,
        (min(count, 512), 3, image_px, image_px),
        dtype=torch.uint8,
        generator=generator,
    )
    store = PixelStore(few.repeat(-(-count // len(few)), 1, 1, 1)[:count])
    labels = torch.arange(count) % classes
    none = Images(store, torch.arange(0), torch.arange(0))
    return Data(
        config=DataConfig(image_size=image_px, in_memory="yes", val_fraction=0),
        info=DataInfo(classes, image_px, count),
        class_names=tuple(str(i) for i in range(classes)),
        fingerprint="synthetic",
        train=Images(store, torch.arange(count), labels),
        val=none,
        test=none,
    )


def train_config(bench: Bench, batch: int, **options: Any) -> TrainConfig:
    """Three epochs in bf16 without augmentation, one checkpoint at the end."""
    fields: dict[str, Any] = {
        "epochs": 3,
        "batch_size": batch,
        "lr": 1e-4,
        "lr_scaling": "unscaled",
        "warmup": 0,
        "checkpoint_every": 3,
        "amp": "bf16",
        "augment": AugmentConfig(preset="none"),
    }
    return TrainConfig(**fields | options)


def fit_rate(
    bench: Bench,
    module: nn.Module,
    data: Data,
    config: TrainConfig,
    objective: Objective | None = None,
    hooks: tuple[Hook, ...] = (),
) -> dict[str, float]:
    """What `fit` states for the epochs after the first, which warms up (and compiles)."""
    bench.forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            module,
            data,
            objective or TaskObjective(0.1),
            config,
            hooks=hooks,
            seed=0,
            device=bench.device,
            workdir=Path(folder),
        )
    rows = result.rows[1:]
    return {
        "images_per_s": round(
            statistics.median(row["images_per_second"] for row in rows), 1
        ),
        "ms_per_step": round(
            1000 / statistics.median(row["steps_per_second"] for row in rows), 3
        ),
        "first_epoch_s": round(result.rows[0]["seconds"], 1),
        "peak_gib": bench.peak_gib(),
    }


def loop_rate(
    bench: Bench, step: Callable[[], None], batch: int, steps: int
) -> dict[str, float]:
    """Images per second of `step`: the median of three runs of `steps`, after some to warm up."""
    bench.forget_peak()
    begin = bench.now()
    for _ in range(max(1, steps // 4)):
        step()
    warm_up_s, seconds = bench.now() - begin, []
    for _ in range(3):
        begin = bench.now()
        for _ in range(steps):
            step()
        seconds.append(bench.now() - begin)
    per_step = statistics.median(seconds) / steps
    return {
        "images_per_s": round(batch / per_step, 1),
        "ms_per_step": round(1000 * per_step, 3),
        "warm_up_s": round(warm_up_s, 1),
        "peak_gib": bench.peak_gib(),
    }


def fixed_batch(
    bench: Bench, batch: int, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """One normalised batch and its labels, on the device."""
    images = torch.randn(batch, 3, bench.image_px, bench.image_px, device=bench.device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.arange(batch, device=bench.device) % bench.classes


def bare_step(
    bench: Bench,
    module: nn.Module,
    batch: int,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    fused: bool = False,
) -> Callable[[], None]:
    """The shortest loop that trains: one batch that is already there, autocast, AdamW."""
    module = _on_device(bench, module, channels_last)
    images, labels = fixed_batch(bench, batch, channels_last)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-4, weight_decay=0.05, fused=fused or None
    )
    model: Any = torch.compile(module) if compiled else module

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(
                model(images), labels, label_smoothing=0.1
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timm_step(
    bench: Bench,
    module: nn.Module,
    batch: int,
    *,
    channels_last: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """A step in the order of timm's train script on synthetic images: its optimiser and its
    schedule by updates; the host reads the loss every 50 updates (the script's log interval).
    """
    module = _on_device(bench, module, channels_last)
    images, labels = fixed_batch(bench, batch, channels_last)
    optimizer = timm.optim.create_optimizer_v2(
        module, opt="adamw", lr=1e-4, weight_decay=0.05
    )
    scheduler = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=10_000, t_in_epochs=False
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    model: Any = torch.compile(module) if compiled else module
    updates = 0

    def step() -> None:
        nonlocal updates
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        if updates % 50 == 0:
            loss.item()
        scheduler.step_update(updates)

    return step


def _on_device(bench: Bench, module: nn.Module, channels_last: bool) -> nn.Module:
    module = module.to(bench.device).train()
    if channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def allow_tf32() -> None:
    """As `fit` does by default, so that all contenders have the same."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def matmul_tflops(bench: Bench, n: int) -> float:
    """Rate of an n × n × n product in bf16, on random data."""
    a, b = (
        torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2)
    )
    seconds = []
    for _ in range(13):
        begin = bench.now()
        torch.mm(a, b)
        seconds.append(bench.now() - begin)
    return 2 * n**3 / statistics.median(seconds[3:]) / 1e12


def context(bench: Bench, data: Data) -> Context:
    def no_teacher(name: str, checkpoint: Path | None) -> ModelState:
        raise ValueError(f"no teacher {name!r} here")

    return Context(
        data,
        bench.device,
        seed=0,
        workdir=Path(tempfile.mkdtemp()),
        find_teacher=no_teacher,
    )
