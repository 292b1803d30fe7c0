"""The parts of `benchmarks/gpu_check.py`: each measures one thing and sends lines of plain values.

Names of values carry their unit. `peak_gib` is the most memory that tensors took on the device during the
measurement, `share_of_peak` the model's own arithmetic (forward and backward, 6 operations for each
multiply-accumulate of a forward pass) over the card's dense bf16 rate by its data sheet.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import compress  # noqa: F401 (it makes torchvision importable, which timm asks for)

# isort: split
import numpy as np
import torch
from compress.latency_measure import default_grid, measure_table
from compress.nvit_groups import GroupSizes, UnitLayout
from compress.nvit_latency import MacsModel
from compress.nvit_pruner import Pruner, PruneRules
from compress.nvit_surgery import MaskedVit
from compress.wfn_cluster import cluster
from compress.wfn_regulariser import PullTable, pull
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from trainers.fit import Hook, fit
from trainers.losses import KlObjective, Objective, TaskObjective
from trainers.pruned_vit import dense_arch, from_timm

from compress.asp import (
    Asp,
    HoldZeros,
    asp_masks,
    has_sparse_kernels,
    with_sparse_kernels,
)
from compress.codec import decode, encode
from compress.measure import alternating_latency, count_gmacs, measure_latency
from compress.stage import Context
from compress.wfn import HoldFixed, fixable_parameters, flat
from trainers.config import AugmentConfig, DataConfig, EmaConfig, TrainConfig
from trainers.data import Data, DataInfo, Images, PixelStore, TrainBatches
from trainers.models import Arch, ModelState, make_arch

ROOT = Path(__file__).parents[1]
PEAK_BF16_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-80GB": 312.0,
}
"""Dense, by the data sheets."""
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
        "epochs": 3, "batch_size": batch, "lr": 1e-4, "lr_scaling": "unscaled", "warmup": 0, "checkpoint_every": 3,
        "amp": "bf16", "augment": AugmentConfig(preset="none"),
    }  # fmt: skip
    return TrainConfig(**fields | options)


def fit_rate(
    bench: Bench, module: nn.Module, data: Data, config: TrainConfig,
    objective: Objective | None = None, hooks: tuple[Hook, ...] = (),
) -> dict[str, float]:  # fmt: skip
    """What `fit` states for the epochs after the first, which warms up (and compiles)."""
    bench.forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            module, data, objective or TaskObjective(0.1), config, hooks=hooks, seed=0, device=bench.device,
            workdir=Path(folder),
        )  # fmt: skip
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
        "images_per_s": round(batch / per_step, 1), "ms_per_step": round(1000 * per_step, 3),
        "warm_up_s": round(warm_up_s, 1), "peak_gib": bench.peak_gib(),
    }  # fmt: skip


def fixed_batch(
    bench: Bench, batch: int, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """One normalised batch and its labels, on the device."""
    images = torch.randn(batch, 3, bench.image_px, bench.image_px, device=bench.device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.arange(batch, device=bench.device) % bench.classes


def bare_step(
    bench: Bench, module: nn.Module, batch: int, *, channels_last: bool = False, compiled: bool = False,
    fused: bool = False,
) -> Callable[[], None]:  # fmt: skip
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
    """A step in the order of timm's train script on synthetic images: its optimiser and its schedule by updates,
    the loss in float32, and read by the host every 50 updates (the script's log interval)."""
    module = _on_device(bench, module, channels_last)
    images, labels = fixed_batch(bench, batch, channels_last)
    optimizer = create_optimizer_v2(module, opt="adamw", lr=1e-4, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=10_000, t_in_epochs=False)
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


def _allow_tf32() -> None:
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


def card(bench: Bench) -> None:
    """What the device is, and two ceilings: a matrix product and a copy."""
    line: dict[str, Any] = {
        "torch": torch.__version__,
        "device": bench.device.type,
        "tiny": bench.tiny,
    }
    if bench.cuda:
        props = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        line |= {
            "name": props.name, "memory_gib": round(props.total_memory / 2**30, 1),
            "multiprocessors": props.multi_processor_count, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip(),
        }  # fmt: skip
    count = bench.size(2**30, 2**20)
    source, target = (
        torch.ones(count, dtype=torch.uint8, device=bench.device) for _ in range(2)
    )
    seconds = []
    for _ in range(10):
        begin = bench.now()
        target.copy_(source)
        seconds.append(bench.now() - begin)
    copied = 2 * count / statistics.median(seconds[3:])
    bench.emit(line | {
        "bf16_matmul_tflops": round(matmul_tflops(bench, bench.size(8192, 128)), 3), "copy_gb_per_s": round(copied / 1e9),
    })  # fmt: skip


def tests(bench: Bench) -> None:
    """The tests that need a CUDA device."""
    if not bench.cuda:
        bench.emit({"skipped": "no CUDA device"})
        return
    files = [
        str(f)
        for f in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in f.read_text()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *files],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    bench.emit(
        {
            "returncode": done.returncode,
            "files": len(files),
            "last_line": done.stdout.strip().splitlines()[-1],
        }
    )


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
    student, pruner = _pruner(bench, state, interval=1000)
    held = state.build()
    sparse = Asp(measure=False).run(state, _context(bench, synthetic_data(10, 32, 8)))
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
        "WFN": (
            held,
            (_hold_fixed(bench, held)[0],),
            {"optimizer": "adam", "clip_grad": 0.5},
        ),
        "asp, zeros held": (masked, (HoldZeros(masked, asp_masks(sparse)),), {}),
    }


