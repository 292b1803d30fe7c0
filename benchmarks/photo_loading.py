"""Images per second of streamed training images with DeiT's augmentation at 224 px, beside timm's
loader and torchvision's v2 transforms.

    python benchmarks/photo_loading.py

Crops of the two photographs that scikit-learn brings, 500 x 375 px, as JPEG files in class folders.
All loaders decode, crop, mirror, RandAugment, normalise, erase and mix the same files, in rounds
that alternate; nothing is repeated unless a line says so. "Fed" is what a processor core feeds to a
GPU: images for each second of CPU that the loader processes need, where the loader leaves the rest
to the device. "All" is what a model on the processor gets: there
our loader keeps mirror and colour, too. A minute on two cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader

from trainers.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig
from trainers.data.splits import Data, TrainBatches, epoch_order, load_data
from trainers.data.streaming import ImageReader, Streams
from trainers.data.views import train_view
from trainers.timm_internals import _allow_black_posterize
from trainers.timm_library import timm

SIZE, CLASSES = 224, 8
PHOTO_PX, QUALITY = (500, 375), 95
CPU = torch.device("cpu")
Batches = Callable[[], Iterable[tuple[Any, Any]]]


def main() -> None:
    """Print one line for each loader and way to measure it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="of one measurement")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "photos"
        size = write_photos(root, args.images)
        print(
            f"{os.cpu_count()} cores, 1 thread; {args.images} JPEG files of"
            f" {PHOTO_PX[0]} x {PHOTO_PX[1]} px, {size / 1e3:.0f} kB on average"
        )
        data = load(root, Path(scratch) / "cache", 0)
        spread = load(root, Path(scratch) / "cache", args.workers)
        batch = args.batch_size
        compare(
            "fed, one process, images per second of CPU",
            time.process_time,
            {
                "ours": lambda: our_loader(data, batch, repeats=1),
                "ours, 3 copies of each image": lambda: our_loader(data, batch, 3),
                "timm": lambda: timm_loader(root, batch, 0).loader,
                "torchvision v2": lambda: v2_loader(root, batch, 0),
            },
            args,
        )
        compare(
            "all, one process, images per second of CPU",
            time.process_time,
            {
                "ours": lambda: our_batches(data, batch, repeats=1),
                "ours, 3 copies of each image": lambda: our_batches(data, batch, 3),
                "timm": lambda: timm_loader(root, batch, 0),
                "torchvision v2": lambda: v2_loader(root, batch, 0),
            },
            args,
        )
        ours, timms = (
            our_batches(spread, batch, 1),
            timm_loader(root, batch, args.workers),
        )
        v2 = v2_loader(root, batch, args.workers)
        compare(
            f"all, {args.workers} loader processes, images per second",
            time.perf_counter,
            {"ours": lambda: ours, "timm": lambda: timms, "torchvision v2": lambda: v2},
            args,
        )


def compare(
    what: str,
    clock: Callable[[], float],
    loaders: dict[str, Batches],
    args: argparse.Namespace,
) -> None:
    """Measure passes in turn; the first round warms up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds + 1):
        for name, batches in loaders.items():
            start = clock()
            images = sum(len(labels) for _, labels in batches())
            rates[name].append(images / (clock() - start))
    print(f"{what}; median (smallest to largest) of {args.rounds} rounds")
    for name, values in rates.items():
        counted = values[1:]
        ratios = [a / b for a, b in zip(counted, rates["timm"][1:], strict=True)]
        print(
            f"  {name}: {statistics.median(counted):,.0f} ({min(counted):,.0f} to"
            f" {max(counted):,.0f}); over timm {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def write_photos(root: Path, count: int) -> float:
    """`count` photographs to train on, and few to test; their mean size in bytes."""
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    width, height = PHOTO_PX
    sizes = []
    for part, images in (("train", count), ("val", CLASSES)):
        for k in range(images):
            photo = whole[k % len(whole)]
            left = int(rng.integers(photo.width - width))
            top = int(rng.integers(photo.height - height))
            file = root / part / f"class{k % CLASSES}" / f"{k:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            cut = photo.crop((left, top, left + width, top + height))
            cut.save(file, quality=QUALITY)
            sizes.append(file.stat().st_size)
    return statistics.mean(sizes)


def load(root: Path, cache: Path, workers: int) -> Data:
    """The photographs as our data set."""
    config = DataConfig(
        dataset="folder", root=root, val_fraction=0, workers=workers, image_size=SIZE
    )
    return load_data(config, cache)


def our_batches(data: Data, batch_size: int, repeats: int) -> Any:
    """Training batches as a fit sees them, pass after pass."""
    augment = AugmentConfig(repeats=repeats)
    batches = TrainBatches(data, augment, batch_size=batch_size, seed=0, device=CPU)

    class Passes:
        epoch = -1

        def __iter__(self) -> Any:
            self.epoch += 1
            return batches.epoch(self.epoch)

    return Passes()


def our_loader(data: Data, batch_size: int, repeats: int) -> Any:
    """What loader processes do, without what the device does."""
    view, _ = train_view(AugmentConfig(), data.config, SIZE, CPU, in_batches=True)
    images = data.train
    assert isinstance(images.store, ImageReader)
    streams = Streams(
        images.store, images.rows, images.labels, view, data.config, CPU, training=True
    )
    order, _ = epoch_order(len(images.rows), batch_size, 0, 0, repeats)
    order = order.view(-1, batch_size)
    seeds = np.random.default_rng(0).integers(2**63, size=tuple(order.shape))
    return streams.train(order, seeds)


def timm_loader(root: Path, batch_size: int, workers: int) -> Any:
    """As timm's train script calls it; `loader` of it is what the loader processes do."""
    mixup = timm.data.FastCollateMixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES
    )
    loader = timm.data.create_loader(
        timm.data.ImageDataset(str(root / "train")),
        input_size=(3, SIZE, SIZE),
        batch_size=batch_size,
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=workers,
        collate_fn=mixup,
        pin_memory=False,
        device=CPU,
        persistent_workers=workers > 0,
    )
    _allow_black_posterize(loader.dataset.transform)  # else recent Pillow ends the pass
    return loader


def v2_loader(root: Path, batch_size: int, workers: int) -> DataLoader:
    """As torchvision's reference script: Pillow's decoder, then tensors."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    bicubic = InterpolationMode.BICUBIC
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(SIZE, interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.RandomErasing(0.25),
        ]
    )
    mixes = v2.RandomChoice(
        [v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)]
    )

    def collate(samples: list[Any]) -> Any:
        return mixes(*torch.utils.data.default_collate(samples))

    return DataLoader(
        ImageFolder(str(root / "train"), transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )


if __name__ == "__main__":
    main()
