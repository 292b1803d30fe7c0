"""Seconds until a search has found 95 % of a front, replayed on recorded tables.

OMP_NUM_THREADS=1 python benchmarks/search_replay.py [--tables search-prefix search-digits
joint-cifar10 joint-digits search-channels] [--samplers random tpe nsga2 gp] [--seeds 20]
[--tools optuna ray] [-o results/search-replay.parquet]

Each search is replayed as `sweeps simulate` does: with the sampler alone (none: its repeats come
from the stage cache), with costs that leave the cache out of account (full), and with the cache
(cached). Beside them what Optuna alone would have taken, which runs the sampler's trials one by
one and has no cache (none_uncached). Rows that were written already are not replayed again.

With --tools: the sampler as a user of Optuna alone, or of Ray Tune's OptunaSearch, would set it up:
one sampler object with a seed, no cache, what repeats is trained again (optuna, ray).

With --costs cached_from: `cached`, started from the front of the other one of joint-cifar10 and
joint-digits, whose spaces are nearly the same and whose data are not.

Tables: search-prefix as benchmarks/search_table.py recorded it. search-channels likewise, after
all was built and chosen: no option of the search was ever tried on it. search-digits was recorded
without seconds: its stages count in multiply-accumulates, epochs × (teacher's or student's), scaled
to the seconds of search-prefix's teacher. joint-cifar10 has 29 configurations, joint-digits 24,
which answer for the whole space, each for those nearest to it; their seconds are known of whole
trials, and are divided up by a non-negative regression on what each stage does: images × size of
the model for training, the same for pruning and for fixing, and a constant for the rest, of which
joint-digits' teacher took what its trials saved at least by the cache.
"""

import argparse
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.samplers import BaseSampler
from scipy.optimize import nnls

from analysis import pareto
from sweeps.check import load_spec
from sweeps.search.samplers import make_sampler
from sweeps.search.simulate import RecordedTable, replay
from sweeps.space.sweep import Sweep
from sweeps.spec.search_options import SamplerName, Search

ValueOf = Callable[[dict[str, Any]], tuple[float, ...]]

SHARE = 0.95
MOST_TRIALS = 100
TEACHER_SECONDS = 36.5
COSTS = ("none", "full", "cached")
FROM = "cached_from"
OTHERS = {"joint-cifar10": "joint-digits", "joint-digits": "joint-cifar10"}
"""Table → what a search with `FROM` starts from."""
TOOLS = ("optuna", "ray")


def prefix() -> tuple[Sweep, pd.DataFrame]:
    table = pd.read_parquet("results/search-prefix.parquet")
    return load_spec("benchmarks/search_prefix.yaml"), table


def channels() -> tuple[Sweep, pd.DataFrame]:
    table = pd.read_parquet("results/search-channels.parquet")
    return load_spec("benchmarks/search_channels.yaml"), table


def digits() -> tuple[Sweep, pd.DataFrame]:
    recorded = pd.read_parquet("results/search-digits.parquet")
    largest = recorded["gmacs"].max()  # the teacher's width and depth
    table = pd.DataFrame({"config/init": recorded["start"]})
    for name in ("embed_dim", "depth"):
        table[f"config/init.*.args.{name}"] = recorded[name]
    table["config/finetune.lr"] = recorded["lr"]
    for name in ("accuracy", "gmacs"):
        table[f"metric/{name}"] = recorded[name]
    table["seconds/teacher"] = TEACHER_SECONDS
    table["seconds/finetune"] = TEACHER_SECONDS * 4 / 30 * recorded["gmacs"] / largest
    return load_spec("search-digits"), table


def joint_cifar10() -> tuple[Sweep, pd.DataFrame]:
    overrides = ["data.dataset=digits", "source.args.patch_size=16"]
    recorded = pd.read_parquet("results/joint-cifar10.parquet")
    return load_spec("joint-cifar10", overrides), joint_table(recorded)


def joint_digits() -> tuple[Sweep, pd.DataFrame]:
    recorded = pd.read_parquet("results/joint-digits.parquet")
    table = joint_table(recorded)
    saved = recorded["seconds_full"] - recorded["seconds"]
    teacher = saved[recorded["number"] > 0].min()  # the first trial trained it
    table["seconds/teacher"] = teacher
    table["seconds/measure"] -= teacher
    return load_spec("joint-digits"), table


