"""Differences to the source, image by image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from analysis.certainty import bounds_probability, changes
from analysis.contract import CLASSES_FILE, Objective
from analysis.paired import (
    Hits,
    flattery,
    hits_in,
    hits_of,
    paired_errors,
    variance,
)
from trainers.data.recognised import recognised


def hits(right: Any) -> Hits:
    return Hits("same", np.asarray(right, bool))


def test_what_a_model_recognises_comes_back_whole(tmp_path: Path) -> None:
    predicted, labels = np.array([0, 2, 1, 1, 0, 2, 2, 1, 0, 0]), np.arange(10) % 3
    written = recognised(predicted, labels)
    assert written.share == pytest.approx((predicted == labels).mean())
    content = {
        "schema": 2,
        "classes": [],
        "recognised": {"accuracy": written._asdict()},
    }
    (tmp_path / CLASSES_FILE).write_text(json.dumps(content))
    found = hits_in(tmp_path)["accuracy"]
    assert found.right.tolist() == (predicted == labels).tolist()
    assert found.labels == recognised(labels, labels).labels
    assert found.labels != recognised(predicted, predicted).labels


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"images": 8, "labels": "x", "bits": "f"},
        {"images": 8, "labels": "x", "bits": "zz"},
        {"images": 9, "labels": "x", "bits": "ff"},
        {"images": 0, "labels": "x", "bits": ""},
        {"images": True, "labels": "x", "bits": "80"},
        {"images": 8, "labels": 3, "bits": "ff"},
        {"images": 8, "labels": "x", "bits": 255},
    ],
)
def test_what_is_malformed_is_left_out(value: Any) -> None:
    good = {"images": 8, "labels": "x", "bits": "ff"}
    found = hits_of({"recognised": {"bad": value, "good": good}})
    assert list(found) == ["good"]
    assert hits_of({"recognised": [value]}) == {}
    assert hits_of(None) == {}


@pytest.mark.parametrize(
    ("both", "alone", "lost"), [(0.80, 0.02, 0.03), (0.5, 0.1, 0.1), (0.9, 0.0, 0.01)]
)
def test_the_error_is_that_of_samples_drawn_anew(
    both: float, alone: float, lost: float
) -> None:
    """Of 4,000 draws of 500 images from a population in which so many are recognised by both, by
    the candidate alone and by the source alone.
    """
    rng = np.random.default_rng(0)
    cells = rng.choice(
        4, size=(4000, 500), p=[both, alone, lost, 1 - both - alone - lost]
    )
    differences = (cells == 1).mean(1) - (cells == 2).mean(1)
    estimates = [
        variance(hits((c == 0) | (c == 1)), hits((c == 0) | (c == 2)))
        for c in cells[:400]
    ]
    wanted = differences.var()
    # half an image in each cell more than was seen, and a tenth for 4,000 draws
    found = float(np.mean(np.asarray(estimates, float)))
    assert 0.9 * wanted < found < 1.1 * wanted + 1 / 500**2


def test_two_models_that_say_the_same_still_have_an_error() -> None:
    found = variance(hits([1, 1, 0, 1]), hits([1, 1, 0, 1]))
    assert found == pytest.approx(1 / 36)  # (0.5 + 0.5) / (4 + 2)²


def test_what_saw_other_images_is_not_compared() -> None:
    one, other = hits([1, 0, 1]), Hits("other", np.ones(3, bool))
    assert variance(one, other) is None
    assert variance(one, hits([1, 0])) is None
    source = {"accuracy": hits([1, 1, 1]), "test_accuracy": other}
    known = {"a": {"accuracy": one}, "b": {"accuracy": one}, "c": {}}
    of = known.__getitem__
    goals = [Objective("accuracy", "max")]

    def errors(metric: str, *ids: list[str]) -> Any:
        rows = configurations([0.67] * len(ids)).assign(trial_ids=list(ids))
        return paired_errors([metric], rows, goals, source, of)

    found = errors("accuracy", ["a"], ["a", "b"])
    assert found["accuracy"].variance == pytest.approx([(0.5 + 1.5 - 1 / 5) / 25] * 2)
    assert errors("accuracy", ["a"], ["c"]) == {}
    assert errors("loss", ["a"]) == {}
    known["c"] = {"accuracy": other}
    assert errors("accuracy", ["c"]) == {}


def configurations(accuracies: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "metric/accuracy": accuracies,
            "sd/accuracy": np.nan,
            "metric/gmacs": 1.0,
            "sd/gmacs": np.nan,
            "replicates": 1,
            "trial_ids": [[f"{i:05d}"] for i in range(len(accuracies))],
        }
    )


def population(
    rng: np.random.Generator, shares: list[float], images: int
) -> np.ndarray:
    """(n, images) hits of models that truly recognise these shares, of images that are hard or easy
    for all of them.
    """
    hard = rng.normal(size=images)
    own = rng.normal(size=(len(shares), images))
    mixed = 0.85 * hard + np.sqrt(1 - 0.85**2) * own
    return mixed < norm.ppf(shares)[:, None]


def errors_of(right: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(n,) standard deviations of the errors of differences to a source."""
    found = [variance(hits(each), hits(source)) for each in right]
    return np.sqrt(np.array(found, float))


