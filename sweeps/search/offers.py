"""What a sampler would draw next, without telling its study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from analysis import pareto
from analysis.contract import Objective
from sweeps.search.optuna_internals import sampler_notes
from sweeps.search.study import Draw
from sweeps.space.space import Space

_MOST_LEFT_OVER = 2000
_WINDOW = 150
_STEP = 50
"""Complete trials that a sampler looks at: `_WINDOW` and up to `_STEP` more."""


class Offers:
    """A copy of the study's complete trials in memory, in which samplers draw without a trace.

    Of a long study it holds the latest trials and the best of those before: a draw of TPE takes a
    time that grows faster than the number of trials it looks at.

    Attributes:
        copy: of the study, as of the last draw.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study, self._space = study, space
        self.copy = optuna.create_study(directions=study.directions)
        self._copied: list[int] = []  # numbers, in their order
        self._first = -1
        self._drawn = 0

    def _bring_up_to_date(self) -> None:
        """What the copy holds follows from the study alone, not from how it came to be."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        first = max(0, len(complete) // _STEP * _STEP - _WINDOW)
        numbers = [trial.number for trial in complete]
        # one that ended after others with a higher number stands before them
        goes_on = numbers[: len(self._copied)] == self._copied
        is_short = self._drawn <= _MOST_LEFT_OVER
        if first != self._first or not goes_on or not is_short:
            self._first, self._copied, self._drawn = first, numbers[:first], 0
            self.copy = optuna.create_study(directions=self._study.directions)
            self.copy.add_trials(_best_of(self._study, complete[:first]))
        self.copy.add_trials(complete[len(self._copied) :])
        self._copied = numbers

    def drawn(self, samplers: Sequence[BaseSampler]) -> list[tuple[Draw, Draw]]:
        """One draw of each sampler, and what it noted about it."""
        self._bring_up_to_date()
        self._drawn += len(samplers)
        found = []
        for sampler in samplers:
            self.copy.sampler = sampler
            trial = self.copy.ask()
            draw = self._space.suggest(trial)
            ended = self.copy.tell(trial, state=TrialState.FAIL)
            found.append((draw, sampler_notes(ended)))
        return found


def _best_of(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The front of these trials, bounds left out of account."""
    if not trials:
        return []
    goals = [
        Objective(str(i), "min" if direction == StudyDirection.MINIMIZE else "max")
        for i, direction in enumerate(study.directions)
    ]
    front = pareto.front_mask(np.array([t.values for t in trials]), goals)
    return [trial for trial, is_on in zip(trials, front, strict=True) if is_on]
