"""Can the latencies of a sweep be believed? Two trials at a time, and the same models alone.

Run: python benchmarks/latency_trust.py FOLDER sweep    the sweep, measurements alone on the node
     python benchmarks/latency_trust.py FOLDER shared   the same with `measure.alone: false`
     python benchmarks/latency_trust.py FOLDER alone    the models with nothing beside them
     python benchmarks/latency_trust.py FOLDER show     Kendall's tau, errors and wall times

24 students of the demo's source (a ViT of 96 × 6 on digits), widths 24 to 96 and 1 to 6 layers,
chosen so that no two cost the same. The part `alone` is the truth:
all models take turns in a process with nothing beside it, 30 passes each, three times; the
median of the three medians. A machine's speed drifts by several percent within seconds, which is in
`latency_ms` and not in `latency_ratio`; both are compared.
`--epochs` (default 5) is the work of a trial between two measurements.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

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


def spec_of(folder: Path, name: str, alone: bool, epochs: int) -> dict[str, Any]:
    """The sweep; `name` is its run folder."""
    training = {"epochs": epochs, "batch_size": 32, "lr": 1e-3, "augment": "none"}
    points = [
        {"stages.init.args.embed_dim": e, "stages.init.args.depth": d} for e, d in SIZES
    ]
    return {
        "name": name,
        "storage": str(folder / name),
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
        "measure": {"alone": alone},
        "resources": {"cpus_per_worker": 1, "cpus": 2},
        "search": {
            "trials": len(SIZES),
            "space": {
                "stages.init.args.embed_dim": sorted({e for e, _ in SIZES}),
                "stages.init.args.depth": sorted({d for _, d in SIZES}),
            },
            "points": points,
        },
    }


def run(folder: Path, name: str, alone: bool, epochs: int) -> None:
    """Run the sweep and note its wall time."""
    from sweeps.check import check_spec
    from sweeps.drive.driver import run_sweep
    from sweeps.spec.load import spec_from

    checked = check_spec(spec_from(spec_of(folder, name, alone, epochs)))
    begun = time.perf_counter()
    run_sweep(checked, overwrite=True)
    (folder / f"{name}.json").write_text(
        json.dumps({"seconds": time.perf_counter() - begun})
    )


def measure_alone(folder: Path) -> None:
    """Median milliseconds of each size, three rounds."""
    import torch

    from compress.measure.latency import times_in_turns
    from compress.measure.model import pass_of
    from trainers.models.make import make_arch

    torch.set_num_threads(1)
    passes = []
    for embed_dim, depth in SIZES:
        args = {"patch_size": 8, "embed_dim": embed_dim, "depth": depth, "num_heads": 3}
        arch = make_arch(
            "vit_tiny_patch16_224", num_classes=10, image_size=32, args=args
        )
        passes.append(pass_of(arch.build(), 32, torch.device("cpu"), batch_size=64))
    rounds = []
    with torch.inference_mode():
        for _ in range(3):
            times = times_in_turns(passes, warmup=1, rounds=30, max_seconds=40)
            rounds.append([float(np.median(each)) for each in times])
    (folder / "alone.json").write_text(json.dumps(rounds))


def show(folder: Path) -> None:
    """Compare what trials recorded with what the models take alone."""
    from scipy.stats import kendalltau

    import analysis

    rounds = np.array(json.loads((folder / "alone.json").read_text()))
    truth = dict(zip(SIZES, np.median(rounds, axis=0), strict=True))
    spread = np.ptp(rounds, axis=0) / np.median(rounds, axis=0)
    ordered = np.sort(list(truth.values()))
    print(
        f"alone: {ordered[0]:.2f} to {ordered[-1]:.2f} ms; three rounds differ by"
        f" {100 * np.median(spread):.1f} % (median), {100 * spread.max():.1f} % (most);"
        f" neighbours by {100 * (ordered[1:] / ordered[:-1] - 1).min():.1f} % at least"
    )
    for first, second in ((0, 1), (0, 2), (1, 2)):
        tau = kendalltau(rounds[first], rounds[second]).statistic
        print(f"  rounds {first + 1} and {second + 1}: tau {tau:.3f}")
    for name in ("sweep", "shared"):
        if not (folder / f"{name}.json").exists():
            continue
        trials = analysis.load(folder / name / name).complete()
        known = [
            truth[int(e), int(d)]
            for e, d in zip(
                trials["config/init.args.embed_dim"],
                trials["config/init.args.depth"],
                strict=True,
            )
        ]
        seconds = json.loads((folder / f"{name}.json").read_text())["seconds"]
        print(f"{name}: {len(trials)} trials in {seconds:.1f} s")
        paused = trials["metric/paused_seconds"].sum()
        alone = trials["metric/latency_alone"].mean()
        print(f"  stood still for {paused:.1f} s; {100 * alone:.0f} % measured alone")
        recorded = trials["metric/latency_ms"].astype(float)
        if "metric/search_latency_ms" in trials:
            again = trials["metric/search_latency_ms"].astype(float)
            _compare(
                "measured again",
                recorded[again.notna()],
                np.array(known)[again.notna()],
            )
            recorded = again.fillna(recorded)
        _compare("recorded", recorded, np.array(known))
        _compare("ratio to the source", trials["metric/latency_ratio"], np.array(known))


def _compare(what: str, found: Any, known: np.ndarray) -> None:
    from scipy.stats import kendalltau

    found = np.asarray(found, float)
    if what.startswith("ratio"):
        found = found * np.median(known / found)
    error = np.abs(found / known - 1)
    print(
        f"  {what}, {len(found)} models: tau {kendalltau(found, known).statistic:.3f},"
        f" error {100 * np.median(error):.1f} % (median), {100 * error.max():.1f} %"
        " (worst)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["sweep", "shared", "alone", "show"])
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if options.part == "alone":
        measure_alone(folder)
    elif options.part == "show":
        show(folder)
    else:
        run(folder, options.part, options.part == "sweep", options.epochs)


if __name__ == "__main__":
    main()
