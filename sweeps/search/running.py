"""The trials that have a plan and have not ended."""

from __future__ import annotations

from sweeps.search.asked import Asked
from sweeps.search.race import Runners
from sweeps.search.study import Draw


class Running:
    """What runs now, and what waits to be handed out.

    The baseline and trials that refine belong to no configuration of the study; neither do a
    race's further seeds, which have a number and a replicate all the same.
    """

    def __init__(self) -> None:
        self._configurations: dict[str, Asked | None] = {}
        self._seeds: dict[str, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        """Whether anything was handed out that has not ended."""
        return bool(self._configurations)

    def plan(self, trial_id: str, number: int, replicate: int) -> None:
        """Note the configuration and the seed of a trial that is to be handed out."""
        self._seeds[trial_id] = number, replicate

    def begin(self, trial_id: str, configuration: Asked | None) -> None:
        """A trial is handed out."""
        self._configurations[trial_id] = configuration

    def of(self, trial_id: str) -> Asked | None:
        """The configuration of a trial that runs.

        Raises:
            KeyError: it does not run.
        """
        return self._configurations[trial_id]

    def end(self, trial_id: str) -> Asked | None:
        """A trial has ended; the configuration that it belongs to."""
        self._seeds.pop(trial_id, None)
        return self._configurations.pop(trial_id)

    def seeds(self) -> list[tuple[int, int]]:
        """Number and replicate of each trial that has not ended."""
        return [*self._seeds.values()]

    def draws(self) -> list[Draw]:
        """Draws of the configurations that run."""
        asked = self._configurations.values()
        return [*{c.number: c.draw for c in asked if c is not None}.values()]

    def expected(self, usual: float, race: Runners | None) -> float:
        """What the trials that run are expected to take together.

        Args:
            usual: of a configuration of which nothing was expected.
        """
        total = 0.0
        for name, configuration in self._configurations.items():
            if configuration is not None:
                total += configuration.expected_of_trial(usual)
            elif race is not None and name in self._seeds:
                total += race.expected(self._seeds[name][0])
        return total
