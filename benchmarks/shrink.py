"""`sweeps shrink` beside what its neighbours do for the same goal in the same time.

    python benchmarks/shrink.py PAIRS.yaml -o shrink.jsonl [--pairs NAME …] [--ways WAY …]
    python benchmarks/shrink.py --table shrink.jsonl

PAIRS.yaml (`benchmarks/shrink_pairs.yaml` is the table's): pair → {model: FOLDER, data: DATA.yaml,
goals: [{latency: 0.5x}, …], max_loss: 1%, hours: 0.5}, paths relative to it. `--hours` overrides
the time, to see that all works. Ways: `shrink`; `int8` (the stage alone); `nncf`
(quantize_with_accuracy_control, pip install nncf); `torch_pruning` (MetaPruner by group Taylor to
the goal's share of operations, then tuning for the rest of the time, float; pip install
torch-pruning).

All files are OpenVINO's. Accuracy is of the file on validation and test part; milliseconds are of
one image on one thread, in turns with the source's file; nothing else should run then. A goal
is met where cost and validation accuracy keep it. A row that is in the file is not made again.
Each row is made by a process of its own: what ends one, memory too, leaves the others; the last
line counts the rows that are missing, and the same command makes these.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from int8_compare import loaded
from prune_channels import whole_layers
from torch import Tensor

from compress.finetune import Finetune
from compress.int8.stage import Int8
from compress.measure.latency import times_in_turns
from compress.measure.options import RuntimeOptions
from compress.runtimes.registry import runtime
from compress.stage import Context
from sweeps.shrink.request import Goal, goal, max_loss
from trainers.config import DataConfig
from trainers.data.splits import Data, Split, eval_batches, load_data
from trainers.files import default_data_cache
from trainers.models.arch import ModelState

CPU = torch.device("cpu")
CALIBRATION_IMAGES = 128
ROUNDS = 200


class Task:
    """One goal of a pair, with one seed.

    Attributes:
        share: what the goal leaves of the source's cost, where it is a multiple.
    """

    def __init__(
        self, pair: dict[str, Any], goals: dict[str, str], seed: int, beside: Path
    ) -> None:
        self.folder, self.data_file = beside / pair["model"], beside / pair["data"]
        self.config = DataConfig.model_validate(
            yaml.safe_load(self.data_file.read_text())
        )
        self.data: Data = load_data(self.config, default_data_cache())
        self.state = ModelState.load(self.folder)
        self.goals, self.seed = goals, seed
        self.loss, self.hours = str(pair.get("max_loss", "1%")), float(pair["hours"])
        self.size = self.data.info.image_size
        self.wanted: list[Goal] = [goal(k, v) for k, v in goals.items()]  # type: ignore[arg-type]
        self.share = self.wanted[0].times or 0.5

    def context(self, folder: Path) -> Context:
        return Context(self.data, CPU, self.seed, folder, lambda name, file: self.state)

    def calibration(self) -> list[Tensor]:
        batches = self.context(Path(tempfile.mkdtemp())).images(CALIBRATION_IMAGES)
        return [image for batch in batches for image in batch.split(1)]

    def batches(self, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in eval_batches(self.data, split, 64, CPU):
            yield images.numpy(), labels.numpy()


def by_shrink(task: Task, folder: Path) -> Path:
    """The command as a user gives it."""
    words = [
        sys.executable,
        "-m",
        "sweeps",
        "shrink",
        str(task.folder),
        "--data",
        str(task.data_file),
    ]
    for name, value in task.goals.items():
        words += [f"--{name}", value]
    words += ["--max-loss", task.loss, "--hours", str(task.hours)]
    words += ["--runtime", "openvino", "--seed", str(task.seed), "-o", str(folder)]
    done = subprocess.run(words, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return folder / "model" / "model.xml"


def by_int8(task: Task, folder: Path) -> Path:
    """The stage alone, with its defaults."""
    stage = Int8(images=CALIBRATION_IMAGES)
    return written(stage.run(task.state, task.context(folder / "int8")), task, folder)


def by_nncf(task: Task, folder: Path) -> Path:
    """NNCF's quantisation with accuracy control: layers go back to float until it is kept."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(written(task.state, task, folder / "float"))
    validation = list(task.batches("val"))

    def accuracy(compiled: Any, batches: Any) -> float:
        rights = [compiled(x)[0].argmax(1) == y for x, y in batches]
        return float(np.concatenate(rights).mean())

    allowed = max_loss(task.loss, "fraction")["loss"]
    found = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset([one.numpy() for one in task.calibration()]),
        nncf.Dataset(validation),
        validation_fn=accuracy,
        max_drop=allowed,
        subset_size=CALIBRATION_IMAGES,
    )
    file = folder / "model.xml"
    openvino.save_model(found, file, compress_to_fp16=False)
    return file


