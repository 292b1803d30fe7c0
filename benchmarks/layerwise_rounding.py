"""Layer-wise rounding beside nearest rounding, on one network without training.

    python benchmarks/layerwise_rounding.py --data CIFAR10 --checkpoint FILE -o FILE.parquet

The network's weights go to the values of a method by nearest and by layer-wise rounding. What
differs between seeds are the calibration images. A row a result, written as it comes; what the
file has already is left out.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from compress.codec.file import coded_bytes
from compress.measure.model import measure_static
from compress.quant_baselines import KmeansQuant, UniformQuant
from compress.stage import Context, Stage
from compress.wfn.stage import Wfn
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import Data, load_data
from trainers.models.source import load_source
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")
WHOLE = {"percentages": [1.0], "first_epoch": 0}
STAGES: dict[str, tuple[type[Stage], list[dict[str, Any]]]] = {
    "uniform": (UniformQuant, [{"bits": b} for b in (3, 4, 5)]),
    "k-means": (
        KmeansQuant,
        [{"clusters": k, "scope": "network"} for k in (8, 12, 16, 24)],
    ),
    "WFN": (Wfn, [WHOLE | {"distance_allowed": d} for d in (0.05, 0.1, 0.2)]),
}


def cases(seeds: int) -> Iterator[tuple[str, str, int, Stage]]:
    """(method, setting, seed, stage)."""
    for seed in range(seeds):
        for method, (kind, options) in STAGES.items():
            for given in options:
                setting = next(str(given[k]) for k in given if k in KEYS)
                for rounding in ("nearest", "layerwise"):
                    # nearest rounding sees no images: one seed says all
                    if rounding == "layerwise" or seed == 0:
                        yield method, setting, seed, kind(rounding=rounding, **given)


KEYS = ("bits", "clusters", "distance_allowed")


def result(stage: Stage, data: Data, checkpoint: Path, workdir: Path) -> dict[str, Any]:
    source = load_source(
        SourceConfig(model="resnet20_cifar", checkpoint=checkpoint),
        num_classes=data.info.num_classes,
        image_size=data.info.image_size,
        seed=0,
    )
    context = Context(data, CPU, 0, workdir, lambda name, file: source)
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
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--images", type=int, default=4000, help="of the test set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    rows = (
        pd.read_parquet(given.output).to_dict("records")
        if given.output.exists()
        else []
    )
    done = {(r["method"], r["setting"], r["rounding"], r["seed"]) for r in rows}
    for method, setting, seed, stage in cases(given.seeds):
        rounding = str(stage.model_dump()["rounding"])
        if (method, setting, rounding, seed) in done:
            continue
        config = DataConfig(
            dataset="parquet",
            root=given.data,
            limit_test=given.images,
            split_seed=seed,
        )
        data = load_data(config, given.cache)
        row = result(stage, data, given.checkpoint, given.cache / "work")
        named = {
            "method": method,
            "setting": setting,
            "rounding": rounding,
            "seed": seed,
        }
        rows.append(named | row)
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_parquet(given.output, index=False)


if __name__ == "__main__":
    main()
