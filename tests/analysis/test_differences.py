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
    assert gmacs.verdict == "not distinguishable"
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
    assert (found.n, found.verdict) == (0, "not distinguishable")
    with pytest.raises(
        ValueError, match=r"no parameter 'nothing' in both; valid: init"
    ):
        analysis.compare(low, high, by=["nothing"])


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
