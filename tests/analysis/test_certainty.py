"""How sure a front is, against truths that are known because the noise is made here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import certainty, pareto
from analysis.contract import Objective

GOALS = [Objective("accuracy", "max"), Objective("gmacs", "min")]
NO_CLASSES = pd.DataFrame()


def measured(
    truth: np.ndarray, sd: float, seeds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Configurations of which the first objective was measured with an error of each seed."""
    trials = truth[:, :1] + sd * rng.normal(size=(len(truth), seeds))
    return pd.DataFrame(
        {
            "replicates": seeds,
            "metric/accuracy": trials.mean(axis=1),
            "sd/accuracy": trials.std(axis=1, ddof=1) if seeds > 1 else np.nan,
            "metric/gmacs": truth[:, 1],
            "sd/gmacs": 0.0 if seeds > 1 else np.nan,
        }
    )


def test_stated_probabilities_come_true() -> None:
    """Over fronts that bend and have near rivals, configurations that are said to be on the front
    with about 0.9 are there in about 0.9 of cases.
    """
    rng = np.random.default_rng(3)
    said, true = [], []
    for _ in range(60):
        cost = np.exp(rng.uniform(0, 3, 30))
        gain = 0.97 - 0.4 * np.exp(-cost / 6) - np.abs(rng.normal(0, 0.03, 30))
        truth = np.stack([gain, cost], axis=1)
        rows = measured(truth, 0.01, 3, rng)
        drawn = certainty.plausible_values(rows, GOALS, NO_CLASSES, 200)
        said += list(certainty.front_probability(drawn, GOALS))
        true += list(pareto.front_mask(truth, GOALS))
    shares, happened = np.array(said), np.array(true)
    for low, high, error in ((0.0, 0.2, 0.05), (0.4, 0.6, 0.2), (0.85, 0.95, 0.09)):
        mine = (shares >= low) & (shares < high)
        assert mine.sum() > 60
        assert happened[mine].mean() == pytest.approx(shares[mine].mean(), abs=error)


def test_without_noise_the_front_is_certain() -> None:
    truth = np.array([[0.9, 3.0], [0.8, 2.0], [0.7, 2.5], [0.6, 1.0]])
    rows = measured(truth, 0.0, 3, np.random.default_rng(0))
    drawn = certainty.plausible_values(rows, GOALS, NO_CLASSES, 50)
    assert certainty.front_probability(drawn, GOALS).tolist() == [1, 1, 0, 1]


def test_one_seed_goes_by_the_images() -> None:
    """By hand: the error of 0.8 over 100 images, one success and one failure added."""
    rows = measured(np.array([[0.8, 1.0], [0.8, 2.0]]), 0, 1, np.random.default_rng(0))
    classes = pd.DataFrame(
        {"trial_id": ["a", "a", "b", "b"], "images": [60, 40, 60, 40]}
    )
    variances, freedom = certainty.error_variances(rows, GOALS, classes)
    p = 81 / 102
    assert variances[:, 0] == pytest.approx(p * (1 - p) / 100)
    assert variances[:, 1].tolist() == [0, 0]
    assert np.isinf(freedom).all()


def test_the_cheapest_of_single_seeds_is_on_the_front_for_certain() -> None:
    rows = measured(np.array([[0.8, 1.0], [0.9, 2.0]]), 0, 1, np.random.default_rng(0))
    classes = pd.DataFrame({"trial_id": ["a", "b"], "images": [100, 100]})
    drawn = certainty.plausible_values(rows, GOALS, classes, 400)
    cheap, dear = certainty.front_probability(drawn, GOALS)
    assert cheap == 1.0
    assert 0.9 < dear < 1.0  # it may truly be the worse one


def test_a_latency_is_as_sure_as_its_quartiles() -> None:
    rows = pd.DataFrame(
        {
            "replicates": [1],
            "metric/latency_ms": [5.0],
            "sd/latency_ms": [np.nan],
            "metric/latency_p25_ms": [4.0],
            "metric/latency_p75_ms": [6.698],
        }
    )
    goals = [Objective("latency_ms", "min")]
    variances, _ = certainty.error_variances(rows, goals, NO_CLASSES)
    assert variances[0, 0] == pytest.approx(4.0)  # quartiles are 1.349 sd apart


