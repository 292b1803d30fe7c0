"""Which configuration gives most for its seconds: what a sampler offers, and its suffixes on
prefixes that the stage cache holds.

Candidates are what the sampler would draw, and cheaper ones: the parameters of the first stages
taken from a configuration that was trained already, those of the stages after it from a draw. They
are compared by expected improvement over expected seconds to the power of a falling exponent, after
EEIPU (Zhang et al., 2024, arXiv 2411.03731): in the beginning what is cheap comes first, in the end
what is good. Improvement is that of random Chebyshev scalarisations of the objectives (ParEGO,
Knowles 2006), the mean over some; so it costs the same for any number of objectives.

Every second configuration is chosen among draws at random, too, and suffixes get no more of the
time than fresh configurations: however wrong costs and improvements are, the sampler's own search
goes on at a quarter of its pace at worst.
"""

from __future__ import annotations

import contextlib
import math
from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from analysis import pareto
from analysis.contract import Objective
from sweeps.search.costs import CostModel, Known
from sweeps.search.known_costs import KnownCosts
from sweeps.search.optuna_internals import sampler_notes
from sweeps.search.prefixes import Key, Prefixes
from sweeps.search.samplers import sampler_of
from sweeps.search.study import Draw, checked_draw, distributions_of
from sweeps.search.surrogate import Encoder, Surrogate, expected_improvement
from sweeps.space.space import Space
from sweeps.spec.model import Spec
from trainers.seeding import derive_seed

FIRST = 4
"""Configurations with values and seconds that are needed before fresh ones are compared."""
_CHEAP = 0.25
"""Of a fresh configuration's seconds: what takes no more on a cached prefix is tried at once,
before there are so many.
"""
_SHORT = 0.5
"""Of a configuration's seconds: what takes no more and costs the same is measured first."""
OFFERED = 4
"""Draws of the sampler for one choice."""
SUFFIXES = 12
"""Draws at random beside them, of which only the suffixes are used."""
AT_RANDOM = 32
"""Draws at random beside the sampler's, for every second configuration: where the sampler sees
little, improvement alone finds more among many; where improvement misleads, the sampler goes on.
"""
_LEAST_SAVED = 0.2
"""Of a configuration's seconds, by a prefix that is worth going on from."""
_SCALARISATIONS = 8
_MOST_KNOWN = 200
_MOST_PREFIXES = 16
_MOST_LOOKED_AT = 200
"""Configurations whose prefixes are looked at."""
_AUGMENTED = 0.05
_LEAST_SECONDS = 1e-2
_OVERHEAD = 0.2
"""Of a fresh configuration's seconds, added to all: what costs next to nothing is not tried for
that alone.
"""
_MOST_LEFT_OVER = 2000
_WINDOW = 150
_STEP = 50
"""Complete trials that a sampler looks at: `_WINDOW` and up to `_STEP` more."""


@dataclass(frozen=True)
class Proposal:
    """A configuration to try next.

    Attributes:
        draw: what it is.
        notes: what the sampler noted about the draw that it, or its suffix, comes from.
        seconds: that it is expected to take.
    """

    draw: Draw
    notes: Draw
    seconds: float


class Offers:
    """A copy of the study's complete trials in memory, in which samplers draw without a trace.

    Of a long study it holds the latest trials and the best of those before: a draw of TPE takes a
    time that grows faster than the number of trials it looks at.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study, self._space = study, space
        self._copied = -1
        self._first = -1
        self._drawn = 0

    def _bring_up_to_date(self) -> None:
        """What the copy holds follows from the study alone, not from how it came to be."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        first = max(0, len(complete) // _STEP * _STEP - _WINDOW)
        if first != self._first or self._drawn > _MOST_LEFT_OVER:
            self._first, self._copied, self._drawn = first, first, 0
            self._copy = optuna.create_study(directions=self._study.directions)
            self._copy.add_trials(_best_of(self._study, complete[:first]))
        self._copy.add_trials(complete[self._copied :])
        self._copied = len(complete)

    def drawn(self, samplers: Sequence[BaseSampler]) -> list[tuple[Draw, Draw]]:
        """One draw of each sampler, and what it noted about it."""
        self._bring_up_to_date()
        self._drawn += len(samplers)
        found = []
        for sampler in samplers:
            self._copy.sampler = sampler
            trial = self._copy.ask()
            draw = self._space.suggest(trial)
            ended = self._copy.tell(trial, state=TrialState.FAIL)
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


