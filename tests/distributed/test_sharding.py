"""Parameters split over two real processes (FSDP2 on gloo), beside DDP in the same two."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.distributed import sharding_jobs
from trainers.training.sharding import SHARDED_OPTIMIZERS

Ranks = Callable[..., list[Any]]

TWO = """
from tests.distributed import sharding_jobs as jobs

give(
    {
        "compared": jobs.compared(folder),
        "resumed": jobs.resumed(folder),
        "held": jobs.held(folder),
        "optimizers": jobs.optimizers(["adamw", "lookahead_sgd", "muon"]),
    }
)
"""
OPTIMIZERS = """
from tests.distributed import sharding_jobs as jobs

give(jobs.optimizers())
"""
MORE = """
from tests.distributed import sharding_jobs as jobs

give(jobs.more_compared(folder))
"""
FAMILIES = """
from tests.distributed import sharding_jobs as jobs

give(jobs.families())
"""


@pytest.fixture(scope="module")
def two(ranks: Ranks) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return ranks(TWO, 2)


def assert_as_whole(found: list[Any]) -> None:
    far, same_zeros, losses, sharded_losses = found
    assert far < 2e-4
    assert same_zeros
    for ours, reference in zip(sharded_losses, losses, strict=True):
        assert ours == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize("case", sharding_jobs.CASES)
def test_shards_train_as_whole_copies_do(two: list[dict[str, Any]], case: str) -> None:
    assert_as_whole(two[0]["compared"][case])


@pytest.mark.slow
def test_more_cases(ranks: Ranks) -> None:
    for found in ranks(MORE, 2)[0].values():
        assert_as_whole(found)


def test_all_ranks_end_alike(two: list[dict[str, Any]]) -> None:
    assert two[0]["compared"] == two[1]["compared"]


def test_killed_and_resumed_is_uninterrupted(two: list[dict[str, Any]]) -> None:
    resumed, whole, same_rows = two[0]["resumed"]
    assert resumed == whole
    assert same_rows


def test_a_rank_without_images_makes_the_passes_of_others(
    two: list[dict[str, Any]],
) -> None:
    for rank in two:
        assert rank["held"]["loss"] == pytest.approx(
            rank["held"]["loss of all"], abs=1e-6
        )


@pytest.mark.parametrize("what", ["parameters", "gradients", "optimizer"])
def test_each_of_two_ranks_holds_half(two: list[dict[str, Any]], what: str) -> None:
    shares = [rank["held"][what] for rank in two]
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert max(shares) < 0.52
    assert two[0]["held"]["block"] < 0.2  # what is whole for a while
    assert two[0]["held"]["given"] == 1


def test_optimisers_of_whole_parameters_are_known(two: list[dict[str, Any]]) -> None:
    found = two[0]["optimizers"]
    assert {name for name, wrong in found.items() if not wrong} == {
        "adamw",
        "lookahead_sgd",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_which_optimisers_take_shards(ranks: Ranks) -> None:
    found = ranks(OPTIMIZERS, 2)[0]
    assert {name for name, wrong in found.items() if not wrong} == SHARDED_OPTIMIZERS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pass_of_every_model_family(ranks: Ranks) -> None:
    found = ranks(FAMILIES, 2)[0]
    assert len(found) > 60
    assert not any(found.values()), {k: v for k, v in found.items() if v}
