"""Can the latencies of a sweep be believed? Trials beside one another, and the same models alone.

Run: python benchmarks/latency_trust.py FOLDER sweep    the sweep, measurements alone on the node
     python benchmarks/latency_trust.py FOLDER shared   the same with `measure.alone: false`
     python benchmarks/latency_trust.py FOLDER show     Kendall's tau, errors and wall times

24 students of the demo's source (a ViT of 96 × 6 on digits), widths 24 to 96 and 1 to 6 layers,
chosen so that no two cost the same. Right after a sweep follows the truth: all models take turns
in a process with nothing beside it, 30 passes each, three times; the median of the three medians.
`--at-once` (default 2) is the number of trials beside one another, `--epochs` (default 6, as in the
demo) the work of a trial between two measurements, `--measure` the section of that name (default:
the demo's batch and passes). Three latencies are compared: what the trials recorded, the
ratio to the source, and what the finished run says, where the median of the source's times counts.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SIZES = (
    *((24, depth) for depth in (1, 2, 3, 4, 6)),
    *((36, depth) for depth in (1, 3)),
    *((48, depth) for depth in (1, 2, 3, 5, 6)),
    *((60, depth) for depth in (1, 3)),
    *((72, depth) for depth in (2, 3, 4, 5, 6)),
    *((84, depth) for depth in (4, 5)),
    *((96, depth) for depth in (4, 5, 6)),
)
"""(width, layers) of each student."""


def spec_of(name: str, alone: bool, options: argparse.Namespace) -> dict[str, Any]:
    """The sweep; `name` is its run folder."""
    training = {
        "epochs": options.epochs,
        "batch_size": 32,
        "lr": 1e-3,
        "augment": "none",
    }
    points = [
        {"stages.init.args.embed_dim": e, "stages.init.args.depth": d} for e, d in SIZES
    ]
    return {
        "name": name,
        "storage": str(options.folder / name),
        "source": {
            "model": "vit_tiny_patch16_224",
            "args": {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
        },
        "data": {"dataset": "digits", "val_fraction": 0.2},
        "stages": {"init": {"stage": "random_init"}, "finetune": training},
        "objectives": [
            {"metric": "accuracy", "mode": "max"},
            {"metric": "latency_ms", "mode": "min"},
        ],
        "measure": {"alone": alone, **yaml.safe_load(options.measure)},
        "resources": {"cpus_per_worker": 1, "cpus": options.at_once},
        "search": {
            "trials": len(SIZES),
            "space": {
                "stages.init.args.embed_dim": sorted({e for e, _ in SIZES}),
                "stages.init.args.depth": sorted({d for _, d in SIZES}),
            },
            "points": points,
        },
    }


def run(name: str, alone: bool, options: argparse.Namespace) -> None:
    """Run the sweep and note its wall time; then the truth."""
    from sweeps.check import check_spec
    from sweeps.drive.driver import run_sweep
    from sweeps.spec.load import spec_from

    checked = check_spec(spec_from(spec_of(name, alone, options)))
    begun = time.perf_counter()
    run_sweep(checked, overwrite=True)
    (options.folder / f"{name}.json").write_text(
        json.dumps({"seconds": time.perf_counter() - begun})
    )
    ours = [sys.executable, __file__, str(options.folder), "truth", "--of", name]
    subprocess.run([*ours, "--measure", options.measure], check=True)


def measure_alone(options: argparse.Namespace) -> None:
    """Median milliseconds of each size, three rounds."""
    import torch

    from compress.measure.latency import times_in_turns
    from compress.measure.model import pass_of
    from trainers.models.make import make_arch

    torch.set_num_threads(1)
    batch_size = yaml.safe_load(options.measure).get("batch_size", 64)
    passes = []
    for embed_dim, depth in SIZES:
        args = {"patch_size": 8, "embed_dim": embed_dim, "depth": depth, "num_heads": 3}
        arch = make_arch(
            "vit_tiny_patch16_224", num_classes=10, image_size=32, args=args
        )
        module = arch.build()
        passes.append(pass_of(module, 32, torch.device("cpu"), batch_size=batch_size))
    rounds = []
    with torch.inference_mode():
        for _ in range(3):
            times = times_in_turns(passes, warmup=1, rounds=30, max_seconds=40)
            rounds.append([float(np.median(each)) for each in times])
    file = options.folder / f"{options.of}-truth.json"
    file.write_text(json.dumps(rounds))


def show(folder: Path) -> None:
    """Compare what trials recorded with what the models take alone."""
    import analysis

    for file in sorted(folder.glob("*-truth.json")):
        name = file.name.removesuffix("-truth.json")
        rounds = np.array(json.loads(file.read_text()))
        truth = dict(zip(SIZES, np.median(rounds, axis=0), strict=True))
        trials = analysis.load(folder / name / name).complete()
        seconds = json.loads((folder / f"{name}.json").read_text())["seconds"]
        print(f"{name}: {len(trials)} trials in {seconds:.1f} s")
        paused = trials["metric/paused_seconds"].sum()
        alone = trials["metric/latency_alone"].mean()
        print(f"  stood still for {paused:.1f} s; {100 * alone:.0f} % measured alone")
        spread = np.ptp(rounds, axis=0) / np.median(rounds, axis=0)
        print(
            f"  three rounds of the truth differ by {100 * np.median(spread):.1f} %"
            f" (median), {100 * spread.max():.1f} % (most)"
        )
        sizes = zip(
            trials["config/init.args.embed_dim"],
            trials["config/init.args.depth"],
            strict=True,
        )
        known = np.array([truth[int(e), int(d)] for e, d in sizes])
        last = trials["metric/latency_ms"].astype(float)
        if "metric/search_latency_ms" in trials:
            first = trials["metric/search_latency_ms"].astype(float).fillna(last)
            _compare("as recorded", first, known)
        _compare("ratio to the source", trials["metric/latency_ratio"], known)
        _compare("of the finished run", last, known)


def _compare(what: str, found: Any, known: np.ndarray) -> None:
    from scipy.stats import kendalltau

    found = np.asarray(found, float)
    if what.startswith("ratio"):
        found = found * np.median(known / found)
    error = np.abs(found / known - 1)
    # what all have in common is the machine's speed of that hour, not the measurement's error
    common = np.median(found / known)
    rest = np.abs(found / known / common - 1)
    print(
        f"  {what}, {len(found)} models: tau {kendalltau(found, known).statistic:.3f},"
        f" error {100 * np.median(error):.1f} % (median), {100 * error.max():.1f} %"
        f" (worst); without the common factor of {common:.3f}:"
        f" {100 * np.median(rest):.1f} %, {100 * rest.max():.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["sweep", "shared", "truth", "show"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--measure", default="{batch_size: 16, repeats: 10}")
    parser.add_argument("--of", default="sweep", help="whose truth")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part == "truth":
        measure_alone(options)
    elif options.part == "show":
        show(options.folder)
    else:
        name = f"{options.part}-{options.at_once}"
        run(name, options.part == "sweep", options)


if __name__ == "__main__":
    main()
