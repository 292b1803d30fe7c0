"""Search dimensions over maps of layers: non-decreasing lists, drawn as a few ordered numbers.

Legend
    m, K    length of the list, values 0 … K − 1 that its entries have (times `step`)
    rule    onto: non-decreasing, every value used          (SWS)
            into: non-decreasing, values may be skipped     (SWS with allow_skip,
                                                            mapping_layer_coeff of LeTs)
            strict: ascending, each value at most once      (mapping_layer of LeTs)
    A, n, k a k-subset A = {a_1 < … < a_k} of {0 … n − 1}; every map is one, and every one is a map:
            onto: where the value changes, n = m − 1, k = K − 1; into: bars among m stars, n
                = m + K − 1, k = K − 1;
            strict: the values left out, n = K, k = K − m
    u_i     in [0, 1], one Optuna float for each a_i

Encoding: a_i is the u_i-quantile of its distribution given a_1 … a_(i−1) in a uniformly
drawn subset. So every map is reachable and nothing else, independent uniform u draw all
maps with equal probability, a_i does not fall as u_i rises, and every distribution is [0,
1] whatever was drawn before, which TPE needs to model numbers together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any, Literal

import optuna
from pydantic import JsonValue

from sweeps.space.dimension import ALWAYS, Condition, Dimension, Draw
from sweeps.spec.yaml_text import SpecError

Rule = Literal["onto", "into", "strict"]
_MOST = 2**50
_FORMS = {
    "layer_map": ("layers", "stages"),
    "mapping_layer": ("layers", "of"),
    "mapping_layer_coeff": ("layers", "of"),
}


def subset(numbers: Sequence[float], n: int) -> list[int]:
    """The subset of {0 … n − 1} that these quantiles in [0, 1] mean, ascending."""
    chosen: list[int] = []
    for i, u in enumerate(numbers):
        rest = len(numbers) - i - 1
        a = chosen[-1] + 1 if chosen else 0
        target, below = u * comb(n - a, rest + 1), comb(n - 1 - a, rest)
        while below <= target and a < n - 1 - rest:
            a += 1
            below += comb(n - 1 - a, rest)
        chosen.append(a)
    return chosen


def quantiles(chosen: Sequence[int], n: int) -> list[float]:
    """Numbers that mean this ascending subset: for each the middle of those that do, given
    the ones before.
    """
    numbers, start = [], 0
    for i, a in enumerate(chosen):
        rest = len(chosen) - i - 1
        below = sum(comb(n - 1 - b, rest) for b in range(start, a))
        numbers.append((below + comb(n - 1 - a, rest) / 2) / comb(n - start, rest + 1))
        start = a + 1
    return numbers


@dataclass(frozen=True)
class LayerMaps:
    """All maps of one kind: lists of `length` entries over `values` values, times `step`."""

    rule: Rule
    length: int
    values: int
    step: int = 1

    @property
    def n_k(self) -> tuple[int, int]:
        """Of the subsets that stand for the maps: size of the whole and of the subset."""
        if self.rule == "strict":
            return self.values, self.values - self.length
        return (
            self.length - 1 + (self.values if self.rule == "into" else 0),
            self.values - 1,
        )

    @property
    def count(self) -> int:
        return comb(*self.n_k)

    def __iter__(self) -> Iterator[list[int]]:
        n, k = self.n_k
        return (self._map(chosen) for chosen in combinations(range(n), k))

    def decode(self, numbers: Sequence[float]) -> list[int]:
        """The map of k numbers in [0, 1]."""
        return self._map(subset(numbers, self.n_k[0]))

    def encode(self, given: Any) -> list[float]:
        """k numbers that mean this map.

        Raises:
            ValueError: it is no such map; says the rule.
        """
        whole = isinstance(given, list | tuple) and all(
            isinstance(v, int) and not isinstance(v, bool) for v in given
        )
        chosen = self._subset(given) if whole and len(given) == self.length else None
        if chosen is None or self._map(chosen) != list(given):
            raise ValueError(f"{given!r} is none of the {self.describe()}")
        return quantiles(chosen, self.n_k[0])

    def describe(self) -> str:
        """In words."""
        top = (self.values - 1) * self.step
        how = {
            "onto": "non-decreasing, each value used",
            "into": "non-decreasing",
            "strict": "ascending",
        }[self.rule]
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.count:,} maps of {self.length} layers to 0 … {top}{steps}, {how}"

    def _map(self, chosen: Sequence[int]) -> list[int]:
        if self.rule == "strict":
            return [v * self.step for v in range(self.values) if v not in set(chosen)]
        # layers that come before the i-th change of value
        ends = [a + 1 if self.rule == "onto" else a - i for i, a in enumerate(chosen)]
        return [
            sum(end <= layer for end in ends) * self.step
            for layer in range(self.length)
        ]

    def _subset(self, given: Sequence[int]) -> list[int] | None:
        """The subset that would stand for `given` if it is a map; None where it is surely none."""
        if self.rule == "strict":
            left_out = [v for v in range(self.values) if v * self.step not in given]
            return left_out if len(left_out) == self.n_k[1] else None
        ends = [sum(v <= i * self.step for v in given) for i in range(self.values - 1)]
        chosen = [
            end - 1 if self.rule == "onto" else end + i for i, end in enumerate(ends)
        ]
        rising = all(a < b for a, b in pairwise(chosen))
        return chosen if rising and all(0 <= a < self.n_k[0] for a in chosen) else None


@dataclass(frozen=True)
class MapDimension(Dimension):
    """A searched layer map: `maps` says which; a draw holds its numbers under `names`."""

    maps: LayerMaps = LayerMaps("onto", 1, 1)

    @property
    def names(self) -> list[str]:
        """Of its numbers; what maps they mean is part of the name, so that a study never
        mixes two meanings.
        """
        kind = {"onto": "onto", "into": "into", "strict": "of"}[self.maps.rule]
        return [
            f"{self.path}[{self.maps.length} {kind} {self.maps.values} #{i}]"
            for i in range(self.maps.n_k[1])
        ]

    def suggest(self, trial: optuna.trial.BaseTrial) -> Draw:
        return {name: trial.suggest_float(name, 0.0, 1.0) for name in self.names}

    def is_drawn(self, draw: Mapping[str, JsonValue]) -> bool:
        return all(name in draw for name in self.names)

    def value(self, draw: Mapping[str, JsonValue]) -> JsonValue:
        numbers: list[Any] = [draw[name] for name in self.names]
        return list(self.maps.decode(numbers))

    def decode(self, draw: Mapping[str, JsonValue]) -> JsonValue:
        return self.value(draw)

    def encode(self, value: Any) -> Draw:
        try:
            return dict(zip(self.names, self.maps.encode(value), strict=True))
        except ValueError as error:
            raise SpecError(f"search.points: {self.path}: {error}") from error

    def draws(self) -> list[Draw]:
        return [self.encode(given) for given in self.maps]

    def num_draws(self) -> int:
        return self.maps.count

    def at(self, quantile: Callable[[str], float]) -> Draw:
        return {name: quantile(name) for name in self.names}

    def probes(self) -> list[Draw]:
        return [dict.fromkeys(self.names, u) for u in (0.0, 1.0)]

    def describe(self) -> str:
        return self.maps.describe()


def is_map(given: Any) -> bool:
    """Whether a dimension's spec form is that of a map."""
    return isinstance(given, dict) and len(given) == 1 and next(iter(given)) in _FORMS


