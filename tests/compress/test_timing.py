"""Passes in turns with a reference: the ratio survives drift, and the time is bounded."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from compress.measure.latency import (
    MIN_BLOCKS,
    block_sizes,
    latency_metrics,
    median_interval,
    summary,
    times_in_turns,
    timing_of,
)


def passes(*milliseconds: float) -> Callable[[], float]:
    """A pass that says it took these times, over and over."""
    return itertools.cycle(milliseconds).__next__


def test_ratio_and_quartiles_of_steady_passes() -> None:
    found = timing_of(
        passes(2.0), passes(4.0), warmup=1, repeats=30, max_seconds=5, min_repeats=3
    )
    assert (found.median_ms, found.p25_ms, found.p75_ms) == (2.0, 2.0, 2.0)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (0.5, 0.5, 0.5)
    assert found.reference_ms == 4.0
    assert found.passes == 30


def test_drift_cancels_from_the_ratio() -> None:
    speed = 1 + 0.5 * np.linspace(0, 1, 40) ** 2
    found = summary([[2.0 * s] * 3 for s in speed], [4.0 * s for s in speed])
    assert found.ratio == pytest.approx(0.5)
    assert found.ratio_high == pytest.approx(0.5)
    assert found.p75_ms > 1.1 * found.p25_ms


def test_without_a_reference_there_is_no_ratio() -> None:
    found = timing_of(passes(3.0), None, warmup=1, repeats=10, max_seconds=5)
    assert found.ratio is None
    assert set(latency_metrics(found)) == {
        "latency_ms",
        "latency_p25_ms",
        "latency_p75_ms",
        "p95_latency_ms",
        "latency_repeats",
    }


def test_the_reference_takes_no_longer_than_the_model() -> None:
    assert block_sizes(30, 2.0, 20.0) == [5] * MIN_BLOCKS
    assert block_sizes(30, 2.0, 2.0) == [1] * 30
    assert len(block_sizes(30, 2.0, 5.0)) == 12
    assert sum(block_sizes(30, 2.0, 5.0)) == 30
    assert block_sizes(3, 2.0, 20.0) == [1, 1, 1]


def test_settling_takes_no_longer_than_what_is_timed_but_for_enough_blocks() -> None:
    assert len(block_sizes(3000, 1.0, 3.0)) == 200  # 15 passes of each block settle
    assert len(block_sizes(300, 1.0, 3.0)) == 30
    assert len(block_sizes(300, 20.0, 3.0)) == 300  # one pass, which every block has
    assert len(block_sizes(3000, 0.1, 0.1)) == 150  # twenty


@pytest.mark.parametrize(
    ("ms", "is_left_out"), [(900.0, True), (430.0, True), (400.0, False)]
)
def test_a_reference_that_would_take_half_of_the_time_is_left_out(
    ms: float, is_left_out: bool
) -> None:
    """Of 10 s: six passes of 430 ms, each behind one that is not timed, take 5.16 s."""
    slow = passes(ms)  # says so, and returns at once
    found = timing_of(passes(1.0), slow, warmup=1, repeats=20, max_seconds=10.0)
    assert (found.ratio is None) == is_left_out
    assert found.passes == 20


def test_timing_ends_in_time_but_not_before_the_least_passes() -> None:
    found = timing_of(
        passes(1.0), passes(0.001), warmup=0, repeats=1000, max_seconds=0.0
    )
    assert found.passes == 15  # of one block, as many as have settled before
    found = timing_of(passes(9.0), None, warmup=0, repeats=1000, max_seconds=0.0)
    assert found.passes == MIN_BLOCKS


def test_the_interval_is_that_of_the_sign_test() -> None:
    values = np.arange(1.0, 11.0)
    assert median_interval(values) == (2.0, 9.0)  # 1 - 2 * 11 / 1024 = 97.9 %
    assert median_interval(values[:6]) == (1.0, 6.0)
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(generator.exponential(size=30))
        hits += low <= np.log(2) <= high
    assert 0.94 <= hits / 2000 <= 0.98


def noted(order: list[str], name: str, ms: float) -> Callable[[], float]:
    """A pass that writes down its name and says it took so long."""

    def run() -> float:
        order.append(name)
        return ms

    return run


def test_turns_give_every_pass_as_many_rounds() -> None:
    order: list[str] = []
    times = times_in_turns(
        [noted(order, "a", 1.0), noted(order, "b", 2.0)],
        warmup=1,
        rounds=8,
        max_seconds=5,
    )
    assert times == [[1.0] * 8, [2.0] * 8]
    # each runs for fifteen milliseconds before the pass that counts
    assert order == ["a", "b"] + (["a"] * 16 + ["b"] * 9) * 8


class Cold:
    """Models on one processor: one that runs after another is slow, and settles."""

    def __init__(self) -> None:
        self.last = ""
        self.passes = 0

    def model(self, name: str, ms: float) -> Callable[[], float]:
        def run() -> float:
            self.passes = self.passes + 1 if name == self.last else 0
            self.last = name
            return ms * (1 + 2 * 0.1**self.passes)

        return run


def test_who_goes_first_and_beside_whom_is_no_matter() -> None:
    """A model in turns with many takes what it takes alone, and its equal has the ratio 1."""
    machine = Cold()
    others = [machine.model(name, 0.3) for name in "bcd"]
    times = times_in_turns(
        [machine.model("a", 0.2), *others], warmup=1, rounds=6, max_seconds=5
    )
    assert np.median(times[0]) == pytest.approx(0.2, rel=0.01)
    for repeats in (6, 30):
        found = timing_of(
            machine.model("a", 0.2),
            machine.model("b", 0.2),
            warmup=1,
            repeats=repeats,
            max_seconds=5,
        )
        assert found.ratio == pytest.approx(1.0, abs=0.01)
        assert found.reference_ms == pytest.approx(0.2, rel=0.01)
