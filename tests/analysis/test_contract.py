"""Objectives: their sign, how far a value lies beyond a bound, what is feasible."""

from __future__ import annotations

import math

import pytest

from analysis.contract import (
    ENDED,
    STATUSES,
    Objective,
    finite_values,
    is_feasible,
)

GOALS = [Objective("accuracy", "max", 0.9), Objective("gmacs", "min")]


def test_excess():
    assert Objective("accuracy", "max", 0.9).excess(0.8) == pytest.approx(0.1)
    assert Objective("accuracy", "max", 0.9).excess(0.9) == 0
    assert Objective("gmacs", "min", 2.0).excess(2.5) == 0.5
    assert Objective("gmacs", "min").excess(1e9) == -math.inf


@pytest.mark.parametrize(
    ("metrics", "values", "feasible"),
    [
        ({"accuracy": 0.95, "gmacs": 1}, [0.95, 1.0], True),
        ({"accuracy": 0.9, "gmacs": 1}, [0.9, 1.0], True),
        ({"accuracy": 0.8, "gmacs": 1}, [0.8, 1.0], False),
        ({"accuracy": 0.95}, None, False),
        ({"accuracy": math.nan, "gmacs": 1}, None, False),
        ({"accuracy": "high", "gmacs": 1}, None, False),
    ],
)
def test_what_is_feasible(metrics, values, feasible):
    assert finite_values(metrics, GOALS) == values
    assert is_feasible(metrics, GOALS) == feasible


def test_every_ended_trial_has_a_status():
    assert set(ENDED) < set(STATUSES)
