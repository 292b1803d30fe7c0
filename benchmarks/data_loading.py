"""Images per second of training batches, and of the usual loader on the same data.

    python benchmarks/data_loading.py --cifar FOLDER

FOLDER holds CIFAR-10 as Parquet (train-*.parquet, test-*.parquet, as Hugging Face
`datasets` writes). Without it, noise of the same size is written to a temporary folder. A
minute on two cores.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainers.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig
from trainers.data.splits import TrainBatches, load_data

OURS = {
    "ours: crop + flip": AugmentConfig(preset="flip"),
    "ours: DeiT (crop, flip, RandAugment, erasing, mixup / cutmix)": AugmentConfig(),
    "ours: DeiT without RandAugment": AugmentConfig(
        auto_augment=None, color_jitter=0.0
    ),
    "ours: DeiT III (three_augment)": AugmentConfig(
        three_augment=True, auto_augment=None, color_jitter=0.3, erase_prob=0
    ),
}


def main() -> None:
    """Print one line per path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", type=Path, help="folder of CIFAR-10 as Parquet; default: noise"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="measured time of each path"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="loader processes of the usual loader"
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="torch's threads; on a machine shared with others 1 is fastest",
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load"
        f" {os.getloadavg()[0]:.1f}, device {args.device}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = args.cifar or write_noise(Path(scratch) / "noise", 6000)
        start = time.perf_counter()
        data = load_data(
            DataConfig(dataset="parquet", root=root, val_fraction=0),
            Path(scratch) / "cache",
        )
        print(
            f"decoding {data.size('train') + data.size('test')} images once:"
            f" {time.perf_counter() - start:.1f} s"
        )
        load_data.cache_clear()
        start = time.perf_counter()
        data = load_data(data.config, Path(scratch) / "cache")
        print(
            "opening them again, as the next trial does:"
            f" {time.perf_counter() - start:.2f} s"
        )
        device = torch.device(args.device)
        for name, augment in OURS.items():
            batches = TrainBatches(
                data, augment, batch_size=args.batch_size, seed=0, device=device
            )
            print(
                f"{name}: {rate(endless(batches), args.seconds, device):,.0f} images/s"
            )
        loader = usual_loader(root, args.batch_size, args.workers, args.device)
        name = (
            f"torchvision transforms, DataLoader of {args.workers}: crop + flip,"
            " decoding each time"
        )
        print(f"{name}: {rate(repeat(loader), args.seconds, device):,.0f} images/s")


def rate(batches: Iterator[Any], seconds: float, device: torch.device) -> float:
    """Images per second after a warm-up of five batches."""
    for _ in range(5):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[0].to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def endless(batches: TrainBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def repeat(loader: Iterable[Any]) -> Iterator[Any]:
    """Pass after pass."""
    while True:
        yield from loader


class ParquetImages(Dataset):
    """What most scripts do: encoded images in memory, decoded and transformed one by one."""

    def __init__(self, root: Path, transform: Any) -> None:
        table = pq.read_table(sorted(root.glob("train-*.parquet")))
        self.blobs = [image["bytes"] for image in table["image"].to_pylist()]
        self.labels, self.transform = table["label"].to_pylist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return (
            self.transform(Image.open(io.BytesIO(self.blobs[index])).convert("RGB")),
            self.labels[index],
        )


def usual_loader(root: Path, batch_size: int, workers: int, device: str) -> DataLoader:
    """RandomCrop(32, 4), flip, ToTensor, Normalize in loader processes."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return DataLoader(
        ParquetImages(root, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device != "cpu",
    )


def write_noise(root: Path, count: int) -> Path:
    """`count` training images in CIFAR-10's layout."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, images in (("train", count), ("test", 100)):
        rows = []
        for pixels in rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {"image": pa.array(rows, kind), "label": rng.integers(0, 10, images)}
        )
        pq.write_table(table, root / f"{part}-00000-of-00001.parquet")
    return root


if __name__ == "__main__":
    main()
