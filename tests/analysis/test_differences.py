"""Pairs that differ in one thing, and what may be said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis
from analysis.differences import interval, verdict_of


def grid_run(make_run, effect: float, seed: int = 0, name: str = "demo"):
    """Five learning rates, two starts, two seeds each; accuracy is noise and `effect` of one."""
    rng = np.random.default_rng(seed)

    def change(record: dict) -> None:
        number = record["number"]
        start = ("none", "sws_expand")[number % 2]
        accuracy = 0.8 + 0.01 * rng.normal() + effect * (start == "none")
        record["config"] = {
            "init": start,
            "finetune.lr": 10.0 ** -(1 + number // 2),
            "finetune.epochs": 4,
            "source.args.depth": 1,
        }
        metrics = {"accuracy": accuracy, "gmacs": 1.0 + number // 2}
        record |= {"status": "complete", "metrics": metrics, "error": None}
        record["seed"] = record["replicate"]

    return analysis.load(make_run(name, trials=20, replicates=2, change=change))


def test_pairs_by_hand(make_run) -> None:
    """The interval is that of SciPy's paired t test, over the mean of each learning rate."""
    run = grid_run(make_run, 0.05)
    accuracy, gmacs = analysis.compare(
        run.select("init==none"), run.select("init==sws_expand")
    )
    table = run.trials.pivot_table(
        index="config/finetune.lr", columns="config/init", values="metric/accuracy"
    )
    test = stats.ttest_rel(table["none"], table["sws_expand"])
    low, high = test.confidence_interval(0.95)
    assert (accuracy.n, accuracy.pairs) == (5, "configurations")
    assert (accuracy.low, accuracy.high) == pytest.approx((low, high))
    assert accuracy.verdict == "better"
    assert (gmacs.verdict, gmacs.is_ratio) == ("not distinguishable", True)
    assert (gmacs.mean, gmacs.low, gmacs.high) == (1, 1, 1)
    back = analysis.compare(run.select("init==sws_expand"), run.select("init==none"))
    assert back[0].verdict == "worse"
    assert back[0].mean == pytest.approx(-accuracy.mean)


def test_one_configuration_is_compared_by_its_seeds(make_run) -> None:
    run = grid_run(make_run, 0.05)
    a, b = (
        run.select(f"init=={name} and finetune.lr==0.01")
        for name in ("none", "sws_expand")
    )
    assert (analysis.compare(a, b)[0].n, analysis.compare(a, b)[0].pairs) == (
        2,
        "seeds",
    )


def test_no_pair_says_nothing(make_run) -> None:
    """Where everything was drawn at random, no two trials differ in one thing."""
    run = grid_run(make_run, 0.3)
    low, high = run.select("finetune.lr<0.0005"), run.select("finetune.lr>0.0005")
    found = analysis.compare(low, high)[0]
    assert (found.n, found.verdict) == (0, "cannot be judged")
    with pytest.raises(
        ValueError, match=r"no parameter 'nothing' in both; valid: init"
    ):
        analysis.compare(low, high, by=["nothing"])


def sizes_run(make_run, sizes: list[tuple[float, float]], unit: str = "bytes"):
    """A pair of configurations for each pair of sizes; they differ in `init` alone."""

    def change(record: dict) -> None:
        pair, side = divmod(record["number"], 2)
        record["config"] = {"init": "ab"[side], "finetune.lr": pair + 1.0}
        record["config"]["source.args.depth"] = 1
        metrics = {"accuracy": 0.5, "gmacs": sizes[pair][side]}
        record |= {"status": "complete", "metrics": metrics, "error": None, "seed": 0}

    described = {
        "accuracy": {"description": "", "unit": "fraction"},
        "gmacs": {"description": "", "unit": unit},
    }
    header = {"metrics": described, "params": ["init", "finetune.lr"]}
    path = make_run(
        f"sizes-{unit}", trials=2 * len(sizes), change=change, header=header
    )
    run = analysis.load(path)
    return analysis.compare(run.select("init==a"), run.select("init==b"))[1]


def test_sizes_are_compared_by_their_ratio(make_run) -> None:
    """Smaller by 2.5 to 3.2 times in every pair, from small models to large ones: the differences
    have an interval that holds 0, the ratios none that holds 1.
    """
    sizes = [(1e3 / 2.5, 1e3), (2e4 / 3.2, 2e4), (3e5 / 2.8, 3e5), (6e6 / 3, 6e6)]
    found = sizes_run(make_run, sizes)
    logs = np.log([a / b for a, b in sizes])
    test = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (found.verdict, found.is_ratio, found.n) == ("better", True, 4)
    assert found.mean == pytest.approx(np.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx(
        (np.exp(test.low), np.exp(test.high))
    )
    by_difference = sizes_run(make_run, sizes, unit="nats")
    assert (by_difference.verdict, by_difference.is_ratio) == (
        "not distinguishable",
        False,
    )


def test_what_can_be_nothing_has_no_ratio(make_run) -> None:
    found = sizes_run(make_run, [(0.0, 1.0), (2.0, 3.5)])
    assert (found.is_ratio, found.mean) == (False, pytest.approx(-1.25))


def test_one_pair_cannot_be_judged(make_run) -> None:
    found = sizes_run(make_run, [(1.0, 2.0)])
    assert (found.verdict, found.n, found.mean) == ("cannot be judged", 1, 0.5)
    assert (found.low, found.high) == (0, np.inf)


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_equal_sizes_are_seldom_told_apart(spread: float) -> None:
    """Of sizes that vary by some times and are the same in truth, one set in twenty has an interval
    of log-ratios without 0, whatever their size; it is that of the differences for small spreads.
    """
    rng = np.random.default_rng(1)
    count = 2000
    apart = 0
    for _ in range(count):
        scale = 10 ** rng.uniform(2, 7, rng.integers(2, 12))
        a, b = scale * np.exp(spread * rng.normal(size=(2, len(scale))))
        verdict = verdict_of(*interval(np.log(a / b))[1:], 1.0)
        apart += verdict != "not distinguishable"
    assert 0.04 < apart / count < 0.06


def test_noise_is_seldom_called_better() -> None:
    """Of 1,000 sets of pairs without a difference some 25 are, by the interval's own level."""
    rng = np.random.default_rng(0)
    found = [
        verdict_of(*interval(rng.normal(size=rng.integers(2, 12)))[1:], 1.0)
        for _ in range(1000)
    ]
    counts = pd.Series(found).value_counts()
    assert counts["better"] <= 50
    assert counts["worse"] <= 50
    assert counts["not distinguishable"] >= 920