def by_torch_pruning(task: Task, folder: Path) -> Path:
    """Pruned to the goal's share of operations, then tuned for the rest of the time, in float."""
    import torch_pruning

    begun = time.monotonic()
    module, example = task.state.build(), torch.zeros(1, 3, task.size, task.size)
    for images, labels in task.context(folder / "grads").batches(4):
        torch.nn.functional.cross_entropy(module(images), labels).backward()
    classes = task.data.info.num_classes
    heads = [
        layer
        for layer in module.modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == classes
    ]
    attentions: list[Any] = [m for m in module.modules() if hasattr(m, "qkv")]
    whole, _ = torch_pruning.utils.count_ops_and_params(module, example)
    pruner = torch_pruning.pruner.MetaPruner(
        module,
        example,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=0.95,
        iterative_steps=100,
        global_pruning=True,
        ignored_layers=[*heads, *whole_layers(task.state, module)],
        num_heads={m.qkv: m.num_heads for m in attentions},
    )
    for _ in range(100):
        pruner.step()
        for m in attentions:  # as its own example for timm's ViTs
            m.num_heads = pruner.num_heads[m.qkv]
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
        macs, _ = torch_pruning.utils.count_ops_and_params(module, example)
        if macs <= task.share * whole:
            break
    tune(module, task, 3600 * task.hours - (time.monotonic() - begun))
    return written_module(module, task, folder)


