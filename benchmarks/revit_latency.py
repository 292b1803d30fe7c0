"""Latency of the two shapes of the preset revit-cifar10, passes alternating: are they equal?

OMP_NUM_THREADS=1 python benchmarks/revit_latency.py [--rounds 100]
"""

import argparse

import torch
import yaml

from compress.measure.model import alternating_latency, count_gmacs
from sweeps.spec.load import preset_text
from trainers.models.make import make_arch


def main() -> None:
    """Print milliseconds, multiply-accumulates and parameters of both, and the ratio of
    latencies.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    spec = next(iter(yaml.safe_load_all(preset_text("revit-cifar10"))))
    shapes = spec["search"]["space"]["source.args"]["choices"]
    archs = {
        name: make_arch(
            "revit", num_classes=10, image_size=32, args=spec["source"]["args"] | lists
        )
        for name, lists in shapes.items()
    }
    modules = [arch.build().eval() for arch in archs.values()]
    times_ms = alternating_latency(
        modules, torch.randn(64, 3, 32, 32), rounds=args.rounds, max_seconds=120
    )
    for (name, arch), module, ms in zip(archs.items(), modules, times_ms, strict=True):
        size = sum(p.numel() for p in module.parameters())
        print(
            f"{name:8} {ms:.1f} ms a batch of 64, {count_gmacs(arch, 32):.4f} GMACs an"
            f" image, {size:,} parameters"
        )
    print(
        f"{times_ms[0] / times_ms[1]:.3f} of {list(archs)[1]}'s latency,"
        f" {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
