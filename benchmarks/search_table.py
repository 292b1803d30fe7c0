"""Record a grid of a pipeline, stage by stage: the table on which searches are replayed.

OMP_NUM_THREADS=1 python benchmarks/search_table.py [benchmarks/search_prefix.yaml] [--values 24]
[--cache FOLDER] [-o results/search-prefix.parquet]

Every choice of each listed dimension is combined with `--values` values of each continuous one,
spread evenly over its (logarithmic) range. A stage is computed once, by the pipeline itself and
its cache. Columns: the searched parameters as `config/PARAMETER`, the metrics as `metric/NAME`,
and what each stage took as `seconds/STAGE`, in seconds of CPU time of one thread, so that other
work on the machine does not count; `seconds/measure` is what measuring the final model took. A run
that was killed goes on from the lines that it has written beside the table.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from compress import measured
from compress.cache import StageCache
from compress.pipeline import Pipeline, StageRun, run_pipeline
from sweeps.check import load_spec
from sweeps.space.dimension import Draw
from sweeps.space.resolve import resolved_trial
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from trainers.files import default_data_cache, user_cache


def grid(space: Space, values: int) -> list[Draw]:
    """All draws, prefix by prefix: the last dimension changes first."""
    found = []
    slots = [d for d in space.dimensions if d.is_slot]
    for labels in product(*[d.samples() for d in slots]):
        chosen: Draw = {d.path: label for d, label in zip(slots, labels, strict=True)}
        free = [d for d in space.dimensions if not d.is_slot and d.active(chosen)]
        axes = [
            d.draws() or [d.at(lambda _, u=u: u) for u in np.linspace(0, 1, values)]
            for d in free
        ]
        for parts in product(*axes):
            found.append(chosen | {k: v for part in parts for k, v in part.items()})
    return found


def record(
    sweep: Sweep, draw: Draw, cache: Path, seconds: dict[str, float]
) -> dict[str, Any]:
    """The row of one configuration.

    Args:
        seconds: key of a stage → what it took; those that are computed now are added.
    """
    resolved = resolved_trial(sweep.space, draw)
    row: dict[str, Any] = {
        f"config/{path.removeprefix('stages.')}": value
        for path, value in resolved.configuration.items()
    }
    begun = [0.0]

    def note(run: StageRun) -> None:
        if not run.cached:
            seconds[run.key] = time.process_time() - begun[0]
        row[f"seconds/{run.name}"] = seconds.get(run.key, run.seconds_full)

    result = run_pipeline(
        Pipeline(resolved.source, resolved.data, resolved.stages, sweep.spec.seed),
        cache=StageCache(cache),
        data_cache=default_data_cache(),
        device=torch.device("cpu"),
        on_begin=lambda stage, model: begun.__setitem__(0, time.process_time()),
        on_stage=note,
    )
    begun[0] = time.process_time()
    metrics = measured(result, resolved.data, latency=False)
    row["seconds/measure"] = time.process_time() - begun[0]
    names = (
        "accuracy",
        "test_accuracy",
        "coded_bytes",
        "gmacs",
        "num_params",
        "entropy_bits",
    )
    row |= {f"metric/{name}": metrics[name] for name in names if name in metrics}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", nargs="?", default="benchmarks/search_prefix.yaml")
    parser.add_argument("--values", type=int, default=24)
    parser.add_argument("--cache", type=Path, default=user_cache() / "stages")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("results/search-prefix.parquet")
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    sweep = load_spec(options.spec)
    lines = options.out.with_suffix(".jsonl")
    known = {}
    if lines.exists():
        found = [json.loads(line) for line in lines.read_text().splitlines()]
        known = {entry["draw"]: entry for entry in found}
    seconds = {k: v for entry in known.values() for k, v in entry["stages"].items()}
    rows = []
    for draw in grid(sweep.space, options.values):
        name = json.dumps(draw, sort_keys=True)
        if name not in known:
            before = set(seconds)
            row = record(sweep, draw, options.cache, seconds)
            new = {key: seconds[key] for key in seconds.keys() - before}
            known[name] = {"draw": name, "row": row, "stages": new}
            with open(lines, "a") as file:
                file.write(json.dumps(known[name]) + "\n")
        rows.append(known[name]["row"])
    pd.DataFrame(rows).to_parquet(options.out, index=False)
    lines.unlink()
    print(pd.DataFrame(rows).describe().T.round(3).to_string())


if __name__ == "__main__":
    main()
