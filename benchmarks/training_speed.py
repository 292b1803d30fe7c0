"""Images per second of our loop beside a bare PyTorch loop, in one process, alternating.

Run: python benchmarks/training_speed.py [--cifar FOLDER] [--threads 2] [--rounds 7]

1. A ViT at 32 px, batch 128, images in memory: `trainers.training.fit` with no augmentation
  and with crop and flip, against
   the shortest loop that trains the same model with the same optimiser on a normalised
   float tensor.
2. With --cifar (Parquet as Hugging Face datasets writes it): ResNet-20 with crop and flip,
  against that loop fed by a
   DataLoader of two processes that decodes Parquet bytes and applies torchvision's
   transforms, and against that loop
   with all batches made beforehand: what the model's own arithmetic allows.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trainers.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    DataConfig,
    TrainConfig,
)
from trainers.data.splits import Data, TrainBatches, load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training.fit import fit
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
BATCH = 128


def bare_loop(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Images per second of the shortest loop there is."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.05)
    module.train()
    images_seen, begun = 0, time.perf_counter()
    for images, labels in batches:
        loss = nn.functional.cross_entropy(module(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        images_seen += len(images)
    return images_seen / (time.perf_counter() - begun)


def our_loop(module: nn.Module, data: Data, preset: Any) -> float:
    """Images per second that `fit` states for one epoch."""
    config = TrainConfig(
        epochs=1,
        batch_size=BATCH,
        lr=1e-3,
        lr_scaling="unscaled",
        warmup=0,
        augment=AugmentConfig(preset=preset),
    )
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            module,
            data,
            TaskObjective(0.1),
            config,
            seed=0,
            device=CPU,
            workdir=Path(folder),
        )
    return result.rows[0]["images_per_second"]


def in_memory_batches(data: Data) -> Iterable[tuple[Tensor, Tensor]]:
    """Shuffled batches out of one normalised float tensor."""
    plain = TrainBatches(
        data, AugmentConfig(preset="none"), batch_size=BATCH, seed=0, device=CPU
    )
    images, labels = (torch.cat(parts) for parts in zip(*plain.epoch(0), strict=True))
    order = torch.randperm(len(images))
    for i in range(0, len(order) - BATCH + 1, BATCH):
        rows = order[i : i + BATCH]
        yield images[rows], labels[rows]


class ParquetImages(Dataset[tuple[Tensor, int]]):
    """Decodes and transforms one image at a time."""

    def __init__(self, files: list[Path], limit: int) -> None:
        rows = [
            row
            for file in files
            for row in pyarrow.parquet.read_table(file).to_pylist()
        ][:limit]
        self.items = [(row["image"]["bytes"], row["label"]) for row in rows]
        # here: trainers mends what torchvision's import needs of another build of torch
        from torchvision.transforms import v2 as transforms

        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        content, label = self.items[i]
        return self.transform(Image.open(io.BytesIO(content)).convert("RGB")), label


def compare(
    title: str, contenders: dict[str, Callable[[], float]], rounds: int
) -> None:
    """Alternate, and print medians, ranges, and the ratio of each round to the first
    contender's.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            rate = run()
            if i:  # the first round warms up
                rates[name].append(rate)
    print(title)
    first = next(iter(rates.values()))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, first, strict=True)]
        print(
            f"  {name:32s} {statistics.median(values):8.0f} images/s ({min(values):.0f}"
            f" to {max(values):.0f})   ratio {statistics.median(ratios):.3f}"
            f" ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", type=Path, help="folder with train-*.parquet and test-*.parquet"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, batch {BATCH}")
    cache = Path(tempfile.mkdtemp())
    digits = load_data(DataConfig(dataset="digits", val_fraction=0), cache)
    vit = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
    )
    module = ModelState.initialised(vit, 0).build()
    ready = list(in_memory_batches(digits))
    compare(
        "ViT (patch 4, width 96, depth 6), digits at 32 px",
        {
            "bare loop, float tensor": lambda: bare_loop(module, ready),
            "our loop, no augmentation": lambda: our_loop(module, digits, "none"),
            "our loop, crop and flip": lambda: our_loop(module, digits, "flip"),
        },
        options.rounds,
    )
    if options.cifar:
        limit = 2560
        cifar = load_data(
            DataConfig(
                dataset="parquet", root=options.cifar, limit=limit, val_fraction=0
            ),
            cache,
        )
        made = list(
            TrainBatches(
                cifar,
                AugmentConfig(preset="flip"),
                batch_size=BATCH,
                seed=0,
                device=CPU,
            ).epoch(0)
        )
        resnet = ModelState.initialised(
            make_arch("resnet20_cifar", num_classes=10, image_size=32), 0
        ).build()
        images = ParquetImages(sorted(options.cifar.glob("train-*.parquet"))[:1], limit)
        loader: DataLoader[Any] = DataLoader(
            images,
            BATCH,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            persistent_workers=True,
        )
        compare(
            "ResNet-20, CIFAR-10 from Parquet, crop and flip: training",
            {
                "bare loop, DataLoader 2 workers": lambda: bare_loop(resnet, loader),
                "bare loop, batches made before": lambda: bare_loop(resnet, made),
                "our loop": lambda: our_loop(resnet, cifar, "flip"),
            },
            max(2, options.rounds // 2),
        )


if __name__ == "__main__":
    main()
