"""Does a table of a runtime predict that runtime? Estimated against measured latency of pruned
ViTs in OpenVINO, by a table of OpenVINO and by one of eager torch.

    OMP_NUM_THREADS=1 python benchmarks/nvit_runtime.py tables FOLDER    # some ten minutes
    OMP_NUM_THREADS=1 python benchmarks/nvit_runtime.py compare FOLDER   # under two minutes

`tables` measures both tables and keeps them. `compare` takes for each table, target and seed a
model whose units were removed at random until the table says that the target is met, and times
it and the dense model in OpenVINO, the passes taken in turns. No model is trained: a latency
does not depend on weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from compress.measure.latency_table import LatencyTable
from compress.measure.options import RuntimeOptions
from compress.measure.table_measurement import default_grid, measure_table
from compress.nvit.measured import alternating
from trainers.models.arch import Arch, ModelState

DENSE = {"embed": 96, "heads": [3] * 6, "qk": [32] * 6, "v": [32] * 6, "mlp": [384] * 6}
ARGS = {
    "num_classes": 10,
    "img_size": 64,
    "patch_size": 8,
    "in_chans": 3,
    "scale": 0.18,
}
POINTS = {"embed": 3, "heads": 3, "qk": 2, "v": 2, "mlp": 3}
STEPS = {"embed": 16, "heads": 1, "qk": 8, "v": 8, "mlp": 16}
OPENVINO = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)


def arch_of(dims: dict) -> Arch:
    return Arch("pruned_vit", "vit", ARGS, dims)


def estimate(table: LatencyTable, dims: dict) -> float:
    blocks = np.array([dims[name] for name in ("heads", "qk", "v", "mlp")]).T
    return table.model_ms(dims["embed"], blocks)


def pruned(table: LatencyTable, target: float, seed: int) -> dict:
    """Dimensions that the table says to have at most `target` of the dense latency."""
    rng = np.random.default_rng(seed)
    dims = {k: list(v) if isinstance(v, list) else v for k, v in DENSE.items()}
    limit = target * estimate(table, DENSE)
    while estimate(table, dims) > limit:
        name = rng.choice(list(STEPS))
        if name == "embed":
            # every block pays for it, so it goes more rarely
            if rng.random() < 0.15:
                dims["embed"] = max(32, dims["embed"] - STEPS["embed"])
            continue
        block = rng.integers(len(dims[name]))
        least = STEPS[name]
        dims[name][block] = max(least, dims[name][block] - STEPS[name])
    return dims


def main(command: str, folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if command == "tables":
        groups = {name: STEPS[name] for name in STEPS}
        grid = default_grid(DENSE, points=POINTS, groups=groups)
        for runtime in ("torch", "openvino"):
            table = measure_table(
                arch_of(DENSE), "cpu", batch_size=1, grid=grid, runtime=runtime
            )
            table.write(folder / f"{runtime}.parquet")
        return
    for runtime in ("openvino", "torch"):
        table = LatencyTable.read(folder / f"{runtime}.parquet")
        for target in (0.7, 0.5, 0.35):
            errors = []
            for seed in range(3):
                dims = pruned(table, target, seed)
                states = [
                    ModelState.initialised(arch_of(each), seed)
                    for each in (dims, DENSE)
                ]
                small, dense = alternating(states, 64, OPENVINO, torch.device("cpu"))
                estimated = estimate(table, dims) / estimate(table, DENSE)
                errors.append(estimated / (small / dense) - 1)
            shown = "  ".join(f"{100 * error:+.1f} %" for error in errors)
            print(f"table of {runtime:8}  target {target}  estimated/measured {shown}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