def joint_table(recorded: pd.DataFrame) -> pd.DataFrame:
    size = (recorded["embed_dim"] / 96) ** 2 * recorded["depth"] / 4
    work = pd.DataFrame(
        {
            "train": size,
            "prune": size * (recorded["prune"] == "nvit"),
            "store": size * (recorded["store"] == "wfn"),
            "measure": 1.0,
        }
    )
    weights, _ = nnls(work.to_numpy(), recorded["seconds_full"].to_numpy())
    table = pd.DataFrame()
    for name in ("embed_dim", "depth"):
        table[f"config/init.args.{name}"] = recorded[name]
    table["config/prune"], table["config/store"] = recorded["prune"], recorded["store"]
    table["config/prune.nvit.latency_target"] = recorded["latency_target"]
    table["config/store.wfn.distance_allowed"] = recorded["distance_allowed"]
    if "lr" in recorded:
        table["config/store.wfn.lr"] = recorded["lr"]
    table["metric/accuracy"] = recorded["val_accuracy"]
    table["metric/coded_bytes"] = recorded["coded_bytes"]
    for name, weight in zip(work, weights, strict=True):
        table[f"seconds/{name}"] = weight * work[name]
    # the student is trained before it is pruned and tuned after that, half as long
    table["seconds/tune"] = table["seconds/train"] / 3
    table["seconds/train"] *= 2 / 3
    return table


TABLES: dict[str, Callable[[], tuple[Sweep, pd.DataFrame]]] = {
    "search-prefix": prefix,
    "search-digits": digits,
    "joint-cifar10": joint_cifar10,
    "joint-digits": joint_digits,
    "search-channels": channels,
}


def searched(
    sweep: Sweep,
    table: RecordedTable,
    sampler: str,
    cost: str,
    seed: int,
    start: list[str],
) -> dict[str, float]:
    """One search, of at most `MOST_TRIALS` configurations; `start` is its `search.from`."""
    raw = sweep.spec.search.model_dump(by_alias=True)
    raw |= {"sampler": sampler, "cost": cost, "trials": MOST_TRIALS, "points": []}
    raw |= {"from": start}
    search = Search.model_validate(raw)
    spec = sweep.spec.model_copy(update={"seed": seed, "search": search})
    found = replay(replace(sweep, spec=spec, points=()), table, SHARE)
    known = np.isfinite(found.predicted)
    errors = np.abs(np.log(found.predicted[known] / found.spent[known]))
    return {
        "seconds": found.until(SHARE),
        "seconds_uncached": found.until(SHARE, cached=False),
        "trials": len(found.seconds),
        "cost_error": float(np.expm1(np.median(errors))) if known.any() else np.nan,
    }


def beside(
    sweep: Sweep, table: RecordedTable, sampler: SamplerName, tool: str, seed: int
) -> dict[str, float]:
    """One search as another tool runs it: every trial computes all of its stages."""
    objectives = sweep.spec.objectives
    made = make_sampler(sampler, seed, {})
    draws = _asked_of_ray if tool == "ray" else _asked_of_optuna
    reference = pareto.reference_point(table.values, objectives)
    whole = pareto.hypervolume(table.values, objectives, reference)
    found: list[tuple[float, ...]] = []
    clock = 0.0

    def value_of(draw: dict[str, Any]) -> tuple[float, ...]:
        nonlocal clock
        row = table.row_of(draw)
        clock += sum(table.seconds_of(row).values())
        found.append(table.values_of(row))
        return found[-1]

    for _ in draws(sweep, made, value_of):
        share = pareto.hypervolume(np.array(found), objectives, reference) / whole
        if share >= SHARE:
            return {"seconds": clock, "seconds_uncached": clock, "trials": len(found)}
    return {"seconds": np.inf, "seconds_uncached": np.inf, "trials": len(found)}


def _asked_of_optuna(
    sweep: Sweep, sampler: BaseSampler, value_of: ValueOf
) -> Iterator[None]:
    """`MOST_TRIALS` trials of a plain study."""
    goals = [
        "minimize" if o.mode == "min" else "maximize" for o in sweep.spec.objectives
    ]
    study = optuna.create_study(directions=goals, sampler=sampler)
    for _ in range(MOST_TRIALS):
        trial = study.ask()
        study.tell(trial, value_of(sweep.space.suggest(trial)))
        yield


