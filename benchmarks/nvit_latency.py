"""Latency tables: a published one reproduced, query times, and estimates of a table
measured here against the clock.

    python benchmarks/nvit_latency.py --table nvit_v100_latency.json
    python benchmarks/nvit_latency.py --measure --device cpu --threads 1 --batch 64

With --table (NViT's JSON) every entry is looked up, and DeiT-B estimated. With --measure a
table is measured for a ViT of width 96 and depth 6 on 32 px (patch 4), then pruned models
of random shapes are timed beside the dense one, in turns, and their latency ratios compared
with the table's.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

from compress.measure.latency_table import LatencyTable
from compress.measure.model import alternating_latency
from compress.measure.table_measurement import default_grid, measure_table
from trainers.models.from_timm import dense_arch
from trainers.models.make import make_arch
from trainers.models.parameters import BLOCK_DIMS, DIMENSIONS

GROUPS = {"embed": 8, "heads": 1, "qk": 4, "v": 4, "mlp": 16}


def in_turns_ms(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    times: list[list[float]] = []
    for _ in range(rounds):
        row = []
        for function in functions:
            begin = time.perf_counter()
            function()
            row.append(1000 * (time.perf_counter() - begin))
        times.append(row)
    return np.median(times, axis=0).tolist()


def published(path: Path) -> None:
    table, content = LatencyTable.read(path), json.loads(path.read_text())
    points = np.stack(
        [axis.reshape(-1) for axis in np.meshgrid(*table.axes, indexing="ij")], 1
    )
    entries = [
        content[f"EMB_{e}"][f"QK_{h}_{qk}"][f"V_{v}"][f"MLP_{m}"]
        for e, h, qk, v, m in points.tolist()
    ]
    found = table.block_ms(points)
    print(
        f"{np.sum(found == 1000 * np.array(entries))} of {len(points)} grid points"
        " exact"
    )
    entry = 1000 * content["EMB_768"]["QK_12_64"]["V_64"]["MLP_3072"]
    estimate = table.model_ms(768, np.array([[12, 64, 64, 3072]] * 12))
    print(f"dense DeiT-B {estimate:.6f} ms, 12 entries {12 * entry:.6f} ms")
    for tolerance in (0.0, 0.02):
        print(
            f"places where more is over {100 * tolerance:.0f} % faster:"
            f" {len(table.check_monotone(tolerance))}"
        )
    scipy = RegularGridInterpolator(table.axes, table.block)
    generator = np.random.default_rng(0)
    for n in (12, 144, 10_000):
        dims = np.stack(
            [generator.integers(axis[0], axis[-1] + 1, n) for axis in table.axes], 1
        )
        np.testing.assert_allclose(table.block_ms(dims), scipy(dims), rtol=1e-12)
        functions = [
            lambda d=dims: table.block_ms(d),
            lambda d=dims: scipy(d),
            lambda d=dims: table.gradient(d),
        ]
        ours, theirs, gradient = in_turns_ms(functions, 200 if n < 1000 else 20)
        print(
            f"{n} blocks: ours {ours:.2f} ms, SciPy {theirs:.2f} ms, all five"
            f" differences {gradient:.2f} ms"
        )


def measured(device: torch.device, batch: int, models: int) -> None:
    args = {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 6}
    arch = dense_arch(
        make_arch("vit_tiny_patch16_224", num_classes=10, image_size=32, args=args)
    )
    grid = default_grid(arch.dims, groups=GROUPS)
    begin = time.perf_counter()
    table = measure_table(arch, device, batch_size=batch, grid=grid)
    print(
        f"{table.block.size} points in {time.perf_counter() - begin:.0f} s;"
        f" {table.fingerprint}"
    )
    for tolerance in (0.02, 0.1):
        print(
            f"places where more is over {100 * tolerance:.0f} % faster:"
            f" {len(table.check_monotone(tolerance))}"
        )
    generator = np.random.default_rng(1)
    images = torch.randn(
        batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)
    ).to(device)
    dense, depth, errors = arch.build().eval().to(device), len(arch.dims["heads"]), []
    dense_ms = table.model_ms(arch.dims["embed"], _blocks(arch.dims))
    for _ in range(models):
        dims = {
            name: [_some(generator, grid, name) for _ in range(depth)]
            for name in BLOCK_DIMS
        }
        pruned = replace(arch, dims={"embed": _some(generator, grid, "embed"), **dims})
        estimate = table.model_ms(pruned.dims["embed"], _blocks(pruned.dims)) / dense_ms
        whole_ms, pruned_ms = alternating_latency(
            [dense, pruned.build().eval().to(device)], images
        )
        errors.append(estimate / (pruned_ms / whole_ms) - 1)
        print(
            f"ratio measured {pruned_ms / whole_ms:.3f} estimated {estimate:.3f}  "
            f" ({whole_ms:.1f} ms, {dense_ms:.1f} ms)"
        )
    print(
        f"error of the ratio: mean {100 * np.mean(errors):+.1f} %, worst"
        f" {100 * max(errors, key=abs):+.1f} %"
    )


def _blocks(dims: dict[str, list[int]]) -> np.ndarray:
    return np.stack([dims[name] for name in BLOCK_DIMS], 1)


def _some(generator: np.random.Generator, grid: dict[str, list[int]], name: str) -> int:
    assert name in DIMENSIONS
    groups = grid[name][-1] // GROUPS[name]
    return int(GROUPS[name] * generator.integers(max(1, groups // 4), groups + 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--models", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table:
        published(options.table)
    if options.measure:
        measured(options.device, options.batch, options.models)


if __name__ == "__main__":
    main()
