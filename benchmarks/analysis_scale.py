"""Times of the analysis at scale: gathering many trials, a few new ones, a front of a
million points, a report.

    python benchmarks/analysis_scale.py [--trials 10000] [--epochs 50] [--points 1000000]
    [--folder DIR]

The trials are synthetic, with a configuration as wide as that of a real record (about 170
keys) and 20 layers each. CPU seconds are printed beside wall seconds, since they suffer
less from other work on the machine. A page's loading is what headless Chromium takes to
read, draw and settle, less what it takes for an empty page.
"""

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import analysis
from analysis import pareto
from analysis.contract import Objective

OBJECTIVES = [
    {"metric": "accuracy", "mode": "max"},
    {"metric": "latency_ms", "mode": "min"},
]


def timed(label: str, call: Callable[[], Any]) -> Any:
    begun, worked = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - begun, time.process_time() - worked
    print(f"{label:<56} {wall:7.2f} s, {cpu:7.2f} s of CPU", flush=True)
    return result


def write_trial(run: Path, number: int, epochs: int, rng: np.random.Generator) -> None:
    """One complete trial's folder."""
    accuracy, latency = float(rng.uniform(0.5, 0.95)), float(rng.uniform(1, 20))
    config = {
        f"stage{i // 40}.option_{i}": [0.1 * i, i, None, True, "text"][i % 5]
        for i in range(170)
    }
    quartiles = {"latency_p25_ms": 0.98 * latency, "latency_p75_ms": 1.03 * latency}
    stages = [
        {
            **{
                "index": i,
                "name": name,
                "stage": name,
                "phase": "train",
                "key": f"{number:060x}{i:04x}",
                "cached": i == 0,
            },
            **{"seconds": 12.5, "seconds_full": 40.0, "metrics": {}},
        }
        for i, name in enumerate(("teacher", "finetune", "wfn"))
    ]
    record = {
        **{
            "schema": 1,
            "trial_id": f"{number:05d}",
            "number": number,
            "replicate": 0,
            "seed": 0,
            "attempts": 1,
        },
        **{
            "status": "complete",
            "config": config | {"finetune.lr": float(rng.uniform(1e-4, 1e-2))},
        },
        **{
            "metrics": {"accuracy": accuracy, "latency_ms": latency, **quartiles},
            "error": None,
            "stages": stages,
        },
        **{
            "started": "2026-03-04T09:00:00+00:00",
            "ended": "2026-03-04T10:00:00+00:00",
            "seconds": 25.0,
        },
        **{
            "seconds_full": 80.0,
            "versions": {"torch": "2.13"},
            "device": {"type": "cpu", "name": "x"},
            "host": "node",
        },
    }
    rows = [
        {
            **{
                "stage": "finetune",
                "cached": False,
                "fit": "fit",
                "epoch": e,
                "step": 40 * e,
                "train_loss": 1 / (e + 1),
            },
            **{
                "lr": 0.001,
                "accuracy": accuracy,
                "top5_accuracy": 0.9,
                "loss": 0.7,
                "seconds": 1.5,
            },
            **{"images_per_second": 900.0 + e, "steps_per_second": 8.0},
        }
        for e in range(epochs)
    ]
    layer = {
        "kind": "Linear",
        "shape": [64, 64],
        "num_weights": 4096,
        "num_unique": 57,
        "entropy_bits": 3.25,
    }
    folder = run / "trials" / f"{number:05d}"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record, indent=1))
    (folder / "epochs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    layers = [{"layer": f"blocks.{i}", **layer} for i in range(20)]
    (folder / "layers.json").write_text(
        json.dumps({"schema": 1, "layers": layers}, indent=1)
    )


def tables(folder: Path, trials: int, epochs: int) -> None:
    """Gather, gather again, gather with ten new trials, load."""
    rng = np.random.default_rng(0)
    run = folder / "scale"
    run.mkdir(parents=True)
    header = {
        "schema": 1,
        "name": "scale",
        "objectives": OBJECTIVES,
        "params": ["finetune.lr"],
    }
    (run / "run.json").write_text(json.dumps(header))
    for number in range(trials):
        write_trial(run, number, epochs, rng)
    print(f"{trials} trials, {epochs} epochs each")
    timed("gather, first", lambda: analysis.gather(run))
    timed("gather, nothing new", lambda: analysis.gather(run))
    for number in range(trials, trials + 10):
        write_trial(run, number, epochs, rng)
    timed("gather, 10 new", lambda: analysis.gather(run))
    loaded = timed("load", lambda: analysis.load(run))
    assert len(loaded.trials) == trials + 10
    assert len(loaded.epochs) == (trials + 10) * epochs
    size = sum(path.stat().st_size for path in (run / "parquet").rglob("*.parquet"))
    print(f"{'Parquet':<56} {size / 1e6:7.1f} MB")


def fronts(points: int) -> None:
    """Front and hypervolume of random points, few on the front, and of points near a
    sphere, many on it.
    """
    rng = np.random.default_rng(0)
    objectives = [Objective("a", "min"), Objective("b", "min"), Objective("c", "min")]
    cube = rng.random((points, 3))
    ball = 1 - cube / np.linalg.norm(cube, axis=1)[:, None] * rng.beta(
        8, 1, size=(points, 1)
    )
    for name, values in (("uniform in a cube", cube), ("near a sphere", ball)):

        def both(values: np.ndarray = values) -> tuple[int, float]:
            mask = pareto.front_mask(values, objectives)
            return int(mask.sum()), pareto.hypervolume(
                values[mask], objectives, np.full(3, 1.1)
            )

        size, volume = timed(f"front and hypervolume, {points:,} x 3, {name}", both)
        print(f"    {size} on the front, hypervolume {volume:.6f}")


def report(folder: Path, trials: int, epochs: int) -> None:
    """Write a report; its size, and how long Chromium takes to load it, the best of three."""
    rng = np.random.default_rng(0)
    run = folder / "report"
    run.mkdir(parents=True)
    header = {
        "schema": 1,
        "name": "report",
        "objectives": OBJECTIVES,
        "params": ["finetune.lr", "stage0.option_0"],
    }
    (run / "run.json").write_text(json.dumps(header))
    for number in range(trials):
        write_trial(run, number, epochs, rng)
    page = timed(f"report of {trials} trials", lambda: analysis.write_report(run))
    print(f"{'its file':<56} {page.stat().st_size / 1e6:7.1f} MB")
    if (chromium := shutil.which("chromium")) is None:
        print("no chromium: loading was not measured")
        return
    empty = folder / "empty.html"
    empty.write_text("<!DOCTYPE html><title>empty</title>")
    base, full = ([_load(chromium, p, folder) for _ in range(3)] for p in (empty, page))
    for i, what in enumerate(("wall", "CPU")):
        print(
            f"{'loading it in Chromium, ' + what:<56}"
            f" {min(t[i] for t in full) - min(t[i] for t in base):7.2f} s"
        )


def _load(chromium: str, page: Path, folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a Chromium that loads a page until nothing is left to do."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += [
        "--window-size=1280,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri(),
    ]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = (
        time.perf_counter() - begun,
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    assert page.name == "empty.html" or "data-ready=" in done.stdout, (
        "the page was not drawn to its end"
    )
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the synthetic run is written; default: a temporary folder",
    )
    options = parser.parse_args()
    fronts(options.points)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report(Path(folder), options.trials // 10, options.epochs)
        tables(Path(folder), options.trials, options.epochs)


if __name__ == "__main__":
    main()
