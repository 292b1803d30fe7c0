"""NViT on the bundled digits: what Hessian-awareness and latency terms are worth, and
whether estimates hold.

    python benchmarks/nvit_digits.py [--workdir DIR] [--seeds 3] [--targets 0.7 0.5 0.35]
    python benchmarks/nvit_digits.py --held-out --importances nvit:0.01 nvit:0.03 nvit:0.1
    nvit:0.3 --workdir OTHER
    python benchmarks/nvit_digits.py --macs --seeds 5 --importances nvit published taylor
    magnitude random --workdir DIR -o results/nvit-digits.parquet

For each seed a small ViT is trained; for each target it is pruned by each importance and
fine-tuned, both together in the same number of epochs for all (who prunes in fewer steps
tunes longer). Printed: estimated latency ratio, measured ratio at batch 64 (alternating
with the unpruned model, all models one after the other at the end), accuracy on the 360
test images before and after fine-tuning, mean ± standard deviation over seeds. The latency
table is measured once, at the beginning. `--workdir` keeps teachers, table and finished
rows, so that it goes on where it stopped; `--held-out` scores on a third of the training
images, which teachers then never see (eta was chosen so, a target each); `--only` does one
part, so that what is timed can run when the machine is quiet. Set OMP_NUM_THREADS to the
threads that a trial shall have.

`published` takes the decisions of NViT's code: how groups are counted, its reset and weights
of importance, the divisor of heads, and its eta beside importance in units of the loss (5e-4
for seconds of a V100, which are 4.85e-4 of its dense DeiT-B's latency). With `--macs`
multiply-accumulates stand for latency: the same on every machine, and nothing is timed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from compress.finetune import Finetune
from compress.measure.model import alternating_latency
from compress.measure.table_measurement import default_grid, measure_table
from compress.nvit.groups import GroupSizes
from compress.nvit.stage import Nvit
from compress.stage import Context
from trainers.config import DataConfig
from trainers.data.splits import Data, Split, load_data
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import dense_arch
from trainers.models.make import make_arch
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")
VIT = {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
TRAIN: dict[str, Any] = {"batch_size": 32, "lr_scaling": "unscaled", "augment": "none"}
GROUPS = GroupSizes(embed=4, heads=1, qk=4, v=4, mlp=16)
PRUNE: dict[str, Any] = TRAIN | {
    "epochs": 40,
    "lr": 5e-4,
    "groups": GROUPS,
    "interval_prune": 2,
    "kl_loss_coeff": 1e3,
    "importance_unit": "share",
    "eval_every": 40,
    "measure": False,
}
ETA = {0.7: 0.03, 0.5: 0.1, 0.35: 0.3}
"""Of nvit at each target: the best of 0.003 to 1 on held-out training images."""
FINETUNE: dict[str, Any] = TRAIN | {
    "lr": 5e-4,
    "warmup": 0,
    "kl_teacher": "source",
    "kl_loss_coeff": 1e3,
    "eval_every": 99,
}
IMPORTANCES = ("nvit", "taylor", "magnitude", "random")
PUBLISHED: dict[str, Any] = {
    "importance": "nvit",
    "importance_unit": "loss",
    "importance_reset": True,
    "importance_weights": "after",
    "head_divisor": 12,
    "counting": "published",
    "latency_regularization": 4.85e-4,
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options that the digits benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument(
        "--epochs",
        type=int,
        nargs="+",
        default=[4, 6, 8],
        help="of pruning and tuning, a target each",
    )
    return parser


def digits(workdir: Path, val_fraction: float = 0.1) -> Data:
    return load_data(
        DataConfig(dataset="digits", val_fraction=val_fraction), workdir / "data"
    )


def context(
    data: Data, workdir: Path, seed: int, teacher: ModelState | None = None
) -> Context:
    def find(name: str, checkpoint: Path | None) -> ModelState:
        assert teacher is not None
        return teacher

    torch.manual_seed(seed)
    return Context(data, CPU, seed, workdir, find)


def teacher(data: Data, workdir: Path, seed: int) -> ModelState:
    """The ViT to prune, trained once."""
    folder = workdir / f"teacher-{seed}"
    if not (folder / "model.json").exists():
        args = {
            "num_classes": data.info.num_classes,
            "image_size": data.info.image_size,
            "args": VIT,
        }
        fresh = ModelState.initialised(make_arch("vit_tiny_patch16_224", **args), seed)
        stage = Finetune(epochs=30, lr=1e-3, warmup="10%", eval_every=30, **TRAIN)
        stage.run(fresh, context(data, workdir / f"training-{seed}", seed)).save(folder)
    return ModelState.load(folder)


def accuracy(state: ModelState, data: Data, split: Split = "test") -> float:
    return evaluate(state.build(), data, split, CPU)["accuracy"]


def latency_table(arch: Arch, workdir: Path) -> Path:
    """The table of this model on this machine at batch 64, measured once."""
    path = workdir / "latency.parquet"
    if not path.exists():
        begin, dense = time.perf_counter(), dense_arch(arch)
        grid = default_grid(dense.dims, groups=GROUPS.model_dump())
        table = measure_table(dense, CPU, batch_size=64, grid=grid, rounds=12)
        found = table.check_monotone()
        table.write(path)
        print(
            f"latency table: {table.block.size} points in"
            f" {time.perf_counter() - begin:.0f} s, {len(found)} not monotone"
        )
    return path


def one(
    model: ModelState,
    data: Data,
    folder: Path,
    seed: int,
    options: dict[str, Any],
    epochs: int,
    split: Split,
) -> dict[str, Any]:
    """Prune and fine-tune in `epochs` together; what was seen. Seconds are of this
    process's CPU time.
    """
    ctx = context(data, folder / "prune", seed)
    begin = time.process_time()
    pruned = Nvit(**PRUNE | options).run(model, ctx)
    seconds = time.process_time() - begin
    left = epochs - epochs_of(ctx.reported["prune_steps"], data)
    tuned = Finetune(**FINETUNE, epochs=left).run(
        pruned, context(data, folder / "tune", seed, model)
    )
    return ctx.reported | {
        "before": accuracy(pruned, data, split),
        "after": accuracy(tuned, data, split),
        "seconds": seconds,
        "dims": pruned.arch.dims,
        "tune_epochs": left,
    }


def epochs_of(steps: int, data: Data) -> int:
    """Whole epochs that so many optimiser steps are."""
    return round(steps / (data.size("train") // TRAIN["batch_size"]))


def spread(values: list[float], digits: int = 3) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """Run what is missing, print every row and the table of means."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--importances", nargs="+", default=IMPORTANCES, help="nvit:0.1 sets its eta"
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="score on training images that are held out",
    )
    parser.add_argument(
        "--macs", action="store_true", help="latency is multiply-accumulates"
    )
    parser.add_argument("-o", type=Path, help="Parquet file of all rows")
    parser.add_argument(
        "--only", choices=("table", "runs"), help="no more than this part"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(args, args.workdir or Path(temporary))


def run(args: argparse.Namespace, workdir: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    data, split = (
        (digits(workdir, 0.35), "val") if args.held_out else (digits(workdir), "test")
    )
    # as many steps as the same epochs have with all training images
    longer = digits(workdir).size("train") / data.size("train")
    rows: dict[tuple[float, str], list[dict[str, Any]]] = {}
    full = []
    for seed in range(args.seeds):
        model = teacher(data, workdir, seed)
        full.append(accuracy(model, data, split))
        by: dict[str, Any] = {"latency": "macs"}
        if not args.macs:
            by = {"table": latency_table(model.arch, workdir)}
        if args.only == "table":
            return
        for target, epochs in zip(args.targets, args.epochs, strict=True):
            for importance in args.importances:
                file = workdir / f"{importance}-{target}-{seed}.json"
                if not file.exists():
                    options = options_of(importance, target) | by
                    row = one(
                        model,
                        data,
                        workdir / file.stem,
                        seed,
                        options,
                        round(epochs * longer),
                        split,
                    )
                    file.write_text(json.dumps(row))
                row = json.loads(file.read_text())
                rows.setdefault((target, importance), []).append(row)
                print(
                    f"{target} {importance:9} seed {seed}: {row['stop_reason']}, steps"
                    f" {row['prune_steps']}, estimated"
                    f" {row['latency_ratio_estimated']:.3f}, accuracy"
                    f" {row['before']:.3f} → {row['after']:.3f}, {row['tune_epochs']}"
                    f" epochs, {row['seconds']:.0f} s, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    if args.o is not None:
        write(rows, args.o)
    if args.only is None and not args.macs:
        measure(dense_arch(model.arch), rows, data)
    report(rows, full)


def options_of(importance: str, target: float) -> dict[str, Any]:
    """Of the stage, for a name as `--importances` takes it."""
    kind, _, eta = importance.partition(":")
    options = {"importance": kind, "latency_regularization": ETA.get(target, 0.1)}
    if kind == "published":
        options = dict(PUBLISHED)
    if eta:
        options["latency_regularization"] = float(eta)
    return options | {"latency_target": target}


def write(rows: dict[tuple[float, str], list[dict[str, Any]]], file: Path) -> None:
    """All rows, without dimensions, and without seconds, which other work decides."""
    pd.DataFrame(
        {"target": target, "importance": importance, "seed": seed}
        | {
            name: value
            for name, value in row.items()
            if name not in ("dims", "seconds")
        }
        for (target, importance), group in rows.items()
        for seed, row in enumerate(group)
    ).to_parquet(file)


def measure(
    dense: Arch, rows: dict[tuple[float, str], list[dict[str, Any]]], data: Data
) -> None:
    """Add the measured latency ratio to every row; weights do not matter for it."""
    size = data.info.image_size
    images = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(0))
    whole = dense.build().eval()
    for row in (row for group in rows.values() for row in group):
        pruned = replace(dense, dims=row["dims"]).build().eval()
        pruned_ms, whole_ms = alternating_latency([pruned, whole], images)
        row["latency_ratio_measured"] = pruned_ms / whole_ms


def report(
    rows: dict[tuple[float, str], list[dict[str, Any]]], full: list[float]
) -> None:
    print(
        f"\nunpruned: {spread(full)}; {len(full)} seeds, {torch.get_num_threads()}"
        f" threads of {os.cpu_count()} cores"
    )
    print(
        f"{'target':6} {'importance':10} {'estimated':15} {'measured':15} {'before':15}"
        f" {'after':15}"
    )
    for (target, importance), group in rows.items():
        columns = (
            "latency_ratio_estimated",
            "latency_ratio_measured",
            "before",
            "after",
        )
        cells = [
            spread([row[c] for row in group]) if c in group[0] else "-" for c in columns
        ]
        print(
            f"{target:<6} {importance:10} " + " ".join(f"{cell:15}" for cell in cells)
        )
    errors = [
        row["latency_ratio_measured"] / row["latency_ratio_estimated"] - 1
        for group in rows.values()
        for row in group
        if "latency_ratio_measured" in row
    ]
    if errors:
        print(
            f"measured over estimated: worst {100 * max(errors, key=abs):+.1f} %, mean"
            f" {100 * statistics.mean(errors):+.1f} %"
        )


if __name__ == "__main__":
    main()
