"""What decides: functional ANOVA over the configurations."""

from __future__ import annotations

import numpy as np
import pytest

import analysis
from analysis.explained import chance, explained
from analysis.importance import CHANCE, importance


def test_importance_finds_what_decides(make_run):
    run = analysis.load(make_run(trials=80))
    shares = {i.parameter: i for i in importance(run)}
    assert shares["init"].shares[0] == max(
        i.shares[0] for i in shares.values() if not i.conditional
    )
    assert shares["nvit.target"].shares[1] > 0.9
    assert shares["nvit.target"].count == len(run.configurations())
    assert "init.element_rule" not in shares  # it decides nothing
    assert all(sum(i.shares[k] for i in shares.values()) < 1 for k in range(2))
    assert importance(analysis.load(make_run("few", trials=8))) == []


def test_noise_is_not_explained() -> None:
    """Parameters drawn independently of the objectives, by the permutation test's own level."""
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = [rng.uniform(size=40), rng.integers(0, 3, 40), rng.uniform(size=40)]
        y = np.stack([rng.normal(size=40), rng.exponential(size=40)], axis=1)
        found += bool((chance(x, y, rng) <= CHANCE).any())
    assert found <= 5  # of 60, 1.5 are expected


def test_leave_one_out_is_what_it_says() -> None:
    """Against a regression that is fitted again without each configuration."""
    rng = np.random.default_rng(0)
    x = [rng.uniform(size=15), rng.integers(0, 3, 15)]
    y = x[0] + 0.1 * rng.normal(size=15)
    ranks = np.argsort(np.argsort(x[0])) / 14
    near = np.exp(-((np.subtract.outer(ranks, ranks) / 0.3) ** 2) / 2)
    same = np.equal.outer(x[1], x[1]).astype(float)
    kernel = (near + same) / 4 + near * same / 2
    left = []
    for ridge in (1e-3, 1e-2, 1e-1, 1.0):
        errors = []
        for out in range(15):
            keep = np.arange(15) != out
            part = kernel[np.ix_(keep, keep)]
            # an intercept, and the ridge on everything else
            system = np.block(
                [
                    [part + 15 * ridge * np.eye(14), np.ones((14, 1))],
                    [np.ones((1, 14)), 0],
                ]
            )
            solved = np.linalg.solve(system, np.append(y[keep], 0.0))
            fitted = kernel[out, keep] @ solved[:-1] + solved[-1]
            errors.append((y[out] - fitted) ** 2)
        left.append(sum(errors))
    others = np.array([y[np.arange(15) != i].mean() for i in range(15)])
    expected = 1 - min(left) / ((y - others) ** 2).sum()
    assert explained(x, y[:, None])[0] == pytest.approx(expected, rel=1e-6)
