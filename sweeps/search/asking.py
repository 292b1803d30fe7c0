"""How a configuration becomes a trial of the Optuna study: named, proposed, or drawn."""

from __future__ import annotations

import optuna

from sweeps.search.asked import Asked
from sweeps.search.optuna_internals import enqueue_again
from sweeps.search.study import DRAWS, Draw, draw, notes_by_number, seed_sampler
from sweeps.space.sweep import Sweep
from sweeps.spec.model import Spec
from trainers.seeding import derive_seed

_ENUMERABLE = 100_000


class Asking:
    """Asks the study for one configuration after the other, none of them twice.

    Args:
        study: already opened; what samplers noted in it about trials of earlier drivers is read
            now.

    Attributes:
        spec: of the sweep, with the bounds that are known by now.
        tried: the identity (`Space.identity`) of everything that was asked for.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study) -> None:
        self.spec: Spec = sweep.spec
        self.tried: set[str] = set()
        self._space, self._study = sweep.space, study
        self._notes = notes_by_number(study)
        size = sweep.space.size()
        self._is_listed = self.is_exhaustive or (
            size is not None and size <= _ENUMERABLE
        )
        # stopping compares by the one objective: Optuna's curves and pruned values mean something
        rule = self.spec.search.early_stopping
        goals = [(o.metric, o.mode) for o in self.spec.objectives]
        self._reports_curves = rule is not None and goals == [
            (rule.metric, rule.direction)
        ]

    @property
    def is_exhaustive(self) -> bool:
        """Whether every configuration of the space is asked for."""
        return self.spec.search.sampler == "grid" or not self._space.dimensions

    def is_tried(self, known: Draw) -> bool:
        """Whether this configuration was asked for."""
        return self._space.identity(known) in self.tried

    def note(self, known: Draw) -> None:
        """This configuration was asked for."""
        self.tried.add(self._space.identity(known))

    def untried(self) -> list[Draw] | None:
        """What was not asked for yet; None where it is too much to list."""
        if not self._is_listed:
            return None
        return [found for found in self._space.grid() or [] if not self.is_tried(found)]

    def again(self, number: int, known: Draw) -> Asked:
        """The configuration that got this number already, or that was given its number by name.

        What a sampler drew counts as drawn by it.
        """
        return self.this_one(number, known, self._notes.get(number))

    def this_one(self, number: int, known: Draw, notes: Draw | None = None) -> Asked:
        """This configuration; the sampler draws what it lacks.

        Args:
            notes: what a sampler noted about it, where one drew it.
        """
        if notes:
            enqueue_again(self._study, known, notes, {"number": number})
        else:
            self._study.enqueue_trial(known, user_attrs={"number": number})
        seed_sampler(self._study, self.spec, number)
        trial = self._study.ask()
        return self._asked(trial, number, self._space.suggest(trial))

    def drawn(self, number: int) -> Asked:
        """What the sampler draws; where it only repeats itself, any other configuration."""

        def suggest(trial: optuna.Trial) -> Draw:
            trial.set_user_attr("number", number)
            return self._space.suggest(trial)

        def reseed(attempt: int) -> None:
            seed_sampler(self._study, self.spec, number, attempt)

        attempts = DRAWS if self._is_listed else 2 * DRAWS  # the second half at random
        identity = self._space.identity
        trial, found = draw(
            self._study, suggest, identity, self.tried, reseed, attempts
        )
        if trial is not None:
            return self._asked(trial, number, found)
        left = self.untried() or [found]
        index = derive_seed(self.spec.seed, "untried", number) % len(left)
        return self.this_one(number, left[index])

    def _asked(self, trial: optuna.Trial, number: int, draw: Draw) -> Asked:
        replicates, objectives = self.spec.search.replicates, self.spec.objectives
        return Asked(trial, number, draw, objectives, replicates, self._reports_curves)