class Proposals:
    """Chooses configurations for a search with `search.cost: cached` or `full`.

    Args:
        study: whose complete trials the sampler knows.
        known_costs: what is known of costs that follow from the structure; None: nothing is asked.

    Attributes:
        spec: the sweep's; set again when its bounds are known.
    """

    def __init__(
        self,
        spec: Spec,
        space: Space,
        study: optuna.Study,
        known_costs: KnownCosts | None = None,
    ) -> None:
        self.prefixes, self._known_costs = Prefixes(space), known_costs
        self.spec, self._space = spec, space
        self._is_asked = spec.search.cost != "none" and bool(space.dimensions)
        self._offers = Offers(study, space)
        self._encoder = Encoder(distributions_of(space))
        self._known = Seen(spec.objectives)
        self._finished: set[Key] = set()  # prefixes whose stages are cached
        # seconds of what was searched, of fresh configurations and of those that went on
        self._spent = {False: 0.0, True: 0.0}

    def learn(self, known: Known | None) -> None:
        """Take a configuration that ended; what lies outside the space tells nothing."""
        if known is not None:
            with contextlib.suppress(ValueError):
                checked_draw(self._space, known.draw)
                self._known.add(known)
                if known.seconds and known.number >= 0:
                    self._count(known)

    def _count(self, known: Known) -> None:
        """Note what is cached now, and where the time went."""
        keys = self.prefixes.keys(known.draw)
        *stages, rest = self.prefixes.by_entry(known.seconds)
        paid = [
            seconds
            for key, seconds in zip(keys, stages, strict=True)
            if key and key not in self._finished
        ]
        went_on = any(key in self._finished for key in keys[:-1] if key)
        took = sum(paid) + rest
        if went_on and self.spec.search.images is not None:
            # what does not train would cost nothing, and go on for ever
            took = max(took, _OVERHEAD * sum(known.seconds.values()))
        self._spent[went_on] += took
        self._finished.update(keys)

    def seconds_of_one(self) -> float | None:
        """Median seconds of a configuration with an empty cache; None where nothing is known."""
        known = [sum(each.seconds.values()) for each in self._known.timed]
        return float(np.median(known)) if known else None

    def usual_seconds(self) -> float:
        """Median seconds of a configuration where what all share is cached, if it is; 0 where
        nothing is known.
        """
        if not self._known.timed:
            return 0.0
        reused = self._reused()
        found = []
        for each in self._known.timed[-_MOST_KNOWN:]:
            *stages, rest = self.prefixes.by_entry(each.seconds)
            keys = self.prefixes.keys(each.draw)
            own = [
                seconds
                for key, seconds in zip(keys, stages, strict=True)
                if key or key not in reused
            ]
            found.append(sum(own) + rest)
        return float(np.median(found))

    def end_in_time(self, draws: Sequence[Draw], most_seconds: float) -> list[bool]:
        """Whether each is expected to take no more."""
        if math.isinf(most_seconds):
            return [True] * len(draws)
        return [seconds <= most_seconds for seconds in self.expected(draws)]

    def expected(self, draws: Sequence[Draw]) -> list[float]:
        """Seconds that each is expected to take; 0 where nothing is known yet."""
        usual = self.usual_seconds()
        if len(self._known.timed) < FIRST:
            return [usual] * len(draws)
        found = [usual] * len(draws)
        whole = [place for place, draw in enumerate(draws) if self._is_whole(draw)]
        if whole:
            known = self._known.timed[-_MOST_KNOWN:]
            costs = CostModel(self.prefixes, self._encoder, known)
            seconds = costs.expected([draws[p] for p in whole], self._reused())
            for place, each in zip(whole, seconds, strict=True):
                found[place] = float(each)
        return found

    def _is_whole(self, draw: Draw) -> bool:
        try:
            checked_draw(self._space, draw)
        except ValueError:
            return False
        return True

    def _reused(self) -> set[Key]:
        """Prefixes whose stages are taken to cost nothing."""
        return self._finished if self.spec.search.cost != "full" else set()

    def choose(
        self,
        number: int,
        left: float,
        tried: Collection[str],
        running: Sequence[Draw] = (),
        most_seconds: float = math.inf,
    ) -> Proposal | None:
        """What to try as configuration `number`.

        Args:
            left: share of the budget that is left, the exponent of the seconds.
            tried: `Space.identity` of all that were asked for.
            running: configurations that were begun and have not ended. What they are the first to
                compute is waited for only where everything else is no choice.
            most_seconds: that it may take; where nothing that is offered takes so little, what is
                returned takes more.

        Returns:
            None where too little is known yet, or nothing new is offered.
        """
        useful, search = self._known.useful, self.spec.search
        is_cached, is_early = search.cost == "cached", len(useful) < FIRST
        if not self._is_asked or not useful or (is_early and not is_cached):
            return None
        finished = self._reused()
        goes_on = is_cached and self._spent[True] <= self._spent[False]
        # of images a suffix may take none: it would fit for ever
        at_end = is_cached and math.isfinite(most_seconds) and search.images is None
        at_end &= not is_early
        going_on = finished if goes_on or at_end else set()
        costs = CostModel(
            self.prefixes, self._encoder, self._known.timed[-_MOST_KNOWN:]
        )
        fresh = self._fresh(number, costs, most_seconds)
        candidates = [*fresh, *self._going_on(number, fresh, going_on, costs)]
        draws = [draw for draw, _ in candidates]
        seconds = np.maximum(costs.expected(draws, finished), _LEAST_SECONDS)
        is_fresh = np.arange(len(draws)) < len(fresh)
        usual = np.median(seconds[is_fresh])
        if is_early:
            offered = ~is_fresh & (seconds <= min(_CHEAP * usual, most_seconds))
        elif not goes_on and (seconds[is_fresh] <= most_seconds).any():
            offered = is_fresh
        else:
            offered = np.full(len(draws), True)
        floor = _OVERHEAD * usual
        gains = self._gains(number, useful[-_MOST_KNOWN:], draws)
        with np.errstate(divide="ignore"):
            scores = np.log(gains) - left * np.log(seconds + floor)
        waits, known = self._waits(draws, running), self._known_costs
        for index in np.lexsort((-scores, waits, seconds > most_seconds)):
            draw, notes = candidates[index]
            is_new = self._space.identity(draw) not in tried
            is_offered = offered[index] and is_new and scores[index] > -math.inf
            if is_offered and (known is None or known.may_meet([draw], running)[0]):
                found = Proposal(draw, notes, float(seconds[index]))
                return self.measured_first(draw, tried) or found
        return None

    def measured_first(self, draw: Draw, tried: Collection[str]) -> Proposal | None:
        """What tells whether a draw costs too much before that is trained; None where it is known,
        or takes nearly as long as the training.
        """
        known = self._known_costs
        other = None if known is None else known.untrained(draw)
        if other is None or self._space.identity(other) in tried:
            return None
        seconds, of_draw = self.expected([other, draw])
        if seconds > _SHORT * of_draw > 0:
            return None
        return Proposal(other, Draw(), seconds)

    def elsewhere(self, draws: Sequence[Draw], running: Sequence[Draw]) -> int:
        """Index of the first draw that waits for no stage that a trial computes now; else 0."""
        waits = self._waits(draws, running)
        return waits.index(False) if False in waits else 0

    def _waits(self, draws: Sequence[Draw], running: Sequence[Draw]) -> list[bool]:
        """Whether each draw waits for a stage that a trial computes now; a prefix without
        parameters is everybody's.
        """
        keys = {key for draw in running for key in self.prefixes.keys(draw) if key}
        blocked = keys - self._finished
        return [not blocked.isdisjoint(self.prefixes.keys(draw)) for draw in draws]

    def _fresh(
        self, number: int, costs: CostModel, most_seconds: float
    ) -> list[tuple[Draw, Draw]]:
        """Draws of the sampler with its notes, then draws at random for every second number, or
        where the sampler offers nothing that takes so little.
        """
        search, seed = self.spec.search, self.spec.seed
        samplers = [sampler_of(search, seed, number, i) for i in range(OFFERED)]
        rng = np.random.default_rng(derive_seed(seed, "fresh", number))
        drawn = self._offers.drawn(samplers)
        draws = [draw for draw, _ in drawn]
        is_short = (costs.expected(draws, self._reused()) > most_seconds).all()
        count = AT_RANDOM if number % 2 or is_short else 0
        return [*drawn, *((self._at_random(rng), Draw()) for _ in range(count))]

    def _going_on(
        self,
        number: int,
        fresh: Sequence[tuple[Draw, Draw]],
        finished: Collection[Key],
        costs: CostModel,
    ) -> list[tuple[Draw, Draw]]:
        """Suffixes on cached prefixes: those of the sampler's draws, and some at random."""
        if not finished:
            return []
        rng = np.random.default_rng(derive_seed(self.spec.seed, "suffixes", number))
        at_random = [(self._at_random(rng), Draw()) for _ in range(SUFFIXES)]
        return [
            (self.prefixes.crossed(holder, suffix, place), notes)
            for place, holder in self._worth_going_on(finished, costs)
            for suffix, notes in [*fresh[:OFFERED], *at_random]
        ]

    def _worth_going_on(
        self, finished: Collection[Key], costs: CostModel
    ) -> list[tuple[int, Draw]]:
        """Places in the pipeline and draws that are cached up to there: those of the front's
        configurations, then the latest ones; only where it saves a good part of the seconds.
        """
        first = self._known.front(self.spec.objectives)
        latest = self._known.useful[-_MOST_LOOKED_AT:]
        ordered = [*first, *reversed(latest)][:_MOST_LOOKED_AT]
        each_seconds = costs.by_entry([each.draw for each in ordered])
        places: dict[Key, tuple[int, Draw]] = {}
        for each, seconds in zip(ordered, each_seconds, strict=True):
            keys = self.prefixes.keys(each.draw)
            # what all configurations share is cached for fresh ones too
            own = np.where([bool(key) for key in keys], seconds[:-1], 0.0)
            enough = _LEAST_SAVED * (own.sum() + seconds[-1])
            for place, key in enumerate(keys[:-1]):
                if key and key in finished and own[: place + 1].sum() >= enough:
                    places.setdefault(key, (place, each.draw))
            if len(places) >= _MOST_PREFIXES:
                break
        return list(places.values())

    def _at_random(self, rng: np.random.Generator) -> Draw:
        draw: Draw = {}
        for dimension in self._space.dimensions:
            if dimension.active(draw):
                draw |= dimension.at(lambda name: float(rng.random()))
        return draw

    def _gains(
        self, number: int, useful: Sequence[Known], draws: Sequence[Draw]
    ) -> np.ndarray:
        """(m,) expected improvement of each draw, without a unit."""
        objectives = self.spec.objectives
        values = np.array([each.values for each in useful])
        feasible = pareto.eligible(values, objectives)
        costs = pareto.to_costs(values, objectives)
        spans = [pareto.spans_decades(np.abs(column)) for column in costs.T]
        for column, wide in enumerate(spans):
            if wide:
                sign = np.sign(costs[0, column])
                costs[:, column] = sign * np.log(np.abs(costs[:, column]))
        low, span = costs.min(axis=0), np.ptp(costs, axis=0)
        unit = (costs - low) / np.where(span > 0, span, 1.0)
        rng = np.random.default_rng(derive_seed(self.spec.seed, "weights", number))
        weights = rng.dirichlet(np.ones(len(objectives)), _SCALARISATIONS)
        scaled = unit[:, None, :] * weights  # (n, scalarisations, objectives)
        scalars = scaled.max(axis=2) + _AUGMENTED * scaled.sum(axis=2)
        scalars += (~feasible)[:, None]
        x = self._encoder.encoded([each.draw for each in useful])
        surrogate = Surrogate(self._encoder, x, scalars)
        mean, sd = surrogate.predicted(self._encoder.encoded(draws))
        gains = expected_improvement(mean, sd, scalars.min(axis=0))
        return np.asarray(np.maximum(gains, 0.0).mean(axis=1))
