"""Seconds and memory of one Weight Fixing clustering call, its growth with n, and the
method's check values.

    python benchmarks/wfn_clustering.py [--checkpoint FILE]

FILE holds a CIFAR ResNet-20 (safetensors or a state dict). Its convolutional and linear
weights are clustered and the figures compared with those of the public checkpoint that the
method was checked on. The other weights are Laplace noise, each size in a process of its
own; 0 MB means that importing torch took more. A minute on two cores, 4 GB.
"""

import argparse
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.measure.model import value_statistics
from compress.wfn.clustering import Clustering, cluster
from trainers.config import SourceConfig
from trainers.models.source import load_source

SIZES = {
    "ResNet-20": 268_346,
    "1 M": 1_000_000,
    "ResNet-18": 11_700_000,
    "ResNet-50": 25_500_000,
    "DeiT-B": 86_000_000,
}
KNOWN = {(0.05, 1.0): (71, 5.126), (0.05, 0.3): (6, 2.300), (0.01, 0.3): (24, 3.640)}
"""(allowed distance, fraction) → distinct values and bits among the fixed, of the public
ResNet-20 checkpoint.
"""


def main() -> None:
    """Print a table of sizes and, with a checkpoint, the check values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a CIFAR ResNet-20")
    parser.add_argument("--max-distance", type=float, default=0.01)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument(
        "--scale", type=float, default=0.02, help="of the Laplace distribution"
    )
    parser.add_argument(
        "--distance", choices=("relative", "euclidean"), default="relative"
    )
    parser.add_argument(
        "--most",
        type=int,
        default=max(SIZES.values()),
        help="leave out sizes above this",
    )
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size:
        print(measure(args))
        return
    if args.checkpoint:
        check(args.checkpoint)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Laplace weights of"
        f" scale {args.scale}, ",
        end="",
    )
    print(f"{args.distance}, a = {args.max_distance}, p = {args.fraction}")
    print(
        f"{'':10} {'n':>11} {'seconds':>8} {'ns/weight':>10}"
        f" {'peak MB above the weights':>26} {'values':>7}"
    )
    for name, size in SIZES.items():
        if size <= args.most:
            command = [sys.executable, __file__, *sys.argv[1:], "--size", str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{name:10} {size:11,} {done.stdout.rstrip()}", flush=True)


def measure(args: argparse.Namespace) -> str:
    """One size in this process: seconds, ns a weight, MB that the peak rose above what the
    weights took, values.
    """
    cluster(torch.randn(1000), 1, 0.05)
    noise = torch.empty(args.size).exponential_(
        1 / args.scale, generator=torch.Generator().manual_seed(0)
    )
    noise[::2].neg_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = cluster(noise, args.fraction, args.max_distance, distance=args.distance)
    seconds = time.perf_counter() - start
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    return (
        f"{seconds:8.2f} {1e9 * seconds / args.size:10.0f} {peak_mb:26.0f}"
        f" {len(result.codebook):7}"
    )


def check(path: Path) -> None:
    """Cluster a ResNet-20's weights; compare with the known values."""
    state = load_source(
        SourceConfig(model="resnet20_cifar", checkpoint=path),
        num_classes=10,
        image_size=32,
        seed=0,
    )
    layers = [
        m for m in state.build().modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    weights = torch.cat(
        [
            p.detach().flatten()
            for layer in layers
            for p in layer.parameters(recurse=False)
        ]
    )
    print(f"{path.name}: {len(weights):,} weights, best of three")
    for distance, fraction in [*KNOWN, (0.01, 1.0)]:
        seconds = math.inf
        for _ in range(3):
            start = time.perf_counter()
            result = cluster(weights, fraction, distance)
            seconds = min(seconds, time.perf_counter() - start)
        values, bits = fixed_statistics(result)
        known = KNOWN.get((distance, fraction))
        verdict = (
            ""
            if known is None
            else (
                " as known" if known == (values, round(bits, 3)) else f" KNOWN: {known}"
            )
        )
        print(
            f"a = {distance}, p = {fraction}: {values} values, {bits:.3f} bits,"
            f" {seconds:.3f} s{verdict}"
        )


def fixed_statistics(result: Clustering) -> tuple[int, float]:
    """Distinct values and entropy, bits, of the fixed weights."""
    fixed: Tensor = result.values[result.fixed]
    statistics = value_statistics([fixed])
    return int(statistics.unique_values), float(statistics.entropy_bits)


if __name__ == "__main__":
    main()
