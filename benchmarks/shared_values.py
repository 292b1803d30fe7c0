"""Ways to put ResNet-20's weights on shared values, side by side.

    python benchmarks/shared_values.py rounding --data CIFAR10 --checkpoint FILE -o FILE.parquet
    python benchmarks/shared_values.py uncertain --data CIFAR10 --checkpoint FILE -o FILE.parquet

rounding: nearest and layer-wise, without training; seeds differ in their calibration images.
uncertain: PWFN, and WFN by nearest values and by layer-wise rounding, with the same training.
A row a result, written as it comes; what the file has already is left out.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kept_rows import KeptRows

from compress.codec.file import coded_bytes
from compress.measure.model import measure_static
from compress.quant_baselines import KmeansQuant, UniformQuant
from compress.stage import Context, Stage
from compress.wfn.probabilistic import Pwfn
from compress.wfn.stage import Wfn
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import Data, load_data
from trainers.models.source import load_source
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")
REPORTED = ("sigmas_allowed", "mean_sigma", "mean_relative_change")
Case = tuple[str, str, int, Stage]
"""(method, setting, seed, stage)."""
TRAIN = {
    "lr": 3e-4,
    "optimizer": "adam",
    "weight_decay": 0,
    "clip_grad": 0.5,
    "first_epoch": 1,
    "fixing_epochs": 1,
    "batch_size": 128,
    "augment": {"preset": "flip", "crop": "none"},
}


def rounding(seeds: int, images: int) -> Iterator[Case]:
    whole = {"percentages": [1.0], "first_epoch": 0}
    stages: list[tuple[str, str, type[Stage], dict[str, Any]]] = [
        *(("uniform", f"{b} bits", UniformQuant, {"bits": b}) for b in (3, 4, 5)),
        *(
            ("k-means", f"{k}", KmeansQuant, {"clusters": k, "scope": "network"})
            for k in (8, 12, 16, 24)
        ),
        *(
            ("WFN, without training", f"δ {d}", Wfn, whole | {"distance_allowed": d})
            for d in (0.05, 0.1)
        ),
    ]
    for seed in range(seeds):
        for method, setting, kind, given in stages:
            if seed == 0:  # nearest rounding sees no images: one seed says all
                yield f"{method}, nearest", setting, seed, kind(**given)
            layerwise = kind(rounding="layerwise", **given)
            yield f"{method}, layer-wise", setting, seed, layerwise


def uncertain(seeds: int, images: int) -> Iterator[Case]:
    train = TRAIN | {"images_per_epoch": images}
    published = train | {
        "optimizer": "sgd",
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "clip_grad": 1.0,
    }
    for seed in range(seeds):
        for d in (0.02, 0.035):
            yield "WFN", f"δ {d}", seed, Wfn(distance_allowed=d, **train)
            layerwise = Wfn(distance_allowed=d, rounding="layerwise", **train)
            yield "WFN, layer-wise", f"δ {d}", seed, layerwise
        for d in (1.0, 2.0):
            yield "PWFN", f"δ {d:g} σ", seed, Pwfn(sigmas=(d, d), **train)
        yield "PWFN, published optimiser", "δ 1 σ", seed, Pwfn(**published)


TABLES = {"rounding": rounding, "uncertain": uncertain}


def result(
    stage: Stage, data: Data, checkpoint: Path, workdir: Path, seed: int
) -> dict[str, Any]:
    source = load_source(
        SourceConfig(model="resnet20_cifar", checkpoint=checkpoint),
        num_classes=data.info.num_classes,
        image_size=data.info.image_size,
        seed=0,
    )
    context = Context(data, CPU, seed, workdir, lambda name, file: source)
    start = time.process_time()
    model = stage.run(source, context)
    seconds = time.process_time() - start
    measured = measure_static(model, data.info.image_size) | {
        "coded_bytes": coded_bytes(model)
    }
    accuracy = evaluate(model.build(), data, "test", CPU)["accuracy"]
    kept = ("entropy_bits", "unique_values", "coded_bytes", "model_bytes")
    return {
        "test_accuracy": accuracy,
        "cpu_seconds": seconds,
        **{name: float(measured[name]) for name in kept},
        **{k: float(v) for k, v in context.reported.items() if k in REPORTED},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    parser.add_argument("--epoch", type=int, default=1280, help="images an iteration")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    rows = KeptRows(given.output, ("method", "setting", "seed"))
    for method, setting, seed, stage in TABLES[given.table](given.seeds, given.epoch):
        if rows.has(method, setting, seed):
            continue
        config = DataConfig(
            dataset="parquet",
            root=given.data,
            limit_test=given.images,
            split_seed=seed,
            # it is evaluated after each iteration, and nothing is chosen by it
            val_fraction=0.01 if given.table == "uncertain" else 0.1,
        )
        data = load_data(config, given.cache)
        with tempfile.TemporaryDirectory() as workdir:
            row = result(stage, data, given.checkpoint, Path(workdir), seed)
        rows.add({"method": method, "setting": setting, "seed": seed} | row)


if __name__ == "__main__":
    main()