def test_a_ratio_and_a_throughput_are_as_sure_as_their_passes() -> None:
    rows = pd.DataFrame(
        {
            "replicates": [1],
            "metric/openvino.latency_ms": [5.0],
            "metric/openvino.latency_p25_ms": [4.0],
            "metric/openvino.latency_p75_ms": [6.698],  # 2 ms a standard deviation
            "metric/openvino.throughput": [200.0],
            "metric/latency_ratio": [0.5],
            "metric/latency_ratio_low": [0.48],
            "metric/latency_ratio_high": [0.52],
            "metric/channels_latency_ratio": [0.5],
        }
    )
    names = ["openvino.throughput", "latency_ratio", "channels_latency_ratio"]
    goals = [Objective(name, "min", 0.5) for name in names]
    rows = rows.assign(**{f"sd/{name}": np.nan for name in names})
    variances, _ = certainty.error_variances(rows, goals, NO_CLASSES)
    assert np.sqrt(variances[0]) == pytest.approx([80.0, 0.02 / 1.96, 0.0])
    # on its bound a ratio is as likely above it as below
    chances = certainty.bounds_probability(rows, goals[1:2], NO_CLASSES)
    assert chances == pytest.approx([0.5])


def test_a_class_without_images_does_not_make_a_share_exact() -> None:
    """By hand: 10 images of the rarest class that has any."""
    rows = pd.DataFrame(
        {"replicates": [1], "metric/auroc": [0.8], "sd/auroc": [np.nan]}
    )
    classes = pd.DataFrame({"trial_id": ["a"] * 3, "images": [10, 0, 90]})
    goals = [Objective("auroc", "max")]
    variances, _ = certainty.error_variances(rows, goals, classes)
    p = 9 / 12
    assert variances[0, 0] == pytest.approx(p * (1 - p) / 10)


def test_the_worst_case_prefers_what_is_sure(make_run) -> None:
    """Of two equal compromises the one whose seeds agree is picked."""
    means = {0: (0.95, 3.0), 1: (0.90, 2.0), 2: (0.899, 1.99), 3: (0.80, 1.0)}

    def change(record: dict) -> None:
        accuracy, gmacs = means[record["number"]]
        wide = 0.04 if record["number"] == 2 else 0.001
        accuracy += wide * (record["replicate"] - 2)
        metrics = {"accuracy": accuracy, "gmacs": gmacs, "latency_ms": 1.0}
        record |= {"status": "complete", "metrics": metrics, "error": None}

    run = analysis.load(make_run(trials=20, replicates=5, change=change))
    row = run.worst_case_pick()
    assert run.trials["number"][row] == 1
    chances = dict(zip(run.configurations()["number"], run.chances(), strict=True))
    assert chances[0] > 0.95
    assert chances[3] > 0.95
    assert "on the front" in analysis.front_text(run)


def test_the_probability_of_keeping_a_bound_is_that_of_the_binomial_error() -> None:
    """Of 400 images of which 95 % are right: a bound one standard error below is kept with 84 %,
    whatever other configurations measured.
    """
    rows = pd.DataFrame(
        {
            "replicates": 1,
            "metric/accuracy": [0.95, 0.95, 0.5],
            "sd/accuracy": np.nan,
            "metric/gmacs": [1.0, 3.0, 1.0],
            "sd/gmacs": np.nan,
        }
    )
    classes = pd.DataFrame({"trial_id": ["0", "1", "2"], "images": 400})
    error = np.sqrt(0.95 * 0.05 / 400)
    bounded = [
        Objective("accuracy", "max", 0.95 - error),
        Objective("gmacs", "min", 2.0),
    ]
    found = certainty.bounds_probability(rows, bounded, classes)
    assert found == pytest.approx([0.84, 0, 0], abs=0.02)


