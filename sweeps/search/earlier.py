"""What earlier drivers of a run left: the records of its trials, by configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from analysis.contract import ENDED
from sweeps.run.record import TrialRecord
from sweeps.search.study import Draw


@dataclass
class Earlier:
    """The trials of a run, as its records and its study have them.

    Attributes:
        draws: number of each configuration that was asked for → its draw.
        begun: numbers of those that have a trial.
        next_number: the first that no configuration has.
    """

    draws: dict[int, Draw]
    begun: set[int] = field(default_factory=set)
    next_number: int = 0

    def __post_init__(self) -> None:
        self._ended: defaultdict[int, int] = defaultdict(int)
        self._records: defaultdict[int, list[TrialRecord]] = defaultdict(list)

    def of(self, number: int) -> list[TrialRecord]:
        """The records of a configuration's replicates, or of a refined one's."""
        return self._records[number]

    def missing(self, number: int, replicates: int) -> int:
        """Replicates of a configuration that have not ended."""
        return max(0, replicates - self._ended[number])

    def take(self, record: TrialRecord, replicates: int) -> None:
        """Take a trial's record."""
        plan = record.plan
        self.next_number = max(self.next_number, plan.number + 1)
        if plan.refines is None and plan.replicate >= replicates:
            return  # of a race
        self._records[plan.number].append(record)
        if plan.refines is None:
            self.draws[plan.number] = dict(plan.draw)
            self.begun.add(plan.number)
            self._ended[plan.number] += record.status in ENDED


def unended_numbers(records: Iterable[TrialRecord], replicates: int) -> set[int]:
    """Numbers of the configurations of which a replicate has a plan and has not ended."""
    return {
        record.plan.number
        for record in records
        if record.plan.refines is None
        and record.plan.replicate < replicates
        and record.status not in ENDED
    }


def read_earlier(
    records: Iterable[TrialRecord], abandoned: Mapping[int, Draw], replicates: int
) -> Earlier:
    """What was done and what was asked for.

    Args:
        records: of all trials.
        abandoned: number → draw of what the study was asked for and nobody told it about.
        replicates: trials that make a configuration.
    """
    found = Earlier(dict(abandoned), next_number=1 + max(abandoned, default=-1))
    for record in records:
        found.take(record, replicates)
    return found