def _context(bench: Bench, data: Data) -> Context:
    def no_teacher(name: str, checkpoint: Path | None) -> ModelState:
        raise ValueError(f"no teacher {name!r} here")

    return Context(
        data,
        bench.device,
        seed=0,
        workdir=Path(tempfile.mkdtemp()),
        find_teacher=no_teacher,
    )


class _TimedPruner(Pruner):
    """Notes how long each decision takes, seconds."""

    def __init__(self, bench: Bench, *args: Any) -> None:
        super().__init__(*args)
        self.bench, self.seconds = bench, list[float]()

    def decide(self) -> bool:
        begin = self.bench.now()
        ended = super().decide()
        self.seconds.append(self.bench.now() - begin)
        return ended


def _pruner(
    bench: Bench, state: ModelState, interval: int
) -> tuple[MaskedVit, _TimedPruner]:
    """NViT's student, and the hook that prunes it by operations, two groups an interval."""
    dense = from_timm(state)
    student = MaskedVit.from_state(dense).to(bench.device)
    rules = PruneRules(
        importance="nvit", latency_target=0.3, latency_regularization=5e-4, latency_unit="dense",
        importance_unit="loss", prune_per_iter=32, interval_prune=interval, momentum=0.9, budget=39_000,
        student_eval=True, seed=0,
    )  # fmt: skip
    layout = UnitLayout.of(dense.arch.dims, GroupSizes(heads=1))
    return student, _TimedPruner(
        bench, student, layout, MacsModel.of(dense.arch), rules, bench.device
    )


def _hold_fixed(bench: Bench, module: nn.Module) -> tuple[HoldFixed, float]:
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
    _allow_tf32()
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
                bench.emit({
                    "model": name, "loop": contender, "compiled": compiled, **layout, "batch": batch, **found,
                    "of_bare": round(found["images_per_s"] / first, 3), **_share(bench, state.arch, found["images_per_s"]),
                })  # fmt: skip


def compile_224(bench: Bench) -> None:
    """The same with torch.compile; `first_epoch_s` and `warm_up_s` hold its time."""
    train_224(bench, compiled=True)


def vit_32(bench: Bench) -> None:
    """A ViT at 32 px on images in memory, augmented on the device, beside the same model without data."""
    _allow_tf32()
    batch, steps = bench.size(512, 8), bench.size(48, 2)
    args = bench.size(
        {"patch_size": 4},
        {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2},
    )
    arch = make_arch("vit_tiny_patch16_224", num_classes=100, image_size=32, args=args)
    state = ModelState.initialised(arch, 0)
    data = synthetic_data(100, 32, batch * steps)
    small = Bench(bench.device, True, bench.emit)  # a batch at 32 px
    bare = loop_rate(bench, bare_step(small, state.build(), batch), batch, steps)
    bench.emit({"what": "bare loop, no data", "batch": batch, **bare})
    presets = {
        "no augmentation": AugmentConfig(preset="none"), "crop and flip": AugmentConfig(preset="flip"),
        "DeiT's augmentation": AugmentConfig(repeats=1),
    }  # fmt: skip
    for name, augment in presets.items():
        found = fit_rate(
            bench, state.build(), data, train_config(bench, batch, augment=augment)
        )
        ratio = round(found["images_per_s"] / bare["images_per_s"], 3)
        bench.emit({"what": f"fit, {name}", "batch": batch, **found, "of_bare": ratio})
    for name, augment in presets.items():
        batches = TrainBatches(
            data, augment, batch_size=batch, seed=0, device=bench.device
        )
        rates = [_drain(bench, batches, epoch) for epoch in range(3)]
        bench.emit(
            {
                "what": f"batches alone, {name}",
                "images_per_s": round(batch * steps / min(rates[1:])),
            }
        )


