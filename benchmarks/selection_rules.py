"""Rules of weight selection on ResNet-20 → half its width, CIFAR-10: before and after short tuning.

    python benchmarks/selection_rules.py --data CIFAR10 --checkpoint FILE -o FILE.parquet

The classifier is selected too. Seeds differ in images (those that are looked at, and those of the
tuning) and in the rule `random`. A row a result, written as it comes; what the file has already is
left out.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from kept_rows import KeptRows

from compress.finetune import Finetune
from compress.selection.stage import WeightSelection
from compress.stage import Context
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import load_data
from trainers.models.source import load_source
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")
RULES = ("random", "uniform", "magnitude", "activation")


def result(given: argparse.Namespace, rule: Any, compensate: bool, seed: int) -> Any:
    data = load_data(
        DataConfig(
            dataset="parquet",
            root=given.data,
            limit_test=given.test_images,
            split_seed=seed,
            val_fraction=0.01,  # nothing is chosen by it
        ),
        given.cache,
    )
    source = load_source(
        SourceConfig(model="resnet20_cifar", checkpoint=given.checkpoint),
        num_classes=data.info.num_classes,
        image_size=data.info.image_size,
        seed=0,
    )
    select = WeightSelection(
        args={"width": 8},
        element_rule=rule,
        compensate=compensate,
        copy_head=True,
        selection_images=given.images,
    )
    tune = Finetune(
        epochs=given.epochs,
        images_per_epoch=given.epoch,
        batch_size=64,
        lr=1e-3,
        lr_scaling="unscaled",
        warmup=0,
        augment={"preset": "flip"},
    )
    with tempfile.TemporaryDirectory() as folder:
        context = Context(data, CPU, seed, Path(folder), lambda name, file: source)
        start = select.run(source, context)
        tuned = tune.run(start, context)
    return {
        "before": evaluate(start.build(), data, "test", CPU)["accuracy"],
        "tuned": evaluate(tuned.build(), data, "test", CPU)["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--images", type=int, default=128, help="that selection sees")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--epoch", type=int, default=1280, help="images of an epoch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    rows = KeptRows(given.output, ("rule", "compensate", "seed"))
    for seed in range(given.seeds):
        for rule in RULES:
            for compensate in (False, True):
                if rows.has(rule, compensate, seed):
                    continue
                named = {"rule": rule, "compensate": compensate, "seed": seed}
                rows.add(named | result(given, rule, compensate, seed))


if __name__ == "__main__":
    main()
