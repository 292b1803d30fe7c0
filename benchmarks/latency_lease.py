"""What the measuring lease is worth: latencies beside training, with and without it.

Run: OMP_NUM_THREADS=1 python benchmarks/latency_lease.py --beside 4     # a minute

`--beside` processes train a small ViT without end, as trials do. Every other student of
`latency_trust.py` is timed three times one after the other, in a random order: as the only one on
the node (`measuring.alone`), beside the others without a lease, and while they really rest, which
is the truth. So a drift of the machine from model to model does not matter.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_trust import SIZES
from scipy.stats import kendalltau
from torch import nn

from compress.measure.latency import Timing, timing_of
from compress.measure.model import pass_of
from trainers import measuring
from trainers.models.make import make_arch

CPU = torch.device("cpu")
WAYS = ("alone", "beside", "truth")


def vit(embed_dim: int, depth: int) -> nn.Module:
    args = {"patch_size": 8, "embed_dim": embed_dim, "depth": depth, "num_heads": 3}
    arch = make_arch("vit_tiny_patch16_224", num_classes=10, image_size=32, args=args)
    return arch.build()


def train(name: str, node: Path, rest: Any, end: Any) -> None:
    """A trial that trains until it is told to end; it sleeps while it is told to rest."""
    torch.set_num_threads(1)
    model = vit(48, 4).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    with measuring.taking_part(CPU, name, node) as member:
        while not end.is_set():
            while rest.is_set():
                with member.still():
                    time.sleep(0.01)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
            optimiser.zero_grad()
            measuring.pause_point()


def timed(embed_dim: int, depth: int) -> Timing:
    """As a trial measures its model."""
    model, source = (
        pass_of(vit(*size), 32, CPU, batch_size=64)
        for size in ((embed_dim, depth), (96, 6))
    )
    with torch.inference_mode():
        return timing_of(model, source, warmup=3, repeats=30, max_seconds=10)


def one_way(way: str, size: tuple[int, int], node: Path, rest: Any) -> Timing:
    if way == "alone":
        with measuring.alone(CPU, 30.0, node):
            return timed(*size)
    if way == "truth":
        rest.set()
        time.sleep(0.3)  # the longest step
    try:
        return timed(*size)
    finally:
        rest.clear()


def show(found: dict[str, list[Timing]], beside: int) -> None:
    truth = found["truth"]
    print(f"{len(truth)} models, {beside} processes beside on {os.cpu_count()} cores")
    for way in ("alone", "beside"):
        for name in ("median_ms", "ratio"):
            ours, known = (
                np.array([getattr(each, name) for each in found[w]])
                for w in (way, "truth")
            )
            error = 100 * np.abs(ours / known - 1)
            tau = kendalltau(ours, known).statistic
            print(
                f"  {way:6} {name:9}: tau {tau:.3f}, error {np.median(error):.1f} %"
                f" (median), {error.max():.1f} % (worst)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=int, default=4)
    beside = parser.parse_args().beside
    torch.set_num_threads(1)
    sizes = SIZES[::2]
    context = multiprocessing.get_context("spawn")
    rest, end = context.Event(), context.Event()
    order = np.random.default_rng(0)
    found: dict[str, list[Timing]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        node = Path(folder)
        workers = [
            context.Process(target=train, args=(f"trial-{i}", node, rest, end))
            for i in range(beside)
        ]
        for worker in workers:
            worker.start()
        while len(list(node.glob("processes/*"))) < beside:
            time.sleep(0.1)
        for size in sizes:
            for way in order.permutation(WAYS):
                found[way].append(one_way(way, size, node, rest))
        rest.clear()
        end.set()
        for worker in workers:
            worker.join()
    show(found, beside)


if __name__ == "__main__":
    main()
