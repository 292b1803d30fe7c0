"""`sweeps shrink` beside what its neighbours do for the same goal in the same time.

    python benchmarks/shrink.py PAIRS.yaml -o shrink.jsonl [--pairs NAME …] [--ways WAY …]
    python benchmarks/shrink.py --table shrink.jsonl

PAIRS.yaml (`benchmarks/shrink_pairs.yaml` is the table's): pair → {model: FOLDER, data: DATA.yaml,
goals: [{latency: 0.5x}, …], max_loss: 1%, hours: 0.5}, paths relative to it. `--hours` overrides
the time, to see that all works. Ways: `shrink`; `int8` (the stage alone); `nncf`
(quantize_with_accuracy_control, pip install nncf); `olive` (OnnxStaticQuantization of Microsoft
Olive by `olive run` in an environment of its own: pip install olive-ai onnxruntime requests there,
of which 0.13.0 imports the last without declaring it, and give its Python as --olive-python);
`torch_pruning` (MetaPruner by group Taylor until the file, in float, keeps the goal's time or
bytes, then tuning; pip install torch-pruning). `shrink` has the pair's hours, and ends before them
where the goal is met with certainty; `torch_pruning` has the seconds that `shrink` took for the
same goal and seed, or the pair's hours where there is no such row. Both use all cores. The others
take what they need and do not look at the goal, so their file is made and judged once for a pair
and seed.

All files are OpenVINO's but Olive's, an ONNX file, which OpenVINO executes as it is: written as
OpenVINO's own it would be larger. One that OpenVINO refuses is executed by ONNX Runtime. Accuracy
is of the file on validation and test part; milliseconds are of one image on one thread, in turns
with the source's file; nothing else should run then. A goal is met where cost and validation
accuracy keep it. A row that is in the file is not made again; what is left of one that was cut off
is removed. Each row is made by a process of its own: what ends one, memory too, leaves the others;
the last line counts the rows that are missing, and the same command makes these.

`--table` prints a line for each goal: in each cell cost over the source's, and the points that
accuracy changed by on the validation part (on the test part), bold where the goal is kept. Then how
many goals each way keeps, and in how many `shrink` is ahead: it alone keeps the goal, or both do
and its cost in the goal's first quantity is less by more than 2 %.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from shrink_table import (
    OURS,
    USE_ALL_TIME,
    Row,
    append,
    goals_said,
    limit_seconds,
    read,
    table,
    wanted,
)
from shrink_ways import WAYS, Task, costs_of, executed, written

from sweeps.drive.cluster import keeping_freed_memory

ROUNDS = 200


def main() -> None:
    """Make the rows that are missing, or print them."""
    options = arguments()
    if options.table is not None:
        print("\n".join(table(read(options.table))))
        return
    torch.set_num_threads(1)
    pairs = yaml.safe_load(options.pairs_file.read_text())
    rows = [
        (name, goals, seed, way)
        for name in options.pairs or pairs
        for goals in pairs[name]["goals"]
        for seed in range(options.seeds)
        for way in options.ways
    ]
    for _, goals, _, _ in rows:
        wanted(goals)
    if options.row is not None:
        name, goals, seed, way = rows[options.row]
        add_row(options, pairs[name], name, goals, seed, way)
        return
    missing = [not in_own_process(index) for index, _ in enumerate(rows)]
    print(f"{len(rows) - sum(missing)} of {len(rows)} rows; {sum(missing)} are missing")
    raise SystemExit(any(missing))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs_file", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path, help="file of rows, JSON lines")
    parser.add_argument("--table", type=Path, help="print such a file")
    parser.add_argument("--pairs", nargs="*", help="names; default: all of the file")
    parser.add_argument(
        "--ways", nargs="*", choices=list(WAYS), default=list(WAYS), help="default: all"
    )
    parser.add_argument("--seeds", type=int, default=1, help="of each goal; default: 1")
    parser.add_argument("--hours", type=float, help="instead of those of the pairs")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("shrink-benchmark"),
        help="of what the ways leave; default: shrink-benchmark",
    )
    parser.add_argument("--olive-python", type=Path, help="of Olive's environment")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table is None and (options.pairs_file is None or options.out is None):
        parser.error("give PAIRS.yaml and -o FILE, or --table FILE")
    return options


def in_own_process(index: int) -> bool:
    """Make one row by this command; whether it is there."""
    words = [sys.executable, *sys.argv, "--row", str(index)]
    with keeping_freed_memory():  # as shrink's trials do, so that all train as fast
        return subprocess.run(words, check=False).returncode == 0


def add_row(
    options: argparse.Namespace,
    pair: dict[str, Any],
    name: str,
    goals: dict[str, str],
    seed: int,
    way: str,
) -> None:
    """Make one row, unless the file has it."""
    of_pair = [row for row in read(options.out) if (row.pair, row.seed) == (name, seed)]
    beside = [row for row in of_pair if row.goals == goals]
    if any(row.way == way for row in beside):
        return
    hours = float(pair["hours"]) if options.hours is None else options.hours
    limit = limit_seconds(way, beside, 3600 * hours)
    words = goals_said(goals).replace(", ", "-").replace(" ", "")
    folder = options.folder.absolute() / f"{name}-{words}-{seed}" / way
    paths = options.pairs_file.parent
    task = Task(
        folder=paths / pair["model"],
        data_file=paths / pair["data"],
        goals=goals,
        seed=seed,
        loss=str(pair.get("max_loss", "1%")),
        seconds=limit or 0.0,
        olive_python=options.olive_python,
    )
    same_file = [row for row in of_pair if row.way == way and way not in USE_ALL_TIME]
    if same_file:
        append(options.out, decided(task, replace(same_file[0], goals=goals)))
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a row that was cut off
    folder.parent.mkdir(parents=True, exist_ok=True)
    if way != OURS:
        folder.mkdir()
    begun = time.monotonic()
    file = WAYS[way](task, folder)
    seconds = time.monotonic() - begun
    row = Row(
        pair=name,
        goals=goals,
        seed=seed,
        way=way,
        seconds=round(seconds),
        limit_seconds=None if limit is None else round(limit),
        met=False,
        **judged(task, file),
    )
    row = decided(task, row)
    append(options.out, row)
    print(row, flush=True)


def judged(task: Task, file: Path) -> dict[str, Any]:
    """Accuracies, milliseconds and bytes of a file and of the source's, as `Row` has them."""
    row: dict[str, Any] = {}
    image = next(task.batches("val"))[0][:1]
    with tempfile.TemporaryDirectory() as scratch:
        ours = executed(file)
        source = executed(written(task.state, task, Path(scratch)))
        for prefix, run in (("", ours.session), ("source_", source.session)):
            for split in ("val", "test"):
                rights = [run.run(x).argmax(1) == y for x, y in task.batches(split)]
                row[f"{prefix}{split}_accuracy"] = float(np.concatenate(rights).mean())
        row["runtime"] = ours.session.options.runtime
        return row | asdict(costs_of(ours, source, image, ROUNDS))


def decided(task: Task, row: Row) -> Row:
    """The row with whether its file keeps the goal on the validation part."""
    lost = row.source_val_accuracy - row.val_accuracy
    is_met = lost <= task.allowed + 1e-9 and task.overrun(row) <= 1
    return replace(row, met=is_met)


if __name__ == "__main__":
    main()
