"""Fronts by their definitions: hypothesis against brute force, noise, seeds, and the
replicates of a configuration.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import pareto
from analysis.configurations import configurations_of
from analysis.contract import Objective

NUMBERS = st.one_of(
    st.integers(0, 4).map(float),
    st.floats(0, 4, width=16),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0]),
)
INTERVALS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12
)


def rows_of(k: int) -> st.SearchStrategy[np.ndarray]:
    rows = st.lists(st.tuples(*[NUMBERS] * k), max_size=12)
    return rows.map(lambda rows: np.array(rows, dtype=float).reshape(len(rows), k))


@settings(deadline=None, max_examples=120)
@given(st.data(), st.integers(1, 4))
def test_front_by_its_definition(data: st.DataObject, k: int) -> None:
    values = data.draw(rows_of(k))
    objectives = [
        Objective(f"m{i}", data.draw(st.sampled_from(["min", "max"]))) for i in range(k)
    ]
    costs = [
        tuple(o.sign * v for o, v in zip(objectives, row, strict=True))
        for row in values.tolist()
    ]
    finite = [all(map(math.isfinite, cost)) for cost in costs]
    expected = [
        ok
        and not any(
            f and other != cost and all(map(float.__le__, other, cost))
            for f, other in zip(finite, costs, strict=True)
        )
        for ok, cost in zip(finite, costs, strict=True)
    ]
    assert pareto.front_mask(values, objectives).tolist() == expected


@settings(deadline=None, max_examples=120)
@given(INTERVALS)
def test_noise_front_is_the_kernel_of_beating(rows: list[tuple[int, int, int]]) -> None:
    """No member beats another, and every trial outside is beaten by a member."""
    cost = np.array([row[0] for row in rows], dtype=float)
    low, high = (
        np.array([f(row[1:]) for row in rows], dtype=float) for f in (min, max)
    )
    values = np.stack([cost, (low + high) / 2], axis=1).reshape(len(rows), 2)
    mask = pareto.noisy_front_mask(
        values, [Objective("a", "min"), Objective("t_ms", "min")], 1, low, high
    )

    def beats(i: int, j: int) -> bool:
        if cost[i] > cost[j] or high[j] < low[i]:
            return False
        return bool(cost[i] < cost[j] or high[i] < low[j])

    inside = np.flatnonzero(mask)
    assert not any(beats(i, j) for i in inside for j in inside)
    assert all(any(beats(i, j) for i in inside) for j in np.flatnonzero(~mask))


@settings(deadline=None, max_examples=60)
@given(rows_of(2))
def test_noise_of_no_width_is_no_noise(values: np.ndarray) -> None:
    objectives = [Objective("a", "min"), Objective("t_ms", "min")]
    found = pareto.noisy_front_mask(values, objectives, 1, values[:, 1], values[:, 1])
    unmeasured = pareto.noisy_front_mask(
        values,
        objectives,
        1,
        np.full(len(values), np.nan),
        np.full(len(values), np.nan),
    )
    assert (
        found.tolist()
        == unmeasured.tolist()
        == pareto.front_mask(values, objectives).tolist()
    )


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)),
        min_size=1,
        max_size=14,
    )
)
def test_attainment_counts_the_seeds(rows: list[tuple[int, int, int]]) -> None:
    sets, values = (
        [row[0] for row in rows],
        np.array([row[1:] for row in rows], dtype=float),
    )
    count = len(set(sets))
    surfaces = pareto.attainment(
        values, sets, [Objective("a", "min"), Objective("b", "min")], (0, 50, 100)
    )
    for level, surface in surfaces.items():
        wanted = max(1, math.ceil(level / 100 * count))
        for goal in np.ndindex(6, 6):
            attained = {
                s
                for s, value in zip(sets, values, strict=True)
                if (value <= goal).all()
            }
            assert bool((surface <= goal).all(axis=1).any()) == (
                len(attained) >= wanted
            )


def test_attainment_of_a_maximised_objective_and_of_three() -> None:
    values = np.array([[0.9, 3.0], [0.8, 1.0], [0.85, 3.0]])
    objectives = [Objective("accuracy", "max"), Objective("gmacs", "min")]
    found = pareto.attainment(values, [0, 0, 1], objectives, (0, 100))
    assert sorted(found[100].tolist()) == [[0.85, 3.0]]
    assert sorted(found[0].tolist()) == [[0.8, 1.0], [0.9, 3.0]]
    three = pareto.attainment(
        np.ones((2, 3)), [0, 1], [Objective(n, "min") for n in "abc"], (100,)
    )
    assert three[100].tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match="2 or 3"):
        pareto.attainment(
            np.ones((2, 4)), [0, 1], [Objective(n, "min") for n in "abcd"]
        )


def trials(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    """Complete trials of (number, accuracy, gmacs)."""
    frame = pd.DataFrame(rows, columns=["number", "metric/accuracy", "metric/gmacs"])
    ended = pd.to_datetime(range(len(frame)), unit="s", utc=True)
    return frame.assign(
        trial_id=[f"t{i}" for i in range(len(frame))],
        ended=ended,
        number=frame["number"].astype("Int64"),
    )


GOALS = [Objective("accuracy", "max"), Objective("gmacs", "min")]


def test_replicates_are_one_row_with_spread() -> None:
    done = trials(
        [
            (0, 0.80, 1.0),
            (1, 0.5, 2.0),
            (0, 0.86, 1.0),
            (0, 0.92, 1.0),
            (2, 0.9, math.nan),
        ]
    )
    found = configurations_of(done, GOALS)
    assert found["trial_ids"].tolist() == [["t0", "t2", "t3"], ["t1"]]
    assert found["replicates"].tolist() == [3, 1]
    assert found["trial_id"].tolist() == [
        "t2",
        "t1",
    ]  # the seed nearest the mean stands for the point
    assert found["metric/accuracy"].tolist() == pytest.approx([0.86, 0.5])
    assert found["sd/accuracy"].tolist() == pytest.approx([0.06, math.nan], nan_ok=True)
    assert found["sd/gmacs"].iloc[0] == 0.0
    assert found["ended"].iloc[0] == done["ended"].iloc[3]


def test_one_lucky_seed_is_not_on_the_front() -> None:
    lucky = [(0, 0.99, 1.0), (0, 0.61, 1.0), (1, 0.9, 1.0), (1, 0.9, 1.0)]
    found = configurations_of(trials(lucky), GOALS)
    mask = pareto.front_mask(
        found[["metric/accuracy", "metric/gmacs"]].to_numpy(float), GOALS
    )
    assert found["number"][mask].tolist() == [1]


def test_a_runs_front_and_its_table(make_run) -> None:
    objectives = [
        {"metric": "accuracy", "mode": "max"},
        {"metric": "latency_ms", "mode": "min"},
    ]
    run = analysis.gather(
        make_run(trials=60, replicates=3, header={"objectives": objectives})
    )
    front, noisy = run.front(noise=False), run.front()
    by_hand = (
        run.complete()
        .groupby("number")[["metric/accuracy", "metric/latency_ms"]]
        .mean()
    )
    for _, row in front.iterrows():
        assert row["metric/accuracy"] == pytest.approx(
            by_hand.loc[row["number"], "metric/accuracy"]
        )
        better = by_hand[(by_hand["metric/accuracy"] > row["metric/accuracy"] + 1e-12)]
        assert not (better["metric/latency_ms"] <= row["metric/latency_ms"]).any()
    assert len(noisy) <= len(front) + 3
    table = run.fronts
    assert table["front"].value_counts().to_dict() == {
        "mean": len(front),
        "noise": len(noisy),
    }
    picked = {name for text in table["picks"] for name in json.loads(text)}
    assert picked == {"best accuracy", "best latency_ms", "knee"}
    with pytest.raises(ValueError, match="no objective has measured quartiles"):
        analysis.load(make_run("plain")).front(noise=True)
