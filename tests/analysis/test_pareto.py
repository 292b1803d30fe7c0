"""Fronts and hypervolumes against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from analysis import pareto
from analysis.contract import Objective

MIN2 = [Objective("a", "min"), Objective("b", "min")]
MODES = [
    ("min",),
    ("max",),
    ("min", "min"),
    ("max", "min"),
    ("max", "max"),
    ("min", "max", "min"),
    ("max", "max", "min", "min"),
]


def objectives_of(
    modes: tuple[str, ...], bounds: tuple[float | None, ...] | None = None
) -> list[Objective]:
    return [
        Objective(f"m{i}", mode, (bounds or (None,) * len(modes))[i])
        for i, mode in enumerate(modes)
    ]


def sample(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Small integers, so that ties and duplicates abound, with a few values that are not finite."""
    values = rng.integers(0, 6, size=(n, k)).astype(float)
    for bad in (np.nan, np.inf, -np.inf):
        values[rng.integers(n), rng.integers(k)] = bad
    return values


def front_by_hand(values: np.ndarray, objectives: list[Objective]) -> list[bool]:
    signs = [1 if o.mode == "min" else -1 for o in objectives]

    def counts(row: np.ndarray) -> bool:
        within = all(
            o.bound is None or s * v <= s * o.bound
            for o, s, v in zip(objectives, signs, row, strict=True)
        )
        return bool(np.isfinite(row).all()) and within

    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return [
        counts(row)
        and not any(counts(other) and dominates(other, row) for other in values)
        for row in values
    ]


def volume_by_cells(
    values: np.ndarray, objectives: list[Objective], reference: np.ndarray
) -> float:
    """Sum over the cells of the grid through all coordinates of those that some trial dominates."""
    signs = np.array([1 if o.mode == "min" else -1 for o in objectives])
    costs = (values * signs)[np.isfinite(values).all(axis=1)]
    point = reference * signs
    axes = [
        np.unique(np.append(costs[:, i][costs[:, i] < point[i]], point[i]))
        for i in range(costs.shape[1])
    ]
    total = 0.0
    for cell in itertools.product(*[range(len(axis) - 1) for axis in axes]):
        corner = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
        size = np.prod(
            [axis[i + 1] - axis[i] for axis, i in zip(axes, cell, strict=True)]
        )
        total += float(size) * bool((costs <= corner).all(axis=1).any())
    return total


@pytest.mark.parametrize("modes", MODES)
def test_front_is_that_of_brute_force(modes):
    rng = np.random.default_rng(len(modes))
    for _ in range(20):
        values = sample(rng, 25, len(modes))
        bounds = tuple(rng.choice([None, 1.0, 3.0, 4.0]) for _ in modes)
        for objectives in (objectives_of(modes), objectives_of(modes, bounds)):
            assert pareto.front_mask(values, objectives).tolist() == front_by_hand(
                values, objectives
            )


@pytest.mark.parametrize("modes", MODES)
def test_hypervolume_is_the_sum_of_dominated_cells(modes):
    rng = np.random.default_rng(10 + len(modes))
    objectives = objectives_of(modes)
    for _ in range(6):
        values = sample(rng, 12, len(modes))
        reference = np.array([4.5 if mode == "min" else 0.5 for mode in modes])
        expected = volume_by_cells(values, objectives, reference)
        assert pareto.hypervolume(values, objectives, reference) == pytest.approx(
            expected
        )
        over_time = pareto.hypervolume_over_time(values, objectives, reference)
        by_prefix = [
            volume_by_cells(values[: i + 1], objectives, reference)
            for i in range(len(values))
        ]
        assert over_time == pytest.approx(by_prefix)


def test_duplicates_all_stay_on_the_front():
    values = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert pareto.front_mask(values, MIN2).tolist() == [True, True, True, False]


def test_bound_is_allowed_and_what_lies_past_it_is_not():
    values = np.array([[0.9, 5.0], [0.95, 5.1], [0.8, 1.0]])
    objectives = [
        Objective("accuracy", "max", 0.85),
        Objective("latency_ms", "min", 5.0),
    ]
    assert pareto.front_mask(values, objectives).tolist() == [True, False, False]