@pytest.mark.parametrize(
    "shares", [[0.8] * 10, [0.7] * 10 + [0.8] * 2, [0.79, 0.8, 0.81], [0.6, 0.8]]
)
def test_the_best_is_flattered_by_as_much_as_is_said(shares: list[float]) -> None:
    """Against the shares of the population, over 300 samples of 300 images."""
    rng = np.random.default_rng(0)
    real, said = [], []
    for _ in range(300):
        *right, source = population(rng, [*shares, 0.8], 300)
        means = np.mean(right, axis=1)
        best = int(means.argmax())
        deviations = errors_of(np.array(right), source)
        real.append(means[best] - source.mean() - (shares[best] - 0.8))
        luck = flattery(np.array(right, float), deviations)
        said.append(luck * deviations[best])
    # a quarter of it, and of what chance leaves in a mean of 300
    chance = 2 * np.std(real) / np.sqrt(300)
    assert np.mean(said) == pytest.approx(np.mean(real), rel=0.25, abs=chance)


def test_one_alone_is_not_flattered() -> None:
    right = np.random.default_rng(0).random((1, 50)) < 0.5
    assert flattery(right.astype(float), np.ones(1)) == 0
    assert flattery(np.repeat(right, 5, axis=0).astype(float), np.ones(5)) == 0
    assert flattery(np.zeros((0, 50)), np.ones(0)) == 0


def test_what_says_the_same_as_the_source_was_not_lucky() -> None:
    """Of its rivals, the best of ten, at least a point of 300 images is luck."""
    rng = np.random.default_rng(0)
    right = population(rng, [0.8] * 10, 300)
    known = {f"{i:05d}": {"accuracy": hits(each)} for i, each in enumerate(right)}
    rows = configurations([float(each.mean()) for each in right])
    source, of = {"accuracy": hits(right[0])}, known.__getitem__
    goals = [Objective("accuracy", "max")]
    found = paired_errors(["accuracy"], rows, goals, source, of)["accuracy"]
    assert found.flattery[0] < 0.005
    assert found.flattery[1:].min() > 0.01


def test_only_what_keeps_the_other_bounds_is_chosen_among() -> None:
    """Two of five are small enough, and equal; the other three would flatter."""
    rng = np.random.default_rng(0)
    right = population(rng, [0.8] * 5, 300)
    right[1] = right[0]
    known = {f"{i:05d}": {"accuracy": hits(each)} for i, each in enumerate(right)}
    rows = configurations([float(each.mean()) for each in right])
    rows["metric/gmacs"] = [1.0, 1.0, 3.0, 3.0, 3.0]
    source = {"accuracy": hits(right[2])}

    def flattered(limit: float) -> float:
        goals = [
            Objective("accuracy", "max", 0.7),
            Objective("gmacs", "min", limit),
        ]
        of = known.__getitem__
        found = paired_errors(["accuracy"], rows, goals, source, of)
        return float(found["accuracy"].flattery[0])

    assert flattered(2.0) == 0
    assert flattered(4.0) > 0.01
    assert flattered(0.5) == 0


def test_luck_is_taken_off_before_a_bound_is_certain() -> None:
    """A bound that is missed by just the flattery is kept with 50 %."""
    rng = np.random.default_rng(0)
    right = population(rng, [0.8] * 8, 300)
    known = {f"{i:05d}": {"accuracy": hits(each)} for i, each in enumerate(right)}
    rows = configurations([float(each.mean()) for each in right])
    source = {"accuracy": hits(population(rng, [0.8], 300)[0])}
    goal = Objective("accuracy", "max")
    of = known.__getitem__
    paired = paired_errors(["accuracy"], rows, [goal], source, of)
    best = int(rows["metric/accuracy"].argmax())
    luck = float(paired["accuracy"].flattery[best])
    assert luck > 0.01
    bounded = [Objective("accuracy", "max", rows["metric/accuracy"][best] - luck)]
    chances = bounds_probability(rows, bounded, pd.DataFrame(), paired)
    assert chances[best] == pytest.approx(0.5)
    found = changes(rows, goal, pd.DataFrame(), 0.8, paired)[best]
    assert found.flattery == pytest.approx(luck)
    assert found.mean == pytest.approx(rows["metric/accuracy"][best] - 0.8 - luck)
    assert found.kept(np.array([-found.mean])) == pytest.approx([0.5])
