"""Differences to the source, image by image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.contract import CLASSES_FILE
from analysis.paired import (
    Hits,
    differences,
    hits_in,
    hits_of,
    paired_variances,
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
    known = {
        name: differences(own, source)
        for name, own in (("a", {"accuracy": one}), ("b", {"accuracy": one}), ("c", {}))
    }
    of = known.__getitem__
    found = paired_variances(["accuracy"], [["a"], ["a", "b"]], of)
    assert found["accuracy"] == pytest.approx([(0.5 + 1.5 - 1 / 5) / 25] * 2)
    assert paired_variances(["accuracy"], [["a"], ["c"]], of) == {}
    assert paired_variances(["loss"], [["a"]], of) == {}
    assert differences({"accuracy": other}, source) == {}
