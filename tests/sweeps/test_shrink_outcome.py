"""What shrink says when it ends: what the test part confirms; and the model, put in its place."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.goal import pick
from analysis.numbers import fixed, number, percent
from analysis.report.verdict import verdict
from analysis.report.words import parts
from sweeps.drive.driver import run_header
from sweeps.run.record import to_json
from sweeps.search.goal import Goal
from sweeps.shrink.deliver import MODEL, deliver
from sweeps.shrink.outcome import figures, on_test
from sweeps.shrink.progress import GoalProgress, knows_by_heart
from sweeps.shrink.reach import Reach
from tests.sweeps.helpers import begin, finish, searcher
from tests.sweeps.test_shrink import of_run
from trainers.data.recognised import recognised
from trainers.files import write_atomic


def run_tested(
    raw: dict[str, Any], run: Path, test_accuracy: float, images: int
) -> analysis.Run:
    """A run that may lose a point of accuracy, of whose source and only candidate 90 % and
    `test_accuracy` of so many test images are right.
    """
    raw["objectives"] = [
        {"metric": "accuracy", "mode": "max", "bound": {"loss": 0.01}},
        {"metric": "gmacs", "mode": "min", "bound": {"times": 0.5}},
    ]
    search = searcher(raw, run, trials=1, baseline=True)
    write_atomic(run / "run.json", to_json(run_header(search.sweep, [])))
    finish(search, accuracy=0.8, gmacs=4.0, test_accuracy=0.9)
    finish(search, accuracy=0.8, gmacs=1.0, test_accuracy=test_accuracy)
    counts = {"trial_id": ["00000"] * 2, "test_images": [images - 10, 10]}
    return replace(analysis.load(run), classes=pd.DataFrame(counts))


@pytest.mark.parametrize(
    ("test_accuracy", "images", "said"),
    [
        # the bound is 89 %; standard errors by the binomial formula: 0.096, 4.1, 3.0, 0.10 points
        (0.90, 100_000, "confirmed"),
        (0.90, 52, "kept, with a probability of 5"),
        (0.88, 110, "missed; kept with a probability of 3"),
        (0.88, 100_000, "refuted"),
    ],
)
def test_the_test_part_confirms_or_refutes(
    test_accuracy: float, images: int, said: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    run = run_tested(raw, tmp_path / "r", test_accuracy, images)
    found = pick(run)
    assert found is not None
    line = on_test(run, found)
    assert line is not None
    assert f"({number(images)} images, looked at once)" in line
    assert f"goal at least {percent(0.89, 2)}: {said}" in line


def test_images_that_both_recognise_say_nothing_of_a_loss(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """45 of 50 are recognised: an accuracy of 90 % ± 4.2 points by itself, of which 5 may be lost.
    Where they are the same images, at most one or two may be lost indeed.
    """
    raw["objectives"] = [{"metric": "accuracy", "mode": "max", "bound": {"loss": 0.05}}]
    search = searcher(raw, tmp_path / "r", trials=2, baseline=True)
    write_atomic(search.run / "run.json", to_json(run_header(search.sweep, [])))
    labels = np.arange(50)
    wrong = labels + 1
    found = {}
    for name, missed in (("baseline", 0), ("00000", 0), ("00001", 45)):
        record = begin(search)
        predicted = np.where((labels >= missed) & (labels < missed + 5), wrong, labels)
        hits = {"accuracy": recognised(predicted, labels)._asdict()}
        record.set_classes([{"index": 0, "class": "a", "images": 50}], hits)
        record.finish("complete", metrics={"accuracy": 0.9})
        search.tell(record)
        found[name] = record
    goals = analysis.load(search.run).objectives
    for trial, relative, is_met in (
        ("00000", ["accuracy"], True),
        ("00000", [], False),
        ("00001", ["accuracy"], False),
    ):
        goal = Goal(relative)
        goal.note(found[trial])
        assert goal.is_met(goals) == is_met
    chosen = pick(analysis.load(search.run))
    assert chosen is not None
    assert (chosen.trial_id, chosen.is_certain) == ("00000", True)
    assert 0 < chosen.flattery < 0.02
    said = figures(analysis.load(search.run), chosen)
    luck = fixed(100 * chosen.flattery, 1)
    assert said[-1].startswith(f"of its accuracy about {luck} points are luck: ")


def test_without_a_test_part_nothing_is_said(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = of_run(raw, tmp_path / "r", [(0.895, 1.0)])
    found = pick(run)
    assert found is not None
    assert on_test(run, found) is None


def test_a_model_that_cannot_be_written_leaves_the_one_before(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first export is whole, the second ends in the middle, the third is whole again."""
    exports = iter(["first", KeyboardInterrupt(), "third"])

    def export(run: Path, trial: str, form: str, target: Path) -> SimpleNamespace:
        target.mkdir(parents=True)
        (target / "model.bin").write_text("half")
        content = next(exports)
        if isinstance(content, BaseException):
            raise content
        (target / "model.bin").write_text(content)
        return SimpleNamespace(files=[target / "model.bin"])

    monkeypatch.setattr("sweeps.shrink.deliver.export", export)
    run, out = of_run(raw, tmp_path / "r", [(0.90, 1.0)]), tmp_path / "out"
    found = pick(run)
    assert found is not None
    deliver(run, found, "torch", out, [])
    with pytest.raises(KeyboardInterrupt):
        deliver(run, found, "torch", out, [])
    assert (out / MODEL / "model.bin").read_text() == "first"
    files = deliver(run, found, "torch", out, [])
    assert [file.read_text() for file in files] == ["third"]
    assert sorted(path.name for path in out.glob(f"*{MODEL}*")) == [MODEL]


