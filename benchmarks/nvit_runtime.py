"""Does a table of a runtime predict that runtime? Estimated against measured latency of pruned
ViTs in OpenVINO int8, by tables of OpenVINO int8, of its float32, and of eager torch.

    OMP_NUM_THREADS=1 python benchmarks/nvit_runtime.py tables FOLDER    # a minute or two
    OMP_NUM_THREADS=1 python benchmarks/nvit_runtime.py compare FOLDER   # two or three minutes
    OMP_NUM_THREADS=1 python benchmarks/nvit_runtime.py compare FOLDER "torch float32"

`tables` measures the tables and keeps them. `compare` takes for each table, target and seed a
model whose units were removed at random until the table says that the target is met, and times
it and the dense model in OpenVINO int8, the passes taken in turns. No model is trained: a latency
does not depend on weights.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.int8.timing import in_integers
from compress.measure.latency import times_in_turns
from compress.measure.latency_table import LatencyTable
from compress.measure.options import RuntimeOptions
from compress.measure.table_measurement import default_grid, measure_table
from compress.runtimes.interface import Session
from compress.runtimes.onnx_file import write_onnx
from compress.runtimes.onnx_sizes import unique_sizes, write_resized
from compress.runtimes.registry import runtime
from trainers.models.arch import Arch

BLOCKS = 6
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
LEAST_EMBED = 32
OPENVINO = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)


def arch_of(dims: dict) -> Arch:
    return Arch("pruned_vit", "vit", ARGS, dims)


def estimate(table: LatencyTable, dims: dict) -> float:
    blocks = np.array([dims[name] for name in ("heads", "qk", "v", "mlp")]).T
    return table.model_ms(dims["embed"], blocks)


def pruned(table: LatencyTable, target: float, seed: int) -> dict | None:
    """Dimensions that the table says to have at most `target` of the dense latency; None where it
    says so of none.
    """
    rng = np.random.default_rng(seed)
    dims = {k: list(v) if isinstance(v, list) else v for k, v in DENSE.items()}
    limit = target * estimate(table, DENSE)
    least = {"embed": LEAST_EMBED} | {
        name: [STEPS[name]] * BLOCKS for name in ("heads", "qk", "v", "mlp")
    }
    if estimate(table, least) > limit:
        return None
    while estimate(table, dims) > limit:
        name = rng.choice(list(STEPS))
        if name == "embed":
            # every block pays for it, so it goes more rarely
            if rng.random() < 0.15:
                dims["embed"] = max(LEAST_EMBED, dims["embed"] - STEPS["embed"])
            continue
        block = rng.integers(len(dims[name]))
        least = STEPS[name]
        dims[name][block] = max(least, dims[name][block] - STEPS[name])
    return dims


TABLES: dict[str, dict[str, Any]] = {
    "openvino int8": {"runtime": "openvino", "quantiser": in_integers},
    "openvino float32": {"runtime": "openvino"},
    "torch float32": {},
}


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.parquet"


def measure_tables(folder: Path) -> None:
    grid = default_grid(DENSE, points=POINTS, groups=STEPS)
    for name, options in TABLES.items():
        begun = time.perf_counter()
        table = measure_table(arch_of(DENSE), "cpu", batch_size=1, grid=grid, **options)
        table.write(file_of(folder, name))
        seconds = time.perf_counter() - begun
        print(f"table of {name}: {table.block.size} points in {seconds:.0f} s")


class Models:
    """Models of any dimensions in OpenVINO int8, all made from one that was exported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        taken = {1, 2, 3, 8, 10, 64, 65}  # in this model, and none of its dimensions
        embed, *others = unique_sizes(1 + 4 * BLOCKS, taken)
        self.marks = {"embed": embed} | {
            name: others[BLOCKS * i : BLOCKS * (i + 1)]
            for i, name in enumerate(("heads", "qk", "v", "mlp"))
        }
        export(self.marks, folder / "model.onnx")

    def session(self, dims: dict) -> Session:
        sizes = {self.marks["embed"]: dims["embed"]}
        for name in ("heads", "qk", "v", "mlp"):
            sizes |= dict(zip(self.marks[name], dims[name], strict=True))
        for name in ("qk", "v"):
            pairs = zip(self.marks["heads"], self.marks[name], strict=True)
            sizes |= {heads * each: sizes[heads] * sizes[each] for heads, each in pairs}
        write_resized(self.folder / "model.onnx", sizes, self.folder / "pruned.onnx")
        return runtime("openvino").load_onnx(self.folder / "pruned.onnx", OPENVINO)


def export(dims: dict, file: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    module = arch_of(dims).build().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # equal ones would be written once
            parameter.normal_(std=0.02)
        write_onnx(in_integers(module, images), images, file, {})


def medians(*sessions: Session) -> list[float]:
    """Milliseconds of a pass of each, in turns."""
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    passes = [each.timed_pass(images) for each in sessions]
    times = times_in_turns(passes, warmup=20, rounds=200, max_seconds=10)
    return [float(np.median(each)) for each in times]


def compare(folder: Path, *names: str) -> None:
    models = Models(folder)
    dense = models.session(DENSE)
    export(DENSE, folder / "dense.onnx")
    exported = runtime("openvino").load_onnx(folder / "dense.onnx", OPENVINO)
    resized_ms, exported_ms = medians(dense, exported)
    print(
        f"dense model, computed in {exported.precision}: {exported_ms:.3f} ms exported,"
        f" {resized_ms:.3f} ms from the other's file"
    )
    for name in names or TABLES:
        table = LatencyTable.read(file_of(folder, name))
        for target in (0.7, 0.5, 0.35):
            shown = []
            for seed in range(3):
                dims = pruned(table, target, seed)
                if dims is None:
                    shown.append("nothing, by this table")
                    continue
                small_ms, dense_ms = medians(models.session(dims), dense)
                estimated = estimate(table, dims) / estimate(table, DENSE)
                error = 100 * (estimated * dense_ms / small_ms - 1)
                shown.append(f"{small_ms / dense_ms:.3f} ({error:+.1f} %)")
            print(f"table of {name:16}  target {target}  measured {'  '.join(shown)}")


def main(command: str, folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if command == "tables":
        measure_tables(folder)
    else:
        compare(folder, *names)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