def tune(module: torch.nn.Module, task: Task, seconds: float) -> None:
    """Train a module towards labels and the source for so long, cosine by the clock."""
    teacher = task.state.build().eval()
    options = Finetune(lr=3e-4, lr_scaling="unscaled", batch_size=32)
    optimiser = torch.optim.AdamW(module.parameters(), lr=options.lr)
    begun, step = time.monotonic(), 0
    while (gone := (time.monotonic() - begun) / max(seconds, 1e-9)) < 1:
        for images, labels in task.context(Path(tempfile.mkdtemp())).batches(16, 32):
            for group in optimiser.param_groups:
                group["lr"] = options.lr * (1 + np.cos(np.pi * min(gone, 1.0))) / 2
            with torch.no_grad():
                soft = (teacher(images) / 2).softmax(1)
            module.train()
            logits = module(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            divergence = torch.nn.functional.cross_entropy(logits / 2, soft)
            (0.5 * loss + 0.5 * 4 * divergence).backward()
            optimiser.step()
            optimiser.zero_grad()
            step += 1
    module.eval()


def written(state: ModelState, task: Task, folder: Path) -> Path:
    """A model's file as OpenVINO has it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)
    return runtime("openvino").write(state, folder, task.size, options)


def written_module(module: torch.nn.Module, task: Task, folder: Path) -> Path:
    import openvino

    example = torch.zeros(1, 3, task.size, task.size)
    found = openvino.convert_model(module.eval(), example_input=example)
    openvino.save_model(found, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


WAYS: dict[str, Callable[[Task, Path], Path]] = {
    "shrink": by_shrink,
    "int8": by_int8,
    "nncf": by_nncf,
    "torch_pruning": by_torch_pruning,
}


def judged(task: Task, file: Path, folder: Path) -> dict[str, Any]:
    """Accuracies, milliseconds and bytes of a file and of the source's."""
    source = written(task.state, task, folder / "source")
    row: dict[str, Any] = {}
    runs = {}
    for name, path in (("", file), ("source_", source)):
        runs[name] = run = loaded("openvino", path)
        for split in ("val", "test"):
            rights = [run.run(x).argmax(1) == y for x, y in task.batches(split)]
            row[f"{name}{split}_accuracy"] = float(np.concatenate(rights).mean())
        row[f"{name}bytes"] = sum(
            path.with_suffix(end).stat().st_size for end in (".xml", ".bin")
        )
    image = next(task.batches("val"))[0][:1]
    passes = [runs[name].timed_pass(image) for name in ("", "source_")]
    times = times_in_turns(passes, warmup=20, rounds=ROUNDS, max_seconds=60)
    row["ms"], row["source_ms"] = (float(np.median(t)) for t in times)
    row["met"] = keeps(task, row)
    return row


def keeps(task: Task, row: dict[str, Any]) -> bool:
    """Whether a file keeps the goal on the validation part."""
    allowed = max_loss(task.loss, "fraction")["loss"]
    found = row["source_val_accuracy"] - row["val_accuracy"] <= allowed + 1e-9
    for wish in task.wanted:
        unit = "ms" if wish.quantity == "latency" else "bytes"
        limit = wish.bound if wish.times is None else wish.times * row[f"source_{unit}"]
        found &= limit is None or row[unit] <= limit
    return bool(found)


def main() -> None:
    """Make the rows that are missing, or print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs_file", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--pairs", nargs="*")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hours", type=float, help="instead of those of the pairs")
    parser.add_argument("--folder", type=Path, default=Path("shrink-benchmark"))
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table is not None:
        show(options.table)
        return
    if options.pairs_file is None or options.out is None:
        parser.error("give PAIRS.yaml and -o FILE, or --table FILE")
    torch.set_num_threads(1)
    pairs = yaml.safe_load(options.pairs_file.read_text())
    rows = [
        (name, number, seed, way)
        for name in options.pairs or pairs
        for number in range(len(pairs[name]["goals"]))
        for seed in range(options.seeds)
        for way in options.ways
    ]
    if options.row is not None:
        name, number, seed, way = rows[options.row]
        hours = {} if options.hours is None else {"hours": options.hours}
        add_row(options, pairs[name] | hours, name, number, seed, way)
        return
    missing = [not in_own_process(index) for index, _ in enumerate(rows)]
    print(f"{len(rows) - sum(missing)} of {len(rows)} rows; {sum(missing)} are missing")
    raise SystemExit(any(missing))


def in_own_process(index: int) -> bool:
    """Make one row by this command; whether it is there."""
    words = [sys.executable, *sys.argv, "--row", str(index)]
    return subprocess.run(words, check=False).returncode == 0


def add_row(
    options: argparse.Namespace,
    pair: dict[str, Any],
    name: str,
    number: int,
    seed: int,
    way: str,
) -> None:
    """Make one row, unless the file has it."""
    goals = pair["goals"][number]
    key = {"pair": name, "goals": goals, "seed": seed, "way": way}
    if any(all(row[k] == v for k, v in key.items()) for row in read(options.out)):
        return
    words = "-".join(f"{k}{v}" for k, v in goals.items())
    folder = options.folder / f"{name}-{words}-{seed}" / way
    task = Task(pair, goals, seed, options.pairs_file.parent)
    begun = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if way != "shrink":
        folder.mkdir(exist_ok=True)
    file = WAYS[way](task, folder)
    seconds = time.monotonic() - begun
    with tempfile.TemporaryDirectory() as scratch:
        row = key | judged(task, file, Path(scratch)) | {"seconds": round(seconds)}
    with options.out.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    )


def show(path: Path) -> None:
    """The rows as a table in Markdown."""
    print("| pair | goal | way | met | test accuracy (source) | ms (source) | bytes |")
    print("|---|---|---|---|---|---|---|")
    for row in read(path):
        goals = ", ".join(f"{k} {v}" for k, v in row["goals"].items())
        print(
            f"| {row['pair']} | {goals} | {row['way']} | {'yes' if row['met'] else 'no'}"
            f" | {row['test_accuracy']:.3f} ({row['source_test_accuracy']:.3f})"
            f" | {row['ms']:.2f} ({row['source_ms']:.2f}) | {row['bytes']:,} |"
        )


if __name__ == "__main__":
    main()
