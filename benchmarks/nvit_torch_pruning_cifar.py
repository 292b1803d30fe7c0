"""torch-pruning (PyPI) beside the preset nvit-cifar10: the same ViT, data, table and fine-tuning.

    pip install torch-pruning
    python benchmarks/nvit_torch_pruning_cifar.py --data CIFAR10 --model vit-cifar10 --table
    table.parquet -o FILE.parquet

Model and table are those of the preset. torch-pruning ranks by group Taylor, as in
`nvit_torch_pruning.py`, until the table's estimate meets the target; NViT's 20 pruning
epochs end early, so that fine-tuning here has twice the images of the preset's for what
that pruning trained on. A row a run: target, seed, estimated and measured latency ratio
(batch 64, its own timm module alternating with the unpruned model), test accuracy,
parameters, multiply-accumulates.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from nvit_digits import CPU, context
from nvit_torch_pruning import as_pruned_vit, measured, torch_pruned

from compress.finetune import Finetune
from compress.measure.latency_table import LatencyTable
from compress.measure.model import measure_static
from sweeps.spec.load import preset_text
from trainers.config import DataConfig
from trainers.data.splits import Data, load_data
from trainers.models.arch import ModelState
from trainers.models.from_timm import dense_arch
from trainers.training.evaluate import evaluate


def one(
    model: ModelState,
    data: Data,
    table: LatencyTable,
    target: float,
    seed: int,
    spec: dict[str, Any],
) -> dict[str, Any]:
    """Prune, tune, measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vit, estimated = torch_pruned(
            model, context(data, folder / "prune", seed), table, target
        )
        pruned = as_pruned_vit(vit, dense_arch(model.arch))
        options = {
            k: v for k, v in spec["stages"]["finetune"].items() if k != "kl_teacher"
        }
        stage = Finetune(
            **options | {"epochs": 2 * options["epochs"], "kl_teacher": "source"}
        )
        tuned = stage.run(pruned, context(data, folder / "tune", seed, model))
    sizes = measure_static(tuned, data.info.image_size)
    return {
        "target": target,
        "seed": seed,
        "estimated": estimated,
        "measured": measured(vit, model, data),
        "test_accuracy": evaluate(tuned.build(), data, "test", CPU)["accuracy"],
        "num_params": sizes["num_params"],
        "gmacs": sizes["gmacs"],
    }


def main() -> None:
    """Run every seed and target; write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    spec = next(iter(yaml.safe_load_all(preset_text("nvit-cifar10"))))
    model, table = ModelState.load(args.model), LatencyTable.read(args.table)
    data = load_data(
        DataConfig(**spec["data"], root=args.data), Path(tempfile.gettempdir())
    )
    rows = []
    for seed in range(args.seeds):
        for target in (0.5, 0.33):
            rows.append(one(model, data, table, target, seed, spec))
            print(rows[-1], torch.get_num_threads(), "threads", flush=True)
            pd.DataFrame(rows).to_parquet(args.out, index=False)


if __name__ == "__main__":
    main()