@pytest.mark.parametrize(
    ("validation", "test", "images", "is_told"),
    [
        (1.0, 0.944, (5000, 10_000), True),  # as a published checkpoint of CIFAR-10
        (0.9215, 0.9455, (2000, 2000), False),
        (0.9, 0.85, (60, 100), False),  # six images of a hundred
        (
            0.951,
            0.936,
            (50_000, 50_000),
            False,
        ),  # a point and a half, though it is certain
        (1.0, None, (5000, 0), False),
    ],
)
def test_a_source_that_was_trained_with_the_validation_part_is_told(
    validation: float, test: float | None, images: tuple[int, int], is_told: bool
) -> None:
    metrics = {"accuracy": validation}
    if test is not None:
        metrics["test_accuracy"] = test
    said = knows_by_heart(metrics, *images)
    assert (said is not None) == is_told
    if said is not None:
        assert f"{percent(1.0)} of the validation part and {percent(0.944)}" in said


def test_the_time_left_is_that_of_all_drivers(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    run = of_run(raw, tmp_path / "r", [(0.90, 3.0)])
    reach = Reach({"stages": {}, "search": {}})
    progress = GoalProgress(run.objectives, {}, hours=1, reach=reach, classes=10)
    progress.share_left = lambda: 0.25
    with progress.drawn(0, run.path):
        assert progress.summary().endswith("15 min left")


def test_the_report_ships_what_shrink_picks(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    """Half of the operations are wanted: fewer are no reason to lose accuracy."""
    run = of_run(raw, tmp_path / "r", [(0.905, 1.5), (0.895, 1.0)])
    found = pick(run)
    assert found is not None
    assert found.trial_id == "00000"
    said = re.sub("<[^>]*>", "", str(verdict(run)))
    assert said.startswith("Ship trial 00000, the highest accuracy within all bounds: ")
    assert "Chance that it keeps them: " in said
    assert "The lowest gmacs within 1 point of accuracy is trial 00001: " in said
    page = parts(run, None)
    assert "Highest accuracy within all bounds" in page["pick"]
    assert "trial 00000" in page["pick"]
    # of the front's own picks it is the best in accuracy, and has no second card for it
    assert "ighest accuracy" not in page["picks"]
    assert "Lowest gmacs within 1 point" in page["picks"]