def test_a_trial_that_does_not_count_dominates_nothing():
    values = np.array([[-np.inf, 0.0], [1.0, 1.0], [np.nan, 0.0]])
    assert pareto.front_mask(values, MIN2).tolist() == [False, True, False]


def test_empty_and_no_objectives():
    assert pareto.front_mask(np.empty((0, 2)), MIN2).tolist() == []
    assert pareto.front_mask(np.empty((3, 0)), []).tolist() == [False] * 3
    assert pareto.hypervolume(np.empty((0, 2)), MIN2, np.array([1.0, 1.0])) == 0.0


def test_reference_lies_a_tenth_beyond_the_worst():
    values = np.array([[0.5, 10.0], [0.9, 30.0], [np.nan, 99.0]])
    objectives = [Objective("accuracy", "max"), Objective("gmacs", "min")]
    assert pareto.reference_point(values, objectives) == pytest.approx([0.46, 32.0])
    assert pareto.reference_point(values[:1], objectives) == pytest.approx([0.45, 11.0])
    with pytest.raises(ValueError, match="reference point"):
        pareto.reference_point(values[2:], objectives)


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, np.nan], {"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}]
)
def test_reference_that_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match="reference point"):
        pareto.check_reference(bad, MIN2)


def test_knee_is_the_bend():
    front = np.array([[0.0, 10.0], [1.0, 3.0], [5.0, 1.0], [10.0, 0.0]])
    assert pareto.knee(front, MIN2) == 1
    assert (
        pareto.knee(front * [1, -1], [Objective("a", "min"), Objective("b", "max")])
        == 1
    )
    assert pareto.knee(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]), MIN2) == 1
    assert pareto.knee(front[:1], MIN2) == 0
    # a cost that spans decades counts by its logarithm: 300 is far from 1000
    decades = np.array([[0.0, 1000.0], [0.3, 300.0], [0.6, 10.0], [1.0, 1.0]])
    assert pareto.knee(decades, MIN2) == 2
    assert pareto.knee(decades + np.array([0, 1000]), MIN2) == 1


@pytest.mark.parametrize("arguments", [("a", "best"), ("a", "min", float("nan"))])
def test_objective_is_checked(arguments):
    with pytest.raises(ValueError, match=r"'min' or 'max'|finite number"):
        Objective(*arguments)


def test_many_objectives_are_approximated() -> None:
    """Against the exact volume of boxes that share a corner, which is a product of sides, and of
    eight objectives whatever their units.
    """
    rng = np.random.default_rng(0)
    goals = [Objective(f"m{i}", "min") for i in range(8)]
    units = 10.0 ** np.arange(-4, 4)
    one = rng.random((1, 8)) * units
    exact = float(np.prod(1.1 * units - one))
    assert pareto.hypervolume(one, goals, 1.1 * units) == pytest.approx(exact, rel=1e-3)
    many = rng.random((20, 8))
    import moocore

    whole = moocore.hypervolume(many, ref=np.full(8, 1.1)) * np.prod(units)
    found = pareto.hypervolume(many * units, goals, 1.1 * units)
    assert found == pytest.approx(whole, rel=0.01)
    rising = pareto.hypervolume_over_time(many * units, goals, 1.1 * units)
    assert (np.diff(rising) >= 0).all()


def test_what_would_take_long_is_approximated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large front is sampled, and a long curve is computed at some of its points."""
    assert pareto.is_exact(100, 7)
    assert pareto.is_exact(10_000, 3)
    assert not pareto.is_exact(1000, 7)
    rng = np.random.default_rng(0)
    goals = [Objective(f"m{i}", "min") for i in range(4)]
    values = rng.dirichlet(np.ones(4), 60)
    reference = np.full(4, 1.1)
    exact = pareto.hypervolume_over_time(values, goals, reference)
    monkeypatch.setattr(pareto, "_MOST_CURVE", 200)
    thinned = pareto.hypervolume_over_time(values, goals, reference)
    assert (thinned <= exact).all()
    assert 3 <= len(np.unique(thinned)) <= 10
    assert thinned[-1] == exact[-1]
    monkeypatch.setattr(pareto, "_MOST_WORK", 1)
    assert pareto.hypervolume(values, goals, reference) == pytest.approx(
        exact[-1], rel=0.01
    )