def _asked_of_ray(
    sweep: Sweep, sampler: BaseSampler, value_of: ValueOf
) -> Iterator[None]:
    """`MOST_TRIALS` trials of Ray Tune's searcher, as Tune asks it."""
    from ray.tune.search.optuna import OptunaSearch

    objectives = sweep.spec.objectives
    names = [o.metric for o in objectives]

    def space(trial: optuna.Trial) -> None:
        sweep.space.suggest(trial)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searcher = OptunaSearch(
            space=space,
            metric=names,
            mode=[o.mode for o in objectives],
            sampler=sampler,
        )
    for number in range(MOST_TRIALS):
        values = value_of(searcher.suggest(str(number)))
        result = dict(zip(names, values, strict=True))
        searcher.on_trial_complete(str(number), result)
        yield


def ratio(ours: np.ndarray, plain: np.ndarray) -> str:
    """Ratio of the means with a 95 % interval: seeds are drawn again, each side its own."""
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(ours, len(ours)).mean() / rng.choice(plain, len(plain)).mean()
        for _ in range(4000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{ours.mean() / plain.mean():.2f} ({low:.2f} to {high:.2f})"


def summary(rows: pd.DataFrame) -> None:
    """Seconds by table, sampler and cost, and ours beside the best plain sampler."""
    uncached = rows[rows["cost"] == "none"].assign(cost="none_uncached")
    uncached["seconds"] = uncached["seconds_uncached"]
    both = pd.concat([rows, uncached])
    groups = both.groupby(["table", "sampler", "cost"], sort=False)
    found = groups.agg(
        n=("seconds", "size"),
        never=("seconds", lambda s: int(np.isinf(s).sum())),
        mean=("seconds", "mean"),
        median=("seconds", "median"),
        sd=("seconds", "std"),
        trials=("trials", "median"),
        cost_error=("cost_error", "median"),
    )
    print(found.round(3).to_string())
    for name, of_table in rows.groupby("table", sort=False):
        plain = of_table[of_table["cost"] == "none"]
        if plain.empty:
            continue
        best = plain.groupby("sampler")["seconds"].mean().idxmin()
        base = plain.loc[plain["sampler"] == best, "seconds"].to_numpy()
        for (sampler, cost), group in of_table.groupby(["sampler", "cost"], sort=False):
            seconds = group["seconds"].to_numpy()
            if cost != "none" and np.isfinite([*base, *seconds]).all():
                said = ratio(seconds, base)
                print(f"{name}: {sampler} {cost} takes {said} of the seconds of {best}")


def front_of(name: str, out: Path) -> Path:
    """A table's configurations, as `search.from` takes them, in a file beside the rows."""
    table = TABLES[name]()[1]
    configs = [column for column in table if column.startswith("config/")]
    path = out.with_name(f"{name}-configurations.parquet")
    means = table.groupby(configs, dropna=False, sort=False).mean().reset_index()
    means.to_parquet(path, index=False)
    return path


def replayed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each replay; one that an earlier call has written down is not run again."""
    lines = options.out.with_suffix(".jsonl")
    done = []
    if lines.exists():
        done = [json.loads(line) for line in lines.read_text().splitlines()]
    known = {(r["table"], r["sampler"], r["cost"], r["seed"]) for r in done}
    costs, seeds = [*options.costs, *options.tools], range(options.seeds)
    for name in options.tables:
        sweep, recorded = TABLES[name]()
        table = RecordedTable(recorded, sweep.space, sweep.spec)
        start = []
        if FROM in costs:
            start = [str(front_of(OTHERS[name], options.out))]
        for sampler, cost, seed in itertools.product(options.samplers, costs, seeds):
            if (name, sampler, cost, seed) in known:
                continue
            row = {"table": name, "sampler": sampler, "cost": cost, "seed": seed}
            if cost in TOOLS:
                found = beside(sweep, table, sampler, cost, seed)
            elif cost == FROM:
                found = searched(sweep, table, sampler, "cached", seed, start)
            else:
                found = searched(sweep, table, sampler, cost, seed, [])
            done.append(row | found)
            with open(lines, "a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument(
        "--samplers", nargs="+", default=["random", "tpe", "nsga2", "gp"]
    )
    parser.add_argument(
        "--costs", nargs="+", choices=[*COSTS, FROM], default=list(COSTS)
    )
    parser.add_argument("--tools", nargs="*", default=[], choices=TOOLS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("-o", "--out", type=Path, default=Path("search-replay.parquet"))
    options = parser.parse_args()
    rows = pd.DataFrame(replayed(options))
    rows.to_parquet(options.out, index=False)
    summary(rows)


if __name__ == "__main__":
    main()
