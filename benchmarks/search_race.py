"""How many trainings a front needs when seeds are given by need, beside the same for all.

OMP_NUM_THREADS=1 python benchmarks/search_race.py [--runs 20] [--seeds 3] [--tables …]

Truths are the means of recorded configurations, and the noise is that of their recorded seeds: a
seed more is the configuration's mean and a residual that was drawn from all configurations' (each
scaled by its own standard deviation and by sqrt(n / (n - 1))). Each run trains the configurations
with one seed, then the race of `search.race: {most: 8}` hands out one training after another.
Beside it all configurations get 1, 2, … seeds. Counted: configurations that are wrongly on the
front or off it, per configuration of the true front, and the trainings until the race's mean over
the runs is as small as that of `--seeds` for all.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis import pareto
from analysis.contract import Objective
from sweeps.search.race import undecided

MOST = 8
CERTAINTY = 0.9


def tables() -> Iterator[tuple[str, list[np.ndarray], list[Objective]]]:
    """Name, (seeds, objectives) of each configuration, objectives."""
    bytes_goals = [Objective("accuracy", "max"), Objective("coded_bytes", "min")]
    for name in ("joint-cifar10", "joint-digits"):
        rows = pd.read_parquet(f"results/{name}.parquet")
        groups = rows.groupby("number")[["val_accuracy", "coded_bytes"]]
        yield name, [group.to_numpy() for _, group in groups], bytes_goals
    rows = pd.read_parquet("results/learngene-digits.parquet")
    rows = rows[(rows["seed"] >= 0) & rows["width"].notna()]
    # what a model of this size computes for all images that it is trained on
    rows["work"] = rows["width"] ** 2 * rows["depth"] * rows["images"]
    keys = ["start", "width", "depth", "epochs", "lr"]
    groups = rows.groupby(keys, dropna=False)[["val", "work"]]
    found = [group.to_numpy() for _, group in groups if len(group) > 1]
    yield "learngene-digits", found, [Objective("val", "max"), Objective("work", "min")]


class Noise:
    """Draws further seeds of recorded configurations."""

    def __init__(self, recorded: list[np.ndarray], rng: np.random.Generator) -> None:
        self.rng = rng
        self.truth = np.array([seeds.mean(axis=0) for seeds in recorded])
        self.sd = np.array([seeds.std(axis=0, ddof=1) for seeds in recorded])
        scaled = [
            (seeds - mean)
            * np.sqrt(len(seeds) / (len(seeds) - 1))
            / np.where(sd > 0, sd, 1)
            for seeds, mean, sd in zip(recorded, self.truth, self.sd, strict=True)
        ]
        self.residuals = np.concatenate(scaled)

    def seed(self, index: int) -> np.ndarray:
        drawn = self.residuals[self.rng.integers(len(self.residuals))]
        return self.truth[index] + drawn * self.sd[index]


def wrong(
    values: list[list[np.ndarray]], true: np.ndarray, goals: list[Objective]
) -> float:
    means = np.array([np.mean(seeds, axis=0) for seeds in values])
    return float((pareto.front_mask(means, goals) != true).sum() / true.sum())


def even(noise: Noise, goals: list[Objective]) -> list[float]:
    """What is wrong with 1, 2, … seeds each."""
    true = pareto.front_mask(noise.truth, goals)
    values: list[list[np.ndarray]] = [[] for _ in noise.truth]
    found = []
    for _ in range(MOST):
        for index, seeds in enumerate(values):
            seeds.append(noise.seed(index))
        found.append(wrong(values, true, goals))
    return found


def raced(noise: Noise, goals: list[Objective]) -> list[float]:
    """What is wrong after each further training, from one seed each on."""
    true = pareto.front_mask(noise.truth, goals)
    values = [[noise.seed(index)] for index in range(len(noise.truth))]
    found = [wrong(values, true, goals)]
    for _ in range(MOST * len(values)):
        by_number = dict(enumerate(values))
        used = {number: len(seeds) for number, seeds in by_number.items()}
        names = undecided(by_number, used, goals, CERTAINTY)
        index = next((name for name in names if used[name] < MOST), None)
        if index is None:
            break
        values[index].append(noise.seed(index))
        found.append(wrong(values, true, goals))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+")
    options = parser.parse_args()
    for name, recorded, goals in tables():
        if options.tables and name not in options.tables:
            continue
        rng = np.random.default_rng(0)
        alike = np.array(
            [even(Noise(recorded, rng), goals) for _ in range(options.runs)]
        )
        races = [raced(Noise(recorded, rng), goals) for _ in range(options.runs)]
        length = max(map(len, races))
        # a race that is over stays where it is
        curves = np.array([race + race[-1:] * (length - len(race)) for race in races])
        n, curve = len(recorded), curves.mean(axis=0)
        goal = alike[:, options.seeds - 1].mean()
        reached = np.flatnonzero(curve <= goal)
        trainings = [n + len(race) - 1 for race in races]
        print(
            f"{name}: {n} configurations; wrong with 1 to {MOST} seeds each:"
            f" {alike.mean(axis=0).round(2)} (sd {alike.std(axis=0, ddof=1).round(2)})"
        )
        print(
            f"  race: {np.mean(trainings):.0f} ± {np.std(trainings, ddof=1):.0f} trainings, wrong"
            f" {curve[-1]:.2f} ± {curves[:, -1].std(ddof=1):.2f};"
            f" as little wrong as {options.seeds} each ({n * options.seeds} trainings):"
            f" {f'{n + reached[0]} trainings' if len(reached) else 'never'}"
        )


if __name__ == "__main__":
    main()
