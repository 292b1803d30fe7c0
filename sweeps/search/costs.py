"""What a configuration will take: seconds of each stage, from the records of others.

A stage's seconds are predicted from the parameters of its entry and of those before it (a wide
model makes every later stage slow), in logarithms, by a small regression on what an epoch takes,
where epochs are searched; a stage whose result the cache holds takes none. Of an alternative that
was never tried the parameters tell nothing: it takes what its epochs take elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from analysis.contract import Objective
from sweeps.run.record import TrialRecord
from sweeps.search.prefixes import REST, Key, Prefixes
from sweeps.search.study import Draw
from sweeps.search.surrogate import Encoder, Surrogate
from sweeps.search.warm_start import complete_values, mean_values

_LEAST_SECONDS = 1e-3
_MOST_KNOWN = 100


@dataclass(frozen=True)
class Known:
    """A configuration that was tried.

    Attributes:
        number: of the configuration; below 0: of an earlier run, whose stages may be gone.
        draw: what it was.
        values: its objectives, means over replicates; None where it gave none.
        seconds: stage → what it takes where nothing is cached, all replicates together;
            `REST` → what is never cached. Empty where that is not known.
    """

    number: int
    draw: Draw
    values: tuple[float, ...] | None
    seconds: Mapping[str, float]


EpochsOf = Callable[[Draw], Mapping[str, int]]
"""Draw → stage → epochs that it trains."""

CostOf = Callable[[TrialRecord], dict[str, float]]
"""Stage → what it costs where nothing is cached, in seconds or images."""


def held_seconds(record: TrialRecord) -> float:
    """Seconds that a trial's last attempt took of the clock: its work, and its standing still while
    others were measured.
    """
    worked = record.outcome.seconds or 0.0
    if record.started is None or record.ended is None:
        return worked
    began, ended = map(datetime.fromisoformat, (record.started, record.ended))
    return max(worked, (ended - began).total_seconds())


def seconds_of(record: TrialRecord) -> dict[str, float]:
    """Stage → seconds of a trial as if nothing had been cached, `REST` with what it stood still;
    empty where it did not end.
    """
    outcome = record.outcome
    if record.status != "complete" or outcome.seconds is None:
        return {}
    found = {run.name: run.seconds_full for run in outcome.stage_runs}
    stages = sum(run.seconds for run in outcome.stage_runs)
    return found | {REST: max(0.0, held_seconds(record) - stages)}


def images_of(record: TrialRecord, cached: bool = True) -> dict[str, float]:
    """Stage → images that it trains on, each as often as it was seen; empty where a trial did not
    end and all are asked for.

    Args:
        cached: count epochs that came from the stage cache, too.
    """
    if cached and record.status != "complete":
        return {}
    found = {run.name: 0.0 for run in record.outcome.stage_runs} | {REST: 0.0}
    for row in record.epochs():
        if cached or not row.get("cached"):
            seen = row["images_per_second"] * row["seconds"]
            found[row["stage"]] = found.get(row["stage"], 0.0) + seen
    return found


def known_configuration(
    number: int,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    replicates: int,
    cost_of: CostOf = seconds_of,
) -> Known | None:
    """What the trials of a configuration tell together; None of a refined one, or of a draw
    that was refused.

    Args:
        replicates: trials whose seconds are wanted, which may be other than those that there are.
        cost_of: what a stage's seconds are taken to be.
    """
    plan = records[0].plan
    if plan.refines is not None or plan.refused is not None:
        return None
    costs = [found for record in records if (found := cost_of(record))]
    seconds: dict[str, float] = {}
    for found in costs:
        for name, spent in found.items():
            share = replicates / len(costs)
            seconds[name] = seconds.get(name, 0.0) + share * spent
    values = complete_values(records, objectives)
    return Known(
        number,
        dict(plan.draw),
        tuple(mean_values(values)) if values else None,
        seconds,
    )


@dataclass(frozen=True)
class _EntryModel:
    """What an entry of the pipeline takes.

    Attributes:
        model: of the logarithm of its seconds, by the configurations in which it did something:
            those in which it did nothing say nothing of the seconds of others. None where there
            are none.
        seen: alternatives of a slot that were tried, or are nothing.
        idle: those of them that have never taken any time.
        epochs: its searched parameters that are epochs; seconds are then those of one.
    """

    model: Surrogate | None
    seen: set[str | None]
    idle: set[str | None]
    epochs: list[str]


class CostModel:
    """Expected seconds of each entry of the pipeline.

    Args:
        known: at least one has seconds; the last ones count.
        epochs_of: what each draw trains; None: that is not known.
        epoch_seconds: what an epoch is taken to take where none has been timed.
    """

    def __init__(
        self,
        prefixes: Prefixes,
        encoder: Encoder,
        known: Sequence[Known],
        epochs_of: EpochsOf | None = None,
        epoch_seconds: float | None = None,
    ) -> None:
        self._prefixes, self._encoder = prefixes, encoder
        self._epochs_of, self._epoch_seconds = epochs_of, epoch_seconds
        timed = [each for each in known if each.seconds][-_MOST_KNOWN:]
        self._timed = timed
        observed = np.array([prefixes.by_entry(each.seconds) for each in timed])
        x = encoder.encoded([each.draw for each in timed])
        self._entries = []
        for place in range(observed.shape[1]):
            deciding = [
                column
                for column, name in enumerate(encoder.distributions)
                if prefixes.place_of(name) <= place
            ]
            labels = [prefixes.chosen(each.draw, place) for each in timed]
            works = observed[:, place] > _LEAST_SECONDS
            own = [
                name
                for name in encoder.distributions
                if name.endswith(".epochs") and prefixes.place_of(name) == place
            ]
            model = None
            if works.any():
                epochs = _epochs([each.draw for each in timed], own)
                logs = np.log(observed[works, place] / epochs[works])[:, None]
                model = Surrogate(encoder, x[works], logs, deciding)
            working = {label for label, does in zip(labels, works, strict=True) if does}
            seen = set(labels) | prefixes.idle(place)
            self._entries.append(_EntryModel(model, seen, seen - working, own))

    def knows(self, draw: Mapping[str, Any]) -> bool:
        """Whether each alternative of a slot that a draw takes was tried before."""
        return all(
            self._prefixes.chosen(draw, place) in entry.seen
            for place, entry in enumerate(self._entries)
        )

    def by_entry(self, draws: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(m, entries + 1) expected seconds with an empty cache; the last column is `REST`'s."""
        x = self._encoder.encoded(draws)
        seconds = np.zeros((len(draws), len(self._entries)))
        for place, entry in enumerate(self._entries):
            labels = [self._prefixes.chosen(draw, place) for draw in draws]
            if entry.model is not None:
                expected = np.exp(entry.model.predicted(x)[0][:, 0])
                expected *= _epochs(draws, entry.epochs)
                idle = [label in entry.idle for label in labels]
                seconds[:, place] = np.where(idle, 0.0, expected)
            for row, label in enumerate(labels):
                if label not in entry.seen:
                    of_epochs = self._seconds_of_epochs(draws[row], place)
                    if of_epochs is not None:
                        seconds[row, place] = of_epochs
        return seconds

    def may_train(self, draw: Mapping[str, Any]) -> bool:
        """Whether a draw trains, as far as that is known."""
        return self._epochs_of is None or bool(self._epochs_of(dict(draw)))

    def _seconds_of_epochs(self, draw: Mapping[str, Any], place: int) -> float | None:
        """What the epochs that a draw trains in an entry take elsewhere; None where it trains none,
        or nobody knows what one takes.
        """
        if self._epochs_of is None:
            return None
        epochs = self._prefixes.by_entry(self._epochs_of(dict(draw)))[place]
        of_epoch = self._of_epoch if epochs else None
        return None if of_epoch is None else epochs * of_epoch

    @cached_property
    def _of_epoch(self) -> float | None:
        """Median seconds of an epoch."""
        assert self._epochs_of is not None
        found = [
            each.seconds[stage] / epochs
            for each in self._timed
            for stage, epochs in self._epochs_of(each.draw).items()
            if each.seconds.get(stage, 0.0) > _LEAST_SECONDS
        ]
        return float(np.median(found)) if found else self._epoch_seconds

    def expected(
        self, draws: Sequence[Mapping[str, Any]], finished: Collection[Key]
    ) -> np.ndarray:
        """(m,) expected seconds, where the stages of the prefixes `finished` are cached."""
        seconds = self.by_entry(draws)
        for row, draw in enumerate(draws):
            for place, key in enumerate(self._prefixes.keys(draw)):
                if key in finished:
                    seconds[row, place] = 0.0
        return np.asarray(seconds.sum(axis=1))


def _epochs(draws: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """(m,) epochs that each draw has by these parameters; 1 where it has none of them."""
    if not names:
        return np.ones(len(draws))
    return np.array([max([1, *(d[n] for n in names if n in d)]) for d in draws], float)
