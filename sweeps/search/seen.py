"""What a search has tried so far, with what each choice needs kept at hand."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np

from analysis import pareto
from analysis.contract import Objective
from sweeps.search.costs import Known


class Seen:
    """Configurations that were tried, by number; what each choice needs is kept at hand.

    Attributes:
        timed: those with seconds.
        useful: those with values, too.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        # what is not dominated without bounds contains what is not with them
        self._goals = [Objective(o.metric, o.mode) for o in objectives]
        self._front: list[Known] = []
        self._new: list[Known] = []  # whose place on the front was not looked at
        self._numbers: set[int] = set()
        self.timed: list[Known] = []
        self.useful: list[Known] = []

    def add(self, known: Known) -> None:
        """Take one that was not taken before, or again as it is now."""
        if known.number in self._numbers:
            for found in (self.timed, self.useful):
                found[:] = [each for each in found if each.number != known.number]
            self._front, self._new = [], list(self.useful)
        self._numbers.add(known.number)
        if not known.seconds:
            return
        insort(self.timed, known, key=_number_of)
        if known.values is not None:
            insort(self.useful, known, key=_number_of)
            self._new.append(known)

    def front(self, objectives: Sequence[Objective]) -> list[Known]:
        """Those on the front, by number."""
        both = sorted([*self._front, *self._new], key=_number_of)
        self._front, self._new = _front_of(both, self._goals), []
        return _front_of(self._front, objectives)


def _number_of(known: Known) -> int:
    return known.number


def _front_of(known: Sequence[Known], objectives: Sequence[Objective]) -> list[Known]:
    if not known:
        return []
    mask = pareto.front_mask(np.array([each.values for each in known]), objectives)
    return [each for each, is_on in zip(known, mask, strict=True) if is_on]
