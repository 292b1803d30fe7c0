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

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from analysis import pareto
from sweeps.search.costs import CostModel, Known
from sweeps.search.known_costs import KnownCosts
from sweeps.search.offers import Offers
from sweeps.search.prefixes import Key, Prefixes
from sweeps.search.samplers import sampler_of
from sweeps.search.seen import Seen
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


@dataclass(frozen=True)
class _Pool:
    """What is compared for one choice.

    Attributes:
        candidates: draws with what the sampler noted: fresh ones, then suffixes on prefixes that
            are cached.
        seconds: (m,) that each is expected to take.
        num_fresh: how many of them are fresh.
    """

    candidates: list[tuple[Draw, Draw]]
    seconds: np.ndarray
    num_fresh: int

    @property
    def draws(self) -> list[Draw]:
        return [draw for draw, _ in self.candidates]

    @property
    def is_fresh(self) -> np.ndarray:
        """(m,) of each."""
        return np.arange(len(self.candidates)) < self.num_fresh

    @property
    def usual(self) -> float:
        """Median seconds of a fresh one."""
        return float(np.median(self.seconds[: self.num_fresh]))


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
        self._costs: CostModel | None = None  # of what is known by now
        # seconds of what was searched, of fresh configurations and of those that went on
        self._spent = {False: 0.0, True: 0.0}

    def learn(self, known: Known | None) -> None:
        """Take a configuration that ended; what lies outside the space tells nothing."""
        if known is None or not self._is_inside(known.draw):
            return
        self._known.add(known)
        self._costs = None
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
        """Seconds that each is expected to take; 0 where nothing is known yet. A training of a kind
        that nobody has timed takes at least what a configuration usually does.
        """
        usual = self.usual_seconds()
        found = [usual] * len(draws)
        whole = [self._space.completed(draw, 0.5) for draw in draws]
        inside = [place for place, draw in enumerate(whole) if self._is_inside(draw)]
        if inside and self._known.timed:
            asked = [whole[place] for place in inside]
            seconds = self._cost_model().expected(asked, self._reused())
            for place, draw, each in zip(inside, asked, seconds, strict=True):
                if self._is_new_training(draw):
                    found[place] = max(float(each), usual)
                elif len(self._known.timed) >= FIRST:
                    found[place] = float(each)
        return found

    def _is_new_training(self, draw: Draw) -> bool:
        """Whether a draw may train in a way that nobody has timed."""
        model = self._cost_model()
        return not model.knows(draw) and model.may_train(draw)

    def _knows(self, draw: Draw) -> bool:
        """Whether what a draw is expected to take comes from others of its kind."""
        is_enough = len(self._known.timed) >= FIRST
        return is_enough and self._cost_model().knows(draw)

    def _cost_model(self) -> CostModel:
        """Fitted once to what is known, until something is learnt."""
        if self._costs is None:
            known_costs = self._known_costs
            self._costs = CostModel(
                self.prefixes,
                self._encoder,
                self._known.timed[-_MOST_KNOWN:],
                None if known_costs is None else known_costs.epochs,
                self._of_epoch,
            )
        return self._costs

    @property
    def _of_epoch(self) -> float | None:
        """Seconds of an epoch as the spec has them, all replicates together."""
        search = self.spec.search
        if search.epoch_seconds is None or search.images is not None:
            return None
        return search.epoch_seconds * search.replicates

    def _is_inside(self, draw: Draw) -> bool:
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
        useful, known = self._known.useful, self._known_costs
        too_early = self._is_early and not self._is_cached
        if not self._is_asked or not useful or too_early:
            return None
        pool = self._pool(number, most_seconds)
        offered = self._offered(pool, most_seconds)
        gains = self._gains(number, useful[-_MOST_KNOWN:], pool.draws)
        floor = _OVERHEAD * pool.usual
        with np.errstate(divide="ignore"):
            scores = np.log(gains) - left * np.log(pool.seconds + floor)
        waits = np.array(self._waits(pool.draws, running))
        for index in np.lexsort((-scores, waits, pool.seconds > most_seconds)):
            draw, notes = pool.candidates[index]
            is_new = self._space.identity(draw) not in tried
            is_offered = offered[index] and is_new and scores[index] > -math.inf
            if is_offered and (known is None or known.may_meet([draw], running)[0]):
                found = Proposal(draw, notes, float(pool.seconds[index]))
                return self.measured_first(draw, tried) or found
        return None

    @property
    def _is_cached(self) -> bool:
        """Whether suffixes on cached prefixes are candidates, too."""
        return self.spec.search.cost == "cached"

    @property
    def _is_early(self) -> bool:
        """Whether too little is known to compare fresh configurations."""
        return len(self._known.useful) < FIRST

    @property
    def _goes_on(self) -> bool:
        """Whether suffixes on cached prefixes have had no more of the time than the rest."""
        return self._is_cached and self._spent[True] <= self._spent[False]

    def _pool(self, number: int, most_seconds: float) -> _Pool:
        """What is compared for a choice."""
        # of images a suffix may take none: it would fit for ever
        at_end = math.isfinite(most_seconds) and self.spec.search.images is None
        at_end &= self._is_cached and not self._is_early
        finished = self._reused() if self._goes_on or at_end else set()
        fresh = self._fresh(number, most_seconds)
        candidates = [*fresh, *self._going_on(number, fresh, finished)]
        draws = [draw for draw, _ in candidates]
        seconds = self._cost_model().expected(draws, self._reused())
        return _Pool(candidates, np.maximum(seconds, _LEAST_SECONDS), len(fresh))

    def _offered(self, pool: _Pool, most_seconds: float) -> np.ndarray:
        """(m,) which of a pool may be chosen now."""
        is_short = pool.seconds <= most_seconds
        if self._is_early:
            return ~pool.is_fresh & is_short & (pool.seconds <= _CHEAP * pool.usual)
        if not self._goes_on and is_short[pool.is_fresh].any():
            return pool.is_fresh
        return np.full(len(pool.draws), True)

    def measured_first(self, draw: Draw, tried: Collection[str]) -> Proposal | None:
        """What tells whether a draw costs too much before that is trained; None where it is known,
        or is known to take nearly as long as the training.
        """
        known = self._known_costs
        other = None if known is None else known.untrained(draw)
        if other is None or self._space.identity(other) in tried:
            return None
        seconds, of_draw = self.expected([other, draw])
        if seconds > _SHORT * of_draw and self._knows(draw):
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

    def _fresh(self, number: int, most_seconds: float) -> list[tuple[Draw, Draw]]:
        """Draws of the sampler with its notes, then draws at random for every second number, or
        where the sampler offers nothing that takes so little.
        """
        search, seed = self.spec.search, self.spec.seed
        samplers = [sampler_of(search, seed, number, i) for i in range(OFFERED)]
        rng = np.random.default_rng(derive_seed(seed, "fresh", number))
        drawn = self._offers.drawn(samplers)
        draws = [draw for draw, _ in drawn]
        expected = self._cost_model().expected(draws, self._reused())
        all_take_more = (expected > most_seconds).all()
        count = AT_RANDOM if number % 2 or all_take_more else 0
        return [*drawn, *((self._at_random(rng), Draw()) for _ in range(count))]

    def _going_on(
        self,
        number: int,
        fresh: Sequence[tuple[Draw, Draw]],
        finished: Collection[Key],
    ) -> list[tuple[Draw, Draw]]:
        """Suffixes on cached prefixes: those of the sampler's draws, and some at random."""
        if not finished:
            return []
        rng = np.random.default_rng(derive_seed(self.spec.seed, "suffixes", number))
        at_random = [(self._at_random(rng), Draw()) for _ in range(SUFFIXES)]
        return [
            (self.prefixes.crossed(holder, suffix, place), notes)
            for place, holder in self._worth_going_on(finished)
            for suffix, notes in [*fresh[:OFFERED], *at_random]
        ]

    def _worth_going_on(self, finished: Collection[Key]) -> list[tuple[int, Draw]]:
        """Places in the pipeline and draws that are cached up to there: those of the front's
        configurations, then the latest ones; only where it saves a good part of the seconds.
        """
        first = self._known.front(self.spec.objectives)
        latest = self._known.useful[-_MOST_LOOKED_AT:]
        ordered = [*first, *reversed(latest)][:_MOST_LOOKED_AT]
        each_seconds = self._cost_model().by_entry([each.draw for each in ordered])
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