def _drain(bench: Bench, batches: TrainBatches, epoch: int) -> float:
    begin = bench.now()
    for _ in batches.epoch(epoch):
        pass
    return bench.now() - begin


def methods(bench: Bench) -> None:
    """What methods add to a training step of DeiT-S at 224 px in bf16."""
    _allow_tf32()
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
    hook, seconds = _hold_fixed(bench, module)
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
    student, _ = _pruner(bench, state, interval=1000)
    tell("NViT's masked model, no hook", fit_rate(bench, student, data, config))
    teacher = from_timm(state).build().to(bench.device).requires_grad_(False)
    student, _ = _pruner(bench, state, interval=1000)
    objective = KlObjective(TaskObjective(0.1), teacher, 1e5, 3.0)
    tell(
        "the same beside its teacher", fit_rate(bench, student, data, config, objective)
    )
    student, pruner = _pruner(bench, state, interval=1000)
    tell(
        "NViT between decisions",
        fit_rate(bench, student, data, config, objective, hooks=(pruner,)),
    )
    student, pruner = _pruner(bench, state, interval=bench.size(4, 2))
    found = fit_rate(bench, student, data, config, objective, hooks=(pruner,))
    decision_ms = round(1000 * statistics.median(pruner.seconds), 2)
    tell(
        f"NViT, a decision every {pruner.rules.interval_prune} steps",
        found,
        decision_ms=decision_ms,
    )


def latency(bench: Bench) -> None:
    """A latency table of DeiT-B in half precision, measured twice: seconds, and how well it repeats."""
    arch = dense_arch(bench.vit("deit_base_patch16_224"))
    dtype: Literal["float16", "float32"] = bench.size("float16", "float32")
    points = bench.size({}, {"embed": 2, "heads": 2, "qk": 2, "v": 2, "mlp": 2})
    grid = default_grid(arch.dims, points=points)
    shares: list[np.ndarray] = []
    for _ in range(2):
        bench.forget_peak()
        begin = bench.now()
        table = measure_table(
            arch,
            bench.device,
            batch_size=bench.size(256, 1),
            dtype=dtype,
            grid=grid,
            rounds=bench.size(5, 1),
        )
        seconds = bench.now() - begin
        block = table.block.ravel()
        shares.append(block / block[-1])
        bench.emit({
            "what": "table", "points": block.size, "batch": bench.size(256, 1), "dtype": dtype, "seconds": round(seconds, 1),
            "largest_block_ms": round(float(block[-1]), 4), "smallest_block_ms": round(float(block.min()), 4),
            "violations": len(table.check_monotone()), "peak_gib": bench.peak_gib(),
        })  # fmt: skip
    first, second = shares
    noise = {
        "rms_of_point": float(np.sqrt(np.mean(np.log(first / second) ** 2))),
        "rms_of_largest": float(np.sqrt(np.mean((first - second) ** 2))),
        "worst_of_point": float(np.abs(np.log(first / second)).max()),
    }
    bench.emit(
        {"what": "repeated", **{name: round(value, 5) for name, value in noise.items()}}
    )


def clustering(bench: Bench) -> None:
    """WFN's clustering, its pull and the coded file, for weights that are on the device."""
    state = ModelState.initialised(bench.vit("deit_small_patch16_224"), 0)
    module = state.build().to(bench.device)
    parameters = fixable_parameters(module, include_norm=False)
    weights = flat(parameters)
    begin = bench.now()
    here = cluster(weights, 1.0, 0.05)
    on_device_s = bench.now() - begin
    begin = bench.now()
    there = cluster(weights.cpu(), 1.0, 0.05)
    bench.emit({
        "what": "clustering", "weights": len(weights), "values": len(here.codebook),
        "device_tensor_s": round(on_device_s, 2), "cpu_tensor_s": round(bench.now() - begin, 2),
        "same": torch.equal(here.values.cpu(), there.values) and torch.equal(here.assignments.cpu(), there.assignments),
    })  # fmt: skip
    bench.forget_peak()
    begin = bench.now()
    table = PullTable.build(
        here.codebook, 1.5 * float(weights.abs().max()), "relative", 2**-7
    )
    table_s = bench.now() - begin
    rate = loop_rate(
        bench, lambda: _pull_once(weights, table), len(weights), bench.size(10, 1)
    )
    bench.emit({
        "what": "pull", "weights": len(weights), "table_s": round(table_s, 3), "cells": table.cells,
        "forward_backward_ms": rate["ms_per_step"], "peak_gib": rate["peak_gib"],
    })  # fmt: skip
    with torch.no_grad():
        sizes = [p.numel() for p in parameters.values()]
        for parameter, value in zip(
            parameters.values(), here.values.split(sizes), strict=True
        ):
            parameter.copy_(value.view_as(parameter))
    _coded(bench, ModelState.from_module(state.arch, module))


