"""What is training with rounding worth where calibration alone loses accuracy?

    python benchmarks/int8_training.py MODEL DATA.yaml [--bits 4] [--images 6400] [--seeds 3]

MODEL is a folder that `sweeps export --format safetensors` wrote, DATA.yaml the `data` part of its
spec. The model with 8-bit activations and weights of so many bits, calibrated alone and trained
for one epoch of so many images, beside the float model tuned for as many: accuracy on the test
set for each seed, which decides the order of training (calibration draws nothing, so it is run
once). Time: 8 minutes of a core for the ViT of vit-cifar10.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import compress
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.training.evaluate import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--bits", type=int, default=4, choices=(4, 8), help="of weights"
    )
    parser.add_argument("--images", type=int, default=6400, help="of the epoch")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("int8_training"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    config = DataConfig.model_validate(yaml.safe_load(given.data.read_text()))
    folders = {"cache": given.work / "stages", "data_cache": given.work / "data"}
    data = load_data(config, folders["data_cache"])
    fit = {
        "epochs": 1,
        "images_per_epoch": given.images,
        "batch_size": 64,
        "lr": given.lr,
        "lr_scaling": "unscaled",
        "warmup": "5%",
        "augment": "flip",
    }
    bits: dict[str, Any] = {"four_bit_fraction": 1.0 if given.bits == 4 else 0.0}
    distill = {"teacher": "source", "kind": "soft", "alpha": 0.9}
    ways: dict[str, list[Any]] = {
        "float": [],
        "float, tuned": [("finetune", fit | {"distill": distill})],
        "calibrated": [("int8", bits)],
        "trained": [("int8", bits | fit)],
    }
    for name, stages in ways.items():
        seen = []
        trains = any("epochs" in options for _, options in stages)
        for seed in range(given.seeds if trains else 1):
            source = SourceConfig(checkpoint=given.model)
            model: ModelState = (
                compress.run(source, config, stages, seed=seed, **folders).model
                if stages
                else ModelState.load(given.model)
            )
            found = evaluate(model.build(), data, "test", torch.device("cpu"))
            seen.append(100 * found["accuracy"])
        each = " ".join(f"{accuracy:.2f}" for accuracy in seen)
        print(f"{name:14} {np.mean(seen):.2f} % ({each})", flush=True)


if __name__ == "__main__":
    main()
