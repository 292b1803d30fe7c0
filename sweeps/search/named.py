"""Configurations that are asked for by name: those of the spec, and those that somebody asks for
while the sweep runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import optuna

from analysis.contract import REQUESTS_FOLDER
from sweeps.run.requests import Request, read_requests, write_request
from sweeps.search.portfolio import first_draws, split_earlier
from sweeps.search.proposals import Proposal
from sweeps.search.study import asked_for, canonical
from sweeps.space.dimension import Draw
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.yaml_text import SpecError

LOOKED_AT = 500
"""Draws whose seconds are looked up at a time: a grid may have thousands."""


class NamedDraws:
    """Hands out what was asked for by name, requests of the run folder first.

    A request takes the place of a configuration that would have been drawn next: the number that it
    gets is written into its file before anything starts, so a search that goes on knows it. What is
    refused is told in the file.

    Args:
        first: draws of the spec.
        next_number: number from which on nothing has been tried yet. A request with such a number
            was answered by a driver that died before the trial had a plan.
        elsewhere: which of some draws need not wait for those that run (`Proposals.elsewhere`);
            None: the first.
    """

    def __init__(
        self,
        run: Path,
        space: Space,
        first: Sequence[Draw],
        next_number: int,
        elsewhere: Callable[[Sequence[Draw], list[Draw]], int] | None = None,
    ) -> None:
        self.run, self.space, self.first = run, space, deque(first)
        self._elsewhere = elsewhere
        for name, request in read_requests(run).items():
            if request.number is not None and request.number >= next_number:
                request.number = None
                write_request(run, name, request)

    def next(
        self,
        number: int,
        tried: Collection[str],
        running: list[Draw],
        worth_trying: Callable[[Sequence[Draw]], Sequence[bool]] | None = None,
        before: Callable[[Draw, Collection[str]], Proposal | None] | None = None,
    ) -> Draw | None:
        """The next draw, for this number; None where nothing is asked for that is worth trying.

        Args:
            worth_trying: whether each of some draws is; None: all are, as what the user requests
                is.
            before: what is to be tried before a draw, which then stays where it is, given what has
                been tried.
        """
        asked = self._requested(number, tried)
        if asked is not None:
            return asked
        draws = list(self.first)
        for begin in range(0, len(draws), LOOKED_AT):
            some = draws[begin : begin + LOOKED_AT]
            worth = [True] * len(some) if worth_trying is None else worth_trying(some)
            left = [i for i, is_worth_it in enumerate(worth) if is_worth_it]
            if left:
                found = [some[i] for i in left]
                place = self._elsewhere(found, running) if self._elsewhere else 0
                earlier = before(found[place], tried) if before else None
                if earlier is not None:
                    self._drop(earlier.draw)
                    return earlier.draw
                del self.first[begin + left[place]]
                return found[place]
        return None

    def _requested(self, number: int, tried: Collection[str]) -> Draw | None:
        folder = self.run / REQUESTS_FOLDER
        if not folder.is_dir():
            return None
        for name, request in read_requests(self.run).items():
            if not request.is_waiting:
                continue
            draw = self._checked(request, tried)
            if draw is not None:
                request.number = number
            write_request(self.run, name, request)
            if draw is not None:
                self._drop(draw)
                return draw
        return None

    def _drop(self, draw: Draw) -> None:
        """It is tried now, and not once more later."""
        mine = self.space.identity(draw)
        self.first = deque(d for d in self.first if self.space.identity(d) != mine)

    def _checked(self, request: Request, tried: Collection[str]) -> Draw | None:
        """The draw that a request stands for; None where it is refused."""
        try:
            draw = self.space.encode(request.configuration)
        except SpecError as error:
            request.refused = str(error).removeprefix("search.points: ")
            return None
        if self.space.identity(draw) in tried:
            request.refused = "this configuration was tried already"
            return None
        return draw


def named_draws(
    sweep: Sweep, known: Mapping[int, Draw], study: optuna.Study, is_exhaustive: bool
) -> tuple[list[Draw], list[str]]:
    """The spec's points, and for a grid all others, less those that have been tried; lines for the
    user.

    Args:
        known: number → draw of what was begun.
        is_exhaustive: whether every configuration is to be tried.
    """
    named, notes = list(sweep.points), []
    for path in [] if is_exhaustive else split_earlier(sweep.spec)[1]:
        found, said = first_draws(path, sweep.space, sweep.spec.objectives)
        named += [draw for draw in found if draw not in named]
        notes.append(said)
    if is_exhaustive:
        grid = sweep.space.grid() or []
        first: list[Draw] = []
        for given in named:
            match = next(p for p in grid if given.items() <= p.items())
            first += [match] if match not in first else []
        named = first + [p for p in grid if p not in first]
    tried = {canonical(d) for d in known.values()} | set(asked_for(study))
    return [d for d in named if canonical(d) not in tried], notes
