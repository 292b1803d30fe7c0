"""Times of forward passes that can be compared: taken in turns with those of a reference.

Legend
    t_ij     time of the j-th pass of the model in block i, ms
    r_i      time of the reference's pass in block i, ms
    q_i      median_j(t_ij) / r_i: the ratio of block i, from which slow drift has cancelled

A machine's speed drifts by several percent within seconds: clock frequencies, neighbours,
caches. So every block is one pass of the reference and then some of the model, each timed when it
has settled (see `settled`). The interval of the ratio's median is that of the sign test: with n
blocks the median of q lies between the (k+1)-th smallest and the (k+1)-th largest with probability
1 − 2·P[Binomial(n, 1/2) ≤ k], whatever the distribution of q. k is the largest that leaves at
least 95 %.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from compress.measure.options import MeasureConfig
from trainers import measuring

Pass = Callable[[], float]
"""Runs one forward pass of one batch and returns its milliseconds."""

MIN_BLOCKS = 6
"""Fewer blocks have no interval of 95 %."""
ENOUGH_BLOCKS = 30
"""More blocks are not worth the time in which models settle."""
SETTLE_MS = 15.0
"""So long a model runs before a pass is timed, in each turn; one pass at least."""
MOST_SETTLING = 20
"""More passes are not run before that, however short they are."""
WARMUP_SECONDS = 0.05
"""Passes before the clock take at least this long: a processor speeds up, caches fill."""
CONFIDENCE = 0.95
SLOW_PASSES_SECONDS = 30.0
"""What the least number of passes may take beyond the time that is given."""


@dataclass(frozen=True)
class Timing:
    """How long a pass takes.

    Attributes:
        median_ms, p25_ms, p75_ms, p95_ms: of the timed passes, milliseconds a batch.
        passes: how many were timed.
        ratio: median of the blocks' ratios to the reference; None without a reference, as are
            the following.
        ratio_low, ratio_high: ends of its interval of 95 %.
        reference_ms: median time of the reference.
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    p95_ms: float
    passes: int
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    reference_ms: float | None = None


def timing_of(
    model: Pass,
    reference: Pass | None,
    *,
    warmup: int,
    repeats: int,
    max_seconds: float,
    min_repeats: int = MIN_BLOCKS,
) -> Timing:
    """Time passes of a model, in turns with those of a reference.

    The timed passes of the reference take no longer than the model's, but for `MIN_BLOCKS` of them.
    One of which even these, with what runs before each, take more than half of `max_seconds` is
    left out.

    Args:
        warmup: passes of the model before the clock, and more within `WARMUP_SECONDS`; fewer
            where they take half of `max_seconds`, at least one.
        repeats: timed passes of the model; fewer where `max_seconds` is over, at least
            `min_repeats`.
        max_seconds: for all passes.
    """
    begun = time.perf_counter()
    model_ms = _warmed(model, warmup, max_seconds / 2)
    counts = [1] * repeats
    if reference is not None:
        reference_ms = settled(reference)
        counts = block_sizes(repeats, model_ms, reference_ms)
        turn_ms = settling_ms(reference_ms) + reference_ms
        if MIN_BLOCKS * turn_ms > 500 * max_seconds:
            reference = None
    times: list[list[float]] = []
    references: list[float] = []
    least = math.ceil(min_repeats / max(counts))
    for count in counts:
        if len(times) >= least and time.perf_counter() - begun > max_seconds:
            break
        first = model
        if reference is not None:
            references.append(settled(reference))
            first = partial(settled, model)
        times.append([first(), *(model() for _ in range(count - 1))])
    return summary(times, references)


def settled(run: Pass) -> float:
    """Milliseconds of a pass of a model that has run for `SETTLE_MS` just before.

    What runs first after another model finds that one's data in the caches, and its own branches
    forgotten by the processor. In OpenVINO, of a ViT of 0.2 ms the first pass takes three times as
    long as the tenth, the second 5 to 15 % longer, the fifth 1 %; of a MobileNetV3 cut to 0.9 ms,
    after its source of 3 ms, the first takes 1.9 times as long as the fifteenth, the third 1.35
    times, the fifth 1.2, the tenth 1.04, while the source has settled with its fourth.
    """
    passed_ms = 0.0
    for _ in range(MOST_SETTLING):
        passed_ms += run()
        if passed_ms >= SETTLE_MS:
            break
    return run()