def test_a_loss_is_as_likely_as_the_bound_that_it_is() -> None:
    """Against `bounds_probability` with the bound that the baseline and the loss give; the interval
    is that of the binomial error.
    """
    rows = pd.DataFrame({"metric/accuracy": [0.95, 0.94, 0.9], "replicates": 1})
    rows["sd/accuracy"] = np.nan
    classes = pd.DataFrame(
        {"trial_id": ["a"] * 2, "images": [200, 88], "test_images": 0}
    )
    objective = Objective("accuracy", "max")
    found = certainty.changes(rows, objective, classes, 0.955)
    losses = np.array([0.0, 0.01, 0.03])
    mine = np.array([change.kept(losses) for change in found.values()])
    for place, loss in enumerate(losses):
        bounded = [Objective("accuracy", "max", 0.955 - loss)]
        wanted = certainty.bounds_probability(rows, bounded, classes)
        assert mine[:, place] == pytest.approx(wanted)
    share = (0.95 * 288 + 1) / 290
    half = 1.96 * (share * (1 - share) / 288) ** 0.5
    assert found[0].mean == pytest.approx(-0.005)
    assert found[0].high - found[0].mean == pytest.approx(half, rel=1e-3)
    assert certainty.part_of("accuracy", classes) == ("validation", 288)
    assert certainty.part_of("test_accuracy", classes) is None
    assert certainty.part_of("gmacs", classes) is None


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy", "f1_macro"])
def test_the_rarest_class_says_how_sure_a_metric_of_classes_is(metric: str) -> None:
    """Of 400 images of which 40 are of the rarer class, 40 decide: a bound one of their standard
    errors below is kept with 84 % at most, and not for certain.
    """
    rows = pd.DataFrame(
        {"replicates": 1, f"metric/{metric}": [0.9, 0.9], f"sd/{metric}": np.nan}
    )
    classes = pd.DataFrame(
        {"trial_id": ["0", "0", "1", "1"], "images": [360, 40, 360, 40]}
    )
    bounded = [Objective(metric, "max", 0.9 - np.sqrt(0.9 * 0.1 / 40))]
    found = certainty.bounds_probability(rows, bounded, classes)
    assert found == pytest.approx([0.84, 0.84], abs=0.03)


def test_the_rarest_class_bounds_the_error_of_an_area_under_a_curve() -> None:
    """Areas of drawn scores vary no more than is said, and not by orders of magnitude less."""
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(400):
        rare, others = rng.normal(1.5, 1, 40), rng.normal(0, 1, 360)
        areas.append(np.mean(rare[:, None] > others))
    rows = pd.DataFrame(
        {"replicates": 1, "metric/auroc": [np.mean(areas)], "sd/auroc": np.nan}
    )
    classes = pd.DataFrame({"trial_id": ["0", "0"], "images": [360, 40]})
    goal = [Objective("auroc", "max")]
    variances, _ = certainty.error_variances(rows, goal, classes)
    assert np.var(areas) < variances[0, 0] < 6 * np.var(areas)


@pytest.mark.parametrize(("configurations", "spread"), [(6, 0.5), (6, 1.0), (12, 1.0)])
def test_what_is_hardly_possible_comes_true_as_rarely(
    configurations: int, spread: float
) -> None:
    """The true means differ by no more than their errors do: often they are measured as if they did
    not differ at all, which does not say that they are equal. Each costs more than the one before,
    so it is on the front where it is better than all of those.
    """
    rng, said, came_true = np.random.default_rng(0), [], []
    error = 0.02
    for _ in range(300):
        truth = rng.normal(0.8, spread * error, configurations)
        seen = (truth + rng.normal(0, error, configurations))[:, None]
        variances = np.full_like(seen, error**2)
        freedom = np.full_like(seen, np.inf)
        values = certainty.drawn(seen, variances, freedom, 500)[:, :, 0]
        best = np.maximum.accumulate(values, axis=1)
        said += list((values >= best).mean(axis=0))
        came_true += list(truth >= np.maximum.accumulate(truth))
    chances, on_front = np.array(said), np.array(came_true)
    for low, high in [(0.0, 0.03), (0.1, 0.3), (0.3, 0.6), (0.9, 1.01)]:
        within = (low <= chances) & (chances < high)
        assert within.sum() > 10
        assert on_front[within].mean() == pytest.approx(
            chances[within].mean(), abs=0.08
        )


@pytest.mark.parametrize("configurations", [1, 2, 3])
def test_few_configurations_are_not_drawn_towards_each_other(
    configurations: int,
) -> None:
    """What two measured alike does not say that they are the same: each keeps its own value."""
    values = np.array([[0.90, 1.0], [0.92, 2.0], [0.91, 3.0]])[:configurations]
    variances = np.full_like(values, 0.02**2)
    freedom = np.full_like(values, np.inf)
    drawn = certainty.drawn(values, variances, freedom, 4000)
    assert drawn.mean(axis=0) == pytest.approx(values, abs=0.002)
    assert drawn.std(axis=0) == pytest.approx(np.sqrt(variances), rel=0.05)