def parse_map(
    path: str, given: Mapping[str, Any], condition: Condition = ALWAYS
) -> MapDimension:
    """A map dimension from {layer_map: {layers, stages, allow_skip}}, {mapping_layer:
    {layers, of}} or {mapping_layer_coeff: {layers, of}}.

    Raises:
        SpecError: an unknown or missing key, or no map is like that.
    """
    form, options = next(iter(given.items()))
    place = f"search.space.{path}.{form}"
    layers, values, skip = _options(place, form, options)
    if form == "layer_map" and not skip and layers < values:
        raise SpecError(
            f"{place}: {layers} layers cannot use each of {values} stages; set"
            " allow_skip: true"
        )
    if form == "mapping_layer" and layers > values:
        raise SpecError(
            f"{place}: {layers} layers cannot each use another of {values}; lower"
            " layers"
        )
    if form == "mapping_layer_coeff":
        maps = LayerMaps("into", layers, -(-values // 2), 2)
    else:
        maps = LayerMaps(
            "strict" if form == "mapping_layer" else "into" if skip else "onto",
            layers,
            values,
        )
    if maps.count > _MOST:
        raise SpecError(
            f"{place}: {maps.count:.1e} maps are more than numbers can tell apart"
            f" ({_MOST:.1e})"
        )
    return MapDimension(path, "map", maps=maps, **condition._asdict())


def _options(place: str, form: str, options: Any) -> tuple[int, int, bool]:
    """The two numbers of a map's spec form, and whether stages may be left out."""
    keys = _FORMS[form]
    known = {*keys, "allow_skip"} if form == "layer_map" else set(keys)
    if not isinstance(options, dict) or not set(keys) <= set(options) <= known:
        optional = (
            ", and allow_skip if stages may be left out" if form == "layer_map" else ""
        )
        raise SpecError(
            f"{place}: give {' and '.join(keys)}{optional}; got {options!r}"
        )
    for key in keys:
        value = options[key]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= 1000:
            raise SpecError(
                f"{place}.{key}: a whole number from 1 to 1000; got {value!r}"
            )
    skip = options.get("allow_skip", False)
    if not isinstance(skip, bool):
        raise SpecError(f"{place}.allow_skip: true or false; got {skip!r}")
    return options[keys[0]], options[keys[1]], skip
