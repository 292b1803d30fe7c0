"""Two real processes, gloo: what must be equal on all ranks is, and one process is the
reference.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.config import AugmentConfig, DataConfig, SourceConfig, TrainConfig
from trainers.data.splits import load_data
from trainers.models.source import load_source
from trainers.training.epoch_metrics import EPOCH_METRICS
from trainers.training.evaluate import evaluate_classes

Ranks = Callable[..., list[Any]]

TWO = """
from tests.distributed import jobs

give(
    {
        "fit": jobs.training(folder),
        "evaluated": jobs.evaluated(),
        "wfn": jobs.fixing_weights(folder),
        "vit": jobs.vit(folder, world),
        "resumed": jobs.killed_and_resumed(folder),
        "nvit": jobs.pruning(folder, rank),
    }
)
"""
ONE = """
from tests.distributed import jobs

give(jobs.vit(folder, world))
"""


@pytest.fixture(scope="module")
def two(ranks: Ranks) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return ranks(TWO, 2)


def test_all_ranks_end_alike(two: list[dict[str, Any]]) -> None:
    assert two[0] == two[1]


MEASURED = """
import torch
from compress.stage import Context

context = Context(None, torch.device("cpu"), 0, folder / "work", lambda *_: None)
calls = []

def measure():
    calls.append(rank)
    return {"of rank": rank, "call": len(calls)}

first = context.measure_once("found.json", measure)
again = context.measure_once("found.json", measure)
give([first, again, calls])
"""


def test_a_measurement_is_made_by_rank_0_once(ranks: Ranks) -> None:
    found = {"of rank": 0, "call": 1}
    assert ranks(MEASURED, 2) == [[found, found, [0]], [found, found, []]]


STILL = """
from tests.distributed import jobs

give(jobs.standing_still(folder, rank))
"""


def test_a_rank_that_stands_still_stops_the_others_and_no_more(ranks: Ranks) -> None:
    """They wait for it in their next sum of gradients, and count that as paused."""
    first, second = ranks(STILL, 2)
    assert first["loss"] == second["loss"]
    assert first["paused"] > 0.4
    assert second["paused"] == pytest.approx(first["paused"], abs=0.3)


def test_a_fit_counts_every_image_once_and_is_taken_from_the_cache(
    two: list[dict[str, Any]],
) -> None:
    fit = two[0]["fit"]
    right = fit["scores"]["accuracy"] * 61
    assert right == pytest.approx(round(right), abs=1e-9)
    assert fit["cached"] == [True]
    assert fit["again"] == fit["hash"]
    assert fit["replayed"] == 2


def test_every_epoch_metric_is_that_of_one_process(
    two: list[dict[str, Any]], data_cache: Path
) -> None:
    """On 61 images, and on one alone, of which the second rank has none."""
    config = DataConfig(dataset="digits", limit=160, limit_test=61, val_fraction=0.25)
    data = load_data(config, data_cache)
    source = SourceConfig(model="resnet20_cifar", args={"width": 4})
    module = load_source(source, num_classes=10, image_size=32, seed=5).build()
    first = replace(data.test, rows=data.test.rows[:1], labels=data.test.labels[:1])
    for part, (metrics, by_class, images, confusion, worst, share) in zip(
        (data.test, first), two[0]["evaluated"], strict=True
    ):
        alone = evaluate_classes(
            module, replace(data, test=part), "test", torch.device("cpu"), samples=5
        )
        assert metrics == pytest.approx(alone.metrics, abs=1e-6)
        assert by_class == alone.class_accuracy
        assert images == alone.class_images
        assert share == pytest.approx(metrics["accuracy"])
        shown = alone.predictions
        assert list(map(tuple, confusion)) == shown.confusion
        assert worst == [[*s[:2], s.thumbnail.hex()] for s in shown.samples]
        assert sum(images) == len(part.rows)
    assert set(two[0]["evaluated"][0][0]) == set(EPOCH_METRICS) - {"train_loss"}
    assert "auroc" not in two[0]["evaluated"][1][0]


def test_wfn_assigns_alike_in_every_iteration(two: list[dict[str, Any]]) -> None:
    assert len(set(two[0]["wfn"]["seen"])) == 3
    assert two[0]["wfn"] == two[1]["wfn"]


def test_nvit_holds_the_same_masks_everywhere(two: list[dict[str, Any]]) -> None:
    """Importance is reduced, so that all ranks decide alike."""
    nvit = two[0]["nvit"]
    assert nvit["reduced"] == [1.5, 3.0]
    assert nvit["reason"] == "latency_target"
    assert nvit["keeps"][0] != nvit["keeps"][-1]
    assert nvit == two[1]["nvit"]


def test_killed_and_resumed_is_uninterrupted(two: list[dict[str, Any]]) -> None:
    resumed, whole, rows = two[0]["resumed"]
    assert resumed == whole
    assert rows == 3


def test_two_ranks_are_one_process_that_accumulates(
    two: list[dict[str, Any]], ranks: Ranks
) -> None:
    """Without batch norm: the same images in the same global batches give the same
    gradient, up to rounding.
    """
    (alone,) = ranks(ONE, 1)
    assert two[0]["vit"]["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    for ours, reference in zip(two[0]["vit"]["rows"], alone["rows"], strict=True):
        assert ours == pytest.approx(reference, rel=1e-3)


def test_batches_that_do_not_divide_are_refused() -> None:
    config = TrainConfig(epochs=1, batch_size=33, augment=AugmentConfig(preset="none"))
    with pytest.raises(ValueError, match="batch_size 33 does not divide by 2 workers"):
        config.accumulation(2)
