"""How many trials a search needs: samplers replayed over the recorded grid of the preset
search-digits.

python benchmarks/search_simulation.py [--grid results/search-digits.parquet] [--seeds 10]
[-o results/search-simulation.parquet]

A search asks for configurations one by one, each once (as `sweeps run` does: what repeats
is drawn again, in the end any other), and is told what the grid's record says, until
nothing is left. Counted: configurations and epochs of training until the hypervolume of
what has been found is 95 % of the whole grid's (empty where it never is), and the share of
the grid's hypervolume after an eighth, a quarter and a half of its epochs. With early
stopping (the search's own rules, reduction factor 2), a trial that is given up ends after
its first or second epoch; it is told as pruned, and is not on the front. asha compares
accuracy, moasha fronts of accuracy and multiplications. Hypervolume: validation accuracy
above the grid's median, decades of multiplications below the grid's largest.
"""

import argparse
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from analysis.pareto import Objective, hypervolume
from sweeps.search.samplers import make_sampler
from sweeps.search.stopping import StoppingRule, rule_of
from sweeps.search.study import Draw, canonical, draw
from sweeps.spec.search_options import EarlyStopping
from sweeps.trial.epoch_curve import EpochReport
from trainers.seeding import derive_seed

PARAMETERS = ["start", "embed_dim", "depth", "lr"]
OBJECTIVES = [Objective("accuracy", "max"), Objective("decades", "min")]
SAMPLERS = ("tpe", "nsga2", "random")
RULES = ("none", "asha", "moasha")
BUDGETS = (8, 4, 2)
SHARE = 0.95


def read(path: Path) -> pd.DataFrame:
    """The grid: its parameters as index, accuracy, decades of multiplications, accuracy
    after each epoch.
    """
    rows = pd.read_parquet(path)
    rows["decades"] = np.log10(rows["gmacs"])
    return rows.set_index(PARAMETERS)


def search(
    grid: pd.DataFrame,
    sampler: str,
    seed: int,
    rule: str,
    whole: float,
    reference: np.ndarray,
) -> dict:
    """Configurations and epochs until the goal, and shares of the `whole` hypervolume at
    the budgets.
    """
    study = optuna.create_study(directions=["maximize", "minimize"])
    choices = {name: sorted(grid.index.unique(name)) for name in PARAMETERS}
    last = max(int(c.removeprefix("epoch_")) for c in grid if c.startswith("epoch_"))
    untried = {
        canonical(dict(zip(PARAMETERS, key, strict=True))): key for key in grid.index
    }
    tried: set[str] = set()
    halving = (
        None
        if rule == "none"
        else rule_of(EarlyStopping(scheduler=rule, reduction_factor=2.0))
    )
    found: list[tuple[float, float]] = []
    budgets = {f"share_{part}": last * len(grid) // part for part in BUDGETS}
    result: dict[str, float] = {}
    epochs, volume = 0, 0.0
    for number in range(len(grid)):
        trial, point = _next(
            study, choices, sampler, derive_seed(seed, number), tried, untried
        )
        tried.add(canonical(point))
        row = grid.loc[untried.pop(canonical(point))]
        stopped = None if halving is None else _stopped(halving, number, row, last)
        epochs += stopped or last
        for name, budget in budgets.items():
            if epochs <= budget:
                result[name] = volume / whole
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        values = (float(row["accuracy"]), float(row["decades"]))
        study.tell(trial, values)
        found.append(values)
        volume = hypervolume(np.array(found), OBJECTIVES, reference)
        if volume >= SHARE * whole and "epochs" not in result:
            result |= {"configurations": len(tried), "epochs": epochs}
    return {"configurations": np.nan, "epochs": np.nan} | result


def _next(
    study: optuna.Study,
    choices: dict[str, list],
    sampler: str,
    seed: int,
    tried: set[str],
    untried: dict[str, tuple],
) -> tuple[optuna.Trial, Draw]:
    """What the sampler draws, or any point where it only repeats itself."""

    def suggest(trial: optuna.Trial) -> Draw:
        return {
            name: trial.suggest_categorical(name, values)
            for name, values in choices.items()
        }

    def reseed(attempt: int) -> None:
        study.sampler = make_sampler(sampler, derive_seed(seed, attempt) % 2**32, {})

    trial, point = draw(study, suggest, canonical, tried, reseed)
    if trial is None:
        keys = list(untried.values())
        study.enqueue_trial(
            dict(
                zip(PARAMETERS, keys[derive_seed(seed, "any") % len(keys)], strict=True)
            )
        )
        trial = study.ask()
        point = suggest(trial)
    return trial, point


def _stopped(rule: StoppingRule, number: int, row: pd.Series, last: int) -> int | None:
    """The epoch after which the rule gives the trial up, if it does."""
    for epoch in range(1, last):
        report = EpochReport(epoch, row[f"epoch_{epoch}"], row["decades"])
        if rule.gives_up(str(number), report):
            return epoch
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grid", type=Path, default=Path("results/search-digits.parquet")
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = read(options.grid)
    values = grid[["accuracy", "decades"]].to_numpy()
    reference = np.array([np.median(values[:, 0]), values[:, 1].max()])
    whole = hypervolume(values, OBJECTIVES, reference)
    rows = [
        {"sampler": sampler, "early_stopping": rule, "seed": seed}
        | search(grid, sampler, seed, rule, whole, reference)
        for sampler in SAMPLERS
        for rule in RULES
        for seed in range(options.seeds)
    ]
    table = pd.DataFrame(rows)
    if options.out:
        table.to_parquet(options.out, index=False)
    print(
        f"a grid of {len(grid)} configurations,"
        f" {len(grid) * sum(c.startswith('epoch_') for c in grid)} epochs"
    )
    columns = ["configurations", "epochs", *(f"share_{part}" for part in BUDGETS)]
    grouped = table.groupby(["sampler", "early_stopping"])[columns]
    print(grouped.agg(["count", "mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
