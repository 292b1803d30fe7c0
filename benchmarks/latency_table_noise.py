"""How well does a latency table repeat? The digits ViT's (432 points, batch 64), measured
twice in a row.

    OMP_NUM_THREADS=1 python benchmarks/latency_table_noise.py [--rounds 5]

Printed: seconds of each, and the differences between the two, point by point, in shares of
the point and of the largest block.
"""

import argparse
import time

import numpy as np
from nvit_digits import CPU, GROUPS, VIT

from compress.measure.table_measurement import default_grid, measure_table
from trainers.models.from_timm import dense_arch
from trainers.models.make import make_arch


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    dense = dense_arch(
        make_arch("vit_tiny_patch16_224", num_classes=10, image_size=32, args=VIT)
    )
    grid = default_grid(dense.dims, groups=GROUPS.model_dump())
    shares = []
    for _ in range(2):
        begin = time.perf_counter()
        block = measure_table(
            dense, CPU, batch_size=64, grid=grid, rounds=args.rounds
        ).block.ravel()
        print(f"{block.size} points in {time.perf_counter() - begin:.0f} s")
        shares.append(block / block[-1])
    first, second = shares
    own = np.sqrt(np.mean(np.log(first / second) ** 2))
    print(
        f"root mean square: {own:.1%} of the point,"
        f" {np.sqrt(np.mean((first - second) ** 2)):.1%} of the largest block"
    )


if __name__ == "__main__":
    main()