def settling_ms(pass_ms: float) -> float:
    """What the passes take, about, that a model of so many milliseconds a pass runs to settle."""
    return max(pass_ms, min(SETTLE_MS, MOST_SETTLING * pass_ms))


def block_sizes(repeats: int, model_ms: float, reference_ms: float) -> list[int]:
    """How many passes of the model each block has: as equal as they can be, `repeats` in all.

    Of blocks there are as many as the reference has time for, and at least `MIN_BLOCKS`; beyond
    `ENOUGH_BLOCKS` as many as the model has time to settle for.
    """
    timed_ms = repeats * model_ms
    affordable = int(timed_ms / max(reference_ms, 1e-9))
    to_settle = int(timed_ms / max(settling_ms(model_ms), 1e-9))
    affordable = min(affordable, max(ENOUGH_BLOCKS, to_settle))
    blocks = min(repeats, max(MIN_BLOCKS, affordable))
    return [repeats * (i + 1) // blocks - repeats * i // blocks for i in range(blocks)]


def times_in_turns(
    passes: Sequence[Pass], *, warmup: int, rounds: int, max_seconds: float
) -> list[list[float]]:
    """Milliseconds of each of `passes` (n), taken in turns: n lists of as many rounds each.

    Args:
        warmup: rounds before the clock; one at least.
        rounds: fewer where `max_seconds` is over, at least `MIN_BLOCKS`.
    """
    begun = time.perf_counter()
    for _ in range(max(1, warmup)):
        for run in passes:
            run()
        if time.perf_counter() - begun > max_seconds / 4:
            break
    times: list[list[float]] = []
    while len(times) < MIN_BLOCKS or (
        len(times) < rounds and time.perf_counter() - begun < max_seconds
    ):
        times.append([settled(run) for run in passes])
    return [list(column) for column in zip(*times, strict=True)]


def summary(times: Sequence[Sequence[float]], references: Sequence[float]) -> Timing:
    """The timing of blocks: passes of the model (blocks, any), pass of the reference (blocks,)."""
    every = np.concatenate([np.asarray(block, float) for block in times])
    p25, median, p75, p95 = (float(v) for v in np.percentile(every, (25, 50, 75, 95)))
    if not references:
        return Timing(median, p25, p75, p95, len(every))
    medians = [float(np.median(block)) for block in times]
    ratios = np.array(medians) / np.array(references)
    low, high = median_interval(ratios)
    return Timing(
        median,
        p25,
        p75,
        p95,
        len(every),
        float(np.median(ratios)),
        low,
        high,
        float(np.median(references)),
    )


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of the median of which `values` (n,) are draws; their ends where n is small."""
    ordered = np.sort(values)
    n = len(ordered)
    cut, tail = 0, 0.0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2.0**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        cut = k
    return float(ordered[cut]), float(ordered[n - 1 - cut])


@contextlib.contextmanager
def measuring_turn(
    device: torch.device, options: MeasureConfig, max_seconds: float | None = None
) -> Iterator[bool]:
    """The only measurement on the node, where `options.alone` wants that; whether it is so.

    Args:
        max_seconds: of all passes; default: that of `options`.
    """
    if not options.alone:
        yield False
        return
    seconds = 2 * (max_seconds or options.max_seconds) + SLOW_PASSES_SECONDS
    with measuring.alone(device, seconds) as quiet:
        yield quiet


def latency_metrics(timing: Timing) -> dict[str, float | int]:
    """A timing as metrics of `compress.metrics`; without a reference there is no ratio."""
    found = {
        "latency_ms": timing.median_ms,
        "latency_p25_ms": timing.p25_ms,
        "latency_p75_ms": timing.p75_ms,
        "p95_latency_ms": timing.p95_ms,
        "latency_ratio": timing.ratio,
        "latency_ratio_low": timing.ratio_low,
        "latency_ratio_high": timing.ratio_high,
        "reference_latency_ms": timing.reference_ms,
        "latency_repeats": timing.passes,
    }
    return {name: value for name, value in found.items() if value is not None}


def _warmed(run: Pass, least: int, max_seconds: float) -> float:
    """Run passes before the clock; the median of their milliseconds."""
    begun = time.perf_counter()
    times: list[float] = []
    while True:
        times.append(run())
        passed = time.perf_counter() - begun
        if passed > max_seconds or (
            len(times) >= least and passed > min(WARMUP_SECONDS, max_seconds)
        ):
            return float(np.median(times))
