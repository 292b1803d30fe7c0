"""Does what is said of fronts come true? Noise of known size on fronts whose truth is known.

OMP_NUM_THREADS=1 python benchmarks/search_certainty.py [--fronts 150]

Truths: the means of results/joint-cifar10.parquet, 40 random configurations of
results/search-digits.parquet, made ones with near rivals behind a bent front, and six so much alike
that they differ by no more than their errors. Each one is measured with 3 seeds, or 2 to 5; the
standard deviation of one is 0.01 (and differs between configurations by a factor of exp(0.3) or
so); costs are exact, or vary by 1 %. Printed: for each range of stated probabilities how many
configurations there were, the mean of what was said, and how often it came true.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis import certainty, pareto
from analysis.contract import Objective

GOALS = [Objective("a", "max"), Objective("b", "min")]
EDGES = (-0.01, 0.02, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
Truth = Callable[[np.random.Generator], np.ndarray]


def truths() -> dict[str, Truth]:
    """Name → draws the true objectives (n, 2) of some configurations."""
    joint = pd.read_parquet("results/joint-cifar10.parquet")
    means = joint.groupby("number")[["val_accuracy", "coded_bytes"]].mean().to_numpy()
    grid = pd.read_parquet("results/search-digits.parquet")
    digits = grid[["accuracy", "gmacs"]].to_numpy()

    def made(rng: np.random.Generator) -> np.ndarray:
        cost = np.exp(rng.uniform(0, 3, 40))
        behind = np.abs(rng.normal(0, 0.03, 40))
        return np.stack([0.97 - 0.4 * np.exp(-cost / 6) - behind, cost], axis=1)

    def alike(rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.normal(0.9, 0.006, 6), np.arange(1.0, 7.0)], axis=1)

    return {
        "joint-cifar10": lambda rng: means,
        "search-digits": lambda rng: digits[rng.choice(len(digits), 40, replace=False)],
        "made": made,
        "alike": alike,
    }


def stated(
    truth: np.ndarray, most: int, cost_sd: float, rng: np.random.Generator
) -> np.ndarray:
    """(n,) probabilities from measurements of these true values; `most` seeds or fewer."""
    n = len(truth)
    single = np.stack([np.full(n, 0.01), cost_sd * truth[:, 1]], axis=1)
    single *= np.exp(rng.normal(0, 0.3, (n, 1)))
    seeds = np.full(n, 3) if most == 3 else rng.integers(2, most + 1, n)
    trials = [
        true + rng.normal(size=(count, 2)) * sd
        for true, count, sd in zip(truth, seeds, single, strict=True)
    ]
    rows = pd.DataFrame({"replicates": seeds})
    for column, name in enumerate("ab"):
        rows[f"metric/{name}"] = [each[:, column].mean() for each in trials]
        rows[f"sd/{name}"] = [each[:, column].std(ddof=1) for each in trials]
    drawn = certainty.plausible_values(rows, GOALS, pd.DataFrame(), 400)
    return certainty.front_probability(drawn, GOALS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fronts", type=int, default=150)
    fronts = parser.parse_args().fronts
    rng = np.random.default_rng(1)
    rows = []
    for name, draw in truths().items():
        for most in (3, 5):
            for cost_sd in (0.0, 0.01):
                for _ in range(fronts):
                    truth = draw(rng)
                    said = stated(truth, most, cost_sd, rng)
                    true = pareto.front_mask(truth, GOALS)
                    pairs = zip(said, true, strict=True)
                    rows += [(name, most, cost_sd, p, t) for p, t in pairs]
    table = pd.DataFrame(rows, columns=["truth", "seeds", "cost_sd", "said", "true"])
    table["range"] = pd.cut(table["said"], EDGES)
    for keys in (["truth", "seeds", "cost_sd", "range"], ["range"]):
        groups = table.groupby(keys, observed=True)
        found = groups.agg(
            n=("said", "size"), said=("said", "mean"), true=("true", "mean")
        )
        if len(keys) > 1:
            found = found[
                found.index.get_level_values("range") == pd.Interval(0.85, 0.95)
            ]
        print(found.round(3).to_string(), end="\n\n")


if __name__ == "__main__":
    main()