def _pull_once(weights: Tensor, table: PullTable) -> None:
    pull(weights.requires_grad_(), table).backward()
    weights.grad = None


def _coded(bench: Bench, state: ModelState) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.coded"
        begin = time.perf_counter()
        coded = encode(state, path)
        encoded = time.perf_counter()
        same = decode(path).hash() == state.hash()
        bench.emit({
            "what": "coded file", "bytes": coded.size.total_bytes, "encode_s": round(encoded - begin, 2),
            "decode_s": round(time.perf_counter() - encoded, 2), "same": same,
        })  # fmt: skip


def sparse(bench: Bench) -> None:
    """2:4 sparse kernels beside dense ones, whole models in float16."""
    if not has_sparse_kernels(bench.device):
        bench.emit({"skipped": "no 2:4 kernels on this device"})
        return
    for name in ("deit_small_patch16_224", "deit_base_patch16_224"):
        state = ModelState.initialised(bench.vit(name), 0)
        data = synthetic_data(bench.classes, bench.image_px, 8)
        model = Asp(measure=False).run(state, _context(bench, data))
        dense = model.build().to(bench.device, torch.float16)
        kernels = with_sparse_kernels(dense, model.meta["asp"]["layers"], torch.float16)
        for batch in bench.size((1, 64, 256), (4,)):
            images = fixed_batch(bench, batch)[0].half()
            with torch.inference_mode():
                a, b = dense(images).float(), kernels(images).float()
            bench.forget_peak()
            dense_ms, sparse_ms = alternating_latency(
                [dense, kernels], images, rounds=15
            )
            bench.emit({
                "model": name, "batch": batch, "dense_ms": round(dense_ms, 3), "sparse_ms": round(sparse_ms, 3),
                "speedup": round(dense_ms / sparse_ms, 3), "peak_gib": bench.peak_gib(),
                "relative_difference": round(float((a - b).norm() / a.norm()), 5),
            })  # fmt: skip


def precision(bench: Bench) -> None:
    """Inference latency of whole models by precision and batch."""
    _allow_tf32()
    models = {"DeiT-B": bench.vit("deit_base_patch16_224"), "ResNet-50": bench.resnet()}
    for name, arch in models.items():
        module = ModelState.initialised(arch, 0).build()
        for batch in bench.size((1, 256), (2,)):
            for dtype in ("float32", "bfloat16", "float16"):
                bench.forget_peak()
                found = measure_latency(
                    module, bench.image_px, bench.device, batch_size=batch, dtype=dtype, repeats=bench.size(20, 2),
                    channels_last=name == "ResNet-50", max_seconds=3,
                )  # fmt: skip
                bench.emit({
                    "model": name, "batch": batch, "dtype": dtype, "tf32": dtype == "float32",
                    "median_ms": round(found.median_ms, 3), "p25_ms": round(found.p25_ms, 3),
                    "p75_ms": round(found.p75_ms, 3), "images_per_s": round(found.images_per_s),
                    "peak_gib": bench.peak_gib(),
                })  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part, and the seconds after which it is killed."""

    run: Callable[[Bench], None]
    limit_s: float


PARTS = {
    "card": Part(card, 30),
    "tests": Part(tests, 75),
    "syncs": Part(syncs, 40),
    "train_224": Part(train_224, 110),
    "vit_32": Part(vit_32, 60),
    "methods": Part(methods, 80),
    "latency": Part(latency, 90),
    "sparse": Part(sparse, 40),
    "clustering": Part(clustering, 50),
    "compile_224": Part(compile_224, 130),
    "precision": Part(precision, 40),
}
"""Name → part, in order of worth."""
