"""CPU seconds of everything that is derived from a run: fronts, curves, importance, the report.

OMP_NUM_THREADS=1 python benchmarks/derived_blocks.py [--objectives 12] [--trials 60]

A run folder is written as trials that ended: the parameters of benchmarks/search_prefix.yaml, drawn
at random, and so many objectives, each a smooth function of the parameters with noise, so that with
many of them nearly all trials are on the front. Gathered and reported as after a sweep, then each
block of the report once more by itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from written_runs import write_trial

import analysis
from analysis.contract import RUN_FILE
from analysis.importance import importance
from analysis.run import Run
from sweeps.check import load_spec
from sweeps.drive.driver import run_header
from sweeps.search.plans import new_plan
from sweeps.search.prefixes import REST
from sweeps.search.study import distributions_of
from sweeps.search.surrogate import Encoder

SECONDS = {"teacher": 30.0, "train": 5.0, "prune": 1.0, "store": 0.1, REST: 0.2}


def write_run(run: Path, objectives: int, trials: int) -> None:
    sweep = load_spec("benchmarks/search_prefix.yaml")
    names = [f"value_{i}" for i in range(objectives)]
    header = run_header(sweep, [])
    header["objectives"] = [{"metric": name, "mode": "min"} for name in names]
    run.mkdir(parents=True)
    (run / RUN_FILE).write_text(json.dumps(header, default=str))
    rng = np.random.default_rng(0)
    encoder = Encoder(distributions_of(sweep.space))
    draws = []
    for _ in range(trials):
        draw: dict = {}
        for dimension in sweep.space.dimensions:
            if dimension.active(draw):
                draw |= dimension.at(lambda name: float(rng.random()))
        draws.append(draw)
    x = encoder.encoded(draws)
    weights = rng.normal(size=(x.shape[1], objectives))
    values = np.nan_to_num(x) @ weights + 0.1 * rng.normal(size=(trials, objectives))
    for number, (draw, row) in enumerate(zip(draws, values, strict=True)):
        metrics = dict(zip(names, map(float, row), strict=True))
        write_trial(run, new_plan(sweep, number, 0, draw), metrics, SECONDS)


def timed(name: str, work: Callable[[], object]) -> None:
    begun = time.process_time()
    work()
    print(f"{name:24s} {time.process_time() - begun:7.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objectives", type=int, default=12)
    parser.add_argument("--trials", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        write_run(path, options.objectives, options.trials)
        found: list[Run] = []
        timed("gather", lambda: found.append(analysis.gather(path)))
        timed("report", lambda: analysis.write_report(found[0]))
        run = analysis.load(path)
        print(f"{len(run.front())} of {options.trials} on the front")
        timed("hypervolume", run.hypervolume)
        timed("importance", lambda: importance(run))
        timed("front probabilities", run.chances)
        timed("compare", lambda: analysis.compare(run, run, by=[run.parameters[0]]))


if __name__ == "__main__":
    main()
