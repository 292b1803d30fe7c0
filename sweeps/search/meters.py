"""What a budget counts: time, time of GPUs, or images that are trained on.

A search that counts images chooses by them, too: what a stage costs are the images of its epochs,
and what does not train is free.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from analysis.numbers import duration
from sweeps.run.record import TrialRecord
from sweeps.search.costs import CostOf, held_seconds, images_of, seconds_of
from sweeps.spec.model import Spec


@dataclass
class Meter:
    """How much of a budget has been used.

    Attributes:
        limit: the budget, in its unit: seconds, seconds of GPUs, or images.
        rate: of the budget that a configuration uses for each second or image that it costs.
        rate_alone: the same of a single trial.
        cost_of: what a trial's stages cost where nothing is cached.
        taken_by: seconds or images that a trial took indeed.
        said: an amount in words.
    """

    limit: float
    rate: float
    cost_of: CostOf
    taken_by: Callable[[TrialRecord], float]
    said: Callable[[float], str]

    def __post_init__(self) -> None:
        self.rate_alone = self.rate
        self._by_trial: dict[str, float] = {}
        self._ended = 0.0  # the sum, asked for before every trial of thousands

    def begin(self) -> None:
        """The first trial of this driver is about to start."""

    def end(self) -> None:
        """The search is over; what follows is not counted."""

    def run_at_once(self, trials: int, replicates: int) -> None:
        """Take how many trials run at a time, of configurations with so many."""

    def note(self, record: TrialRecord) -> None:
        """Take a trial that ended; one that ran again is counted once, with all its attempts where
        time is counted.
        """
        used = self.rate * self.taken_by(record)
        self._ended += used - self._by_trial.get(record.trial_id, 0.0)
        self._by_trial[record.trial_id] = used

    def spent(self, running: float) -> float:
        """What has been used, and will be by the trials that run now.

        Args:
            running: seconds or images that those are expected to cost.
        """
        return self._ended + running * self.rate


class Clock(Meter):
    """Time passes by itself, whatever runs."""

    def __post_init__(self) -> None:
        self.rate_alone = 1.0
        self._records: list[TrialRecord] = []
        self._begun: float | None = None
        self._until: float | None = None
        self._earlier = 0.0

    def begin(self) -> None:
        if self._begun is None:
            self._begun = time.monotonic()
            self._earlier = seconds_of_trials(self._records)
            self._records.clear()

    def note(self, record: TrialRecord) -> None:
        if self._begun is None:
            self._records.append(record)

    def end(self) -> None:
        if self._until is None:
            self._until = time.monotonic()

    def run_at_once(self, trials: int, replicates: int) -> None:
        self.rate = math.ceil(replicates / max(1, trials)) / replicates

    def spent(self, running: float) -> float:
        if self._begun is None:
            return seconds_of_trials(self._records)
        until = time.monotonic() if self._until is None else self._until
        return self._earlier + max(0.0, until - self._begun)


def meter_of(spec: Spec) -> Meter:
    """What a spec's budget counts; without one, time without a limit."""
    search, wanted = spec.search, spec.resources
    if search.images is not None:
        return Meter(search.images, 1.0, images_of, _trained_on, _images)
    if search.gpu_hours is not None:
        gpus = wanted.workers * wanted.gpus_per_worker
        limit = 3600 * search.gpu_hours
        return Meter(limit, gpus, seconds_of, _seconds_held, _gpu_time)
    limit = math.inf if search.hours is None else 3600 * search.hours
    clock = Clock(limit, 1.0, seconds_of, held_seconds, duration)
    clock.run_at_once(wanted.concurrent or 1, search.replicates)
    return clock


def _seconds_held(record: TrialRecord) -> float:
    return seconds_of_trials([record])


def _gpu_time(seconds: float) -> str:
    return f"{duration(seconds)} of GPUs"


def _trained_on(record: TrialRecord) -> float:
    return sum(images_of(record, cached=False).values())


def _images(count: float) -> str:
    return f"{count:,.0f} images"


def seconds_of_trials(records: Iterable[TrialRecord]) -> float:
    """Length of the union of the times in which trials ran, all attempts, in seconds."""
    spans = sorted(
        (datetime.fromisoformat(started), datetime.fromisoformat(ended))
        for record in records
        for started, ended in record.spans()
    )
    total, until = 0.0, None
    for start, end in spans:
        first = start if until is None else max(start, until)
        total += max(0.0, (end - first).total_seconds())
        until = end if until is None else max(until, end)
    return total
