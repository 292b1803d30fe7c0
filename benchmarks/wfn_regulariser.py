"""What WFN's regulariser costs a step, beside the model's own forward and backward pass.

Run: python benchmarks/wfn_regulariser.py [--weights 11700000] [--centroids 200] [--threads
2] [--image-size 224]

Prints seconds and peak memory of one regulariser step (forward and backward) on Laplace
weights, the time to build its table (once an iteration), and seconds of ResNet-18's forward
and backward pass at batch 64.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from compress.wfn.regulariser import PullTable, pull
from trainers.models.arch import ModelState
from trainers.models.make import make_arch


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall seconds of each repeat, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return times


def told(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=int, default=11_700_000)
    parser.add_argument("--centroids", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(options.weights, generator=generator) - 0.5
    weights = (
        -uniform.sign() * torch.log1p(-2 * uniform.abs()) * 0.02
    ).requires_grad_()
    del uniform
    centroids = torch.quantile(
        weights.detach()[:1_000_000], torch.linspace(0, 1, options.centroids)
    ).unique()
    before = peak_mb()
    begun = time.perf_counter()
    table = PullTable.build(
        centroids, 1.5 * float(centroids.abs().max()), "relative", 2**-7
    )
    print(
        f"table for {len(centroids)} centroids: {time.perf_counter() - begun:.2f} s,"
        f" {table.cells} cells a segment"
    )

    def step() -> None:
        weights.grad = None
        pull(weights, table).backward()

    print(
        f"regulariser, {options.weights:,} weights: {told(seconds(step, 5))}, peak"
        f" {peak_mb() - before:.0f} MB more"
    )
    arch = make_arch("resnet18", num_classes=1000, image_size=options.image_size)
    module = ModelState.initialised(arch, 0).build().train()
    images = torch.randn(64, 3, options.image_size, options.image_size)
    model = told(seconds(lambda: module(images).sum().backward(), 3))
    print(
        f"ResNet-18 forward and backward, batch 64 at {options.image_size} px: {model}"
    )


if __name__ == "__main__":
    main()
