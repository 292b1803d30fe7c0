"""One dimension of a search space, and how a spec writes it."""

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import optuna
from pydantic import JsonValue

from sweeps.spec.yaml_text import SpecError, Tree

Draw = dict[str, JsonValue]
"""Optuna's own parameters and what it drew for them: a label (categorical) or a number.

Most dimensions are one parameter of Optuna, named by their path; a layer map is several.
"""

Configuration = dict[str, JsonValue]
"""A draw as people read it: dotted parameter → plain value.

A slot's value is the name of its alternative, a choice that the spec gives a label is that
label, and a layer map is a list of ints.
"""


class Condition(NamedTuple):
    """When a dimension is active.

    Attributes:
        slot: the slot that decides it, or None.
        alternatives: those of the slot under which it is active.
        stage: the stage of the alternative's sub-pipeline that it belongs to, or None.
    """

    slot: str | None = None
    alternatives: frozenset[str] = frozenset()
    stage: str | None = None


ALWAYS = Condition()

_ROUNDED = 1e-8
"""Part of a step that a number may lie beside it; Optuna's own tolerance."""


@dataclass(frozen=True)
class Dimension:
    """One searched parameter or slot.

    Attributes:
        path: dotted name, as in the spec.
        kind: how it is drawn.
        low, high, step, log: of numbers; both ends belong to the range.
        choices: label → value of a categorical one, in order.
        slot: the slot that decides whether it is active, or None.
        alternatives: those of the slot under which it is active.
        stage: the stage of the alternative's sub-pipeline that it belongs to, or None.
        is_slot: whether it chooses an alternative.
        is_labelled: whether the spec itself gives its choices labels.
    """

    path: str
    kind: Literal["float", "int", "categorical", "map"]
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: Mapping[Any, Any] | None = None
    slot: str | None = None
    alternatives: frozenset[str] = frozenset()
    stage: str | None = None
    is_slot: bool = False
    is_labelled: bool = False

    @property
    def section(self) -> str:
        """The stage, or the other section, that it belongs to."""
        parts = self.path.split(".")
        return parts[1] if parts[0] == "stages" else parts[0]

    def active(self, chosen: Mapping[str, JsonValue]) -> bool:
        """Whether it applies, given the slots chosen so far."""
        return self.slot is None or chosen.get(self.slot, None) in self.alternatives

    def suggest(self, trial: optuna.trial.BaseTrial) -> Draw:
        """Let an Optuna trial draw it: its part of a draw."""
        return {self.path: self._suggest(trial)}

    def _suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        if self.kind == "categorical":
            assert self.choices is not None
            return trial.suggest_categorical(self.path, list(self.choices))
        if self.kind == "int":
            return trial.suggest_int(
                self.path,
                int(self.low),
                int(self.high),
                step=int(self.step or 1),
                log=self.log,
            )
        return trial.suggest_float(
            self.path, self.low, self.high, step=self.step, log=self.log
        )

    def is_drawn(self, draw: Mapping[str, JsonValue]) -> bool:
        """Whether a draw has it."""
        return self.path in draw

    def value(self, draw: Mapping[str, JsonValue]) -> JsonValue:
        """What goes into the spec by a draw that has it."""
        drawn: Any = draw[self.path]
        return copy.deepcopy(self.choices[drawn]) if self.choices is not None else drawn

    def decode(self, draw: Mapping[str, JsonValue]) -> JsonValue:
        """Its value in the configuration that a draw stands for.

        A choice that this dimension has no more, in a run whose space was changed, stands for
        itself.
        """
        drawn: Any = draw[self.path]
        is_gone = self.choices is not None and drawn not in self.choices
        return drawn if self.is_labelled or is_gone else self.value(draw)

    def encode(self, value: Any) -> Draw:
        """The part of a draw that stands for this value.

        Raises:
            SpecError: the dimension does not contain it.
        """
        return {self.path: self._coerced(value)}

    def num_draws(self) -> int | None:
        """How many values can be drawn; None is a continuum. Nothing is listed for it."""
        if self.choices is not None:
            return len(self.choices)
        if self.kind == "int":
            return (int(self.high) - int(self.low)) // int(self.step or 1) + 1
        if self.step is None:
            return 1 if self.low == self.high else None
        return round((self.high - self.low) / self.step) + 1

    def _drawn(self, index: int) -> Any:
        """What is drawn with this index, of `num_draws`."""
        if self.choices is not None:
            return list(self.choices)[index]
        if self.kind == "int":
            return int(self.low) + index * int(self.step or 1)
        return self.low + index * self.step if self.step is not None else self.low

    def samples(self) -> list[Any]:
        """Draws that stand for all: every label, or both ends."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]

    def _coerced(self, value: Any) -> Any:
        """A value as Optuna draws it.

        Raises:
            SpecError: not one of the choices, or outside the range.
        """
        if self.choices is not None:
            for label, choice in self.choices.items():
                if (value == label and type(value) is type(label)) or value == choice:
                    return label
            raise SpecError(
                f"search.points: {self.path}: {value!r} is no choice; valid:"
                f" {', '.join(map(str, self.choices))}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            not number
            or not self.low <= value <= self.high
            or (self.kind == "int" and value != int(value))
        ):
            raise SpecError(
                f"search.points: {self.path}: {value!r} is not in {self.kind}"
                f" [{self.low}, {self.high}]"
            )
        if self.step is None:
            return int(value) if self.kind == "int" else float(value)
        return self._on_grid(value)

    def _on_grid(self, value: float) -> Any:
        """The number that is drawn for `value`, which may be rounded differently.

        Raises:
            SpecError: it lies between two steps.
        """
        assert self.step is not None
        steps = (value - self.low) / self.step
        nearest = self._drawn(round(steps))
        rounded = sys.float_info.epsilon * max(abs(value), abs(self.low)) / self.step
        if abs(steps - round(steps)) > _ROUNDED + 4 * rounded:
            below = math.floor(steps)
            raise SpecError(
                f"search.points: {self.path}: {value!r} lies between the steps of"
                f" {self.describe()}; the nearest are {self._drawn(below):.12g} and"
                f" {self._drawn(below + 1):.12g}"
            )
        return nearest

    def draws(self) -> list[Draw] | None:
        """Its part of every draw, or None where that is a continuum."""
        count = self.num_draws()
        if count is None:
            return None
        return [{self.path: self._drawn(index)} for index in range(count)]

    def at(self, quantile: Callable[[str], float]) -> Draw:
        """Its part of the draw at these quantiles of its values, which count alike.

        Args:
            quantile: name of one of Optuna's parameters → a number in [0, 1).
        """
        u, count = quantile(self.path), self.num_draws()
        if self.log:
            drawn: Any = math.exp(
                math.log(self.low) + u * math.log(self.high / self.low)
            )
            drawn = round(drawn) if self.kind == "int" else drawn
            return {self.path: min(max(drawn, self.low), self.high)}
        if count is None:
            return {self.path: self.low + u * (self.high - self.low)}
        return {self.path: self._drawn(int(u * count))}

    def probes(self) -> list[Draw]:
        """Parts of draws that stand for all."""
        return [{self.path: drawn} for drawn in self.samples()]

    def describe(self) -> str:
        """Its values in words."""
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        step = f", step {self.step:g}" if self.step else ""
        low, high = (
            f"{x:g}" if math.isfinite(x) else str(x) for x in (self.low, self.high)
        )
        return f"{self.kind} {low} to {high}{step}{', log' if self.log else ''}"


def _label(value: Any) -> Any:
    return (
        value
        if isinstance(value, str | int | float | bool | None)
        else json.dumps(value, separators=(",", ":"))
    )


def parse_dimension(path: str, given: Any, condition: Condition = ALWAYS) -> Dimension:
    """A dimension from its spec form: a list, {low, high, log, step, type}, {choices}, or
    one fixed value.

    Args:
        condition: when it is active.

    Raises:
        SpecError: none of these forms, or a range that is none.
    """
    place = f"search.space.{path}"
    if isinstance(given, dict) and set(given) == {"choices"}:
        given = given["choices"]
        if not isinstance(given, dict | list):
            raise SpecError(
                f"{place}.choices: a list or a mapping label → value; got {given!r}"
            )
        if isinstance(given, dict):
            given = {str(label): value for label, value in given.items()}
    elif isinstance(given, dict):
        return _number_dimension(path, place, given, condition)
    if not isinstance(given, dict | list):
        given = [given]
    choices = (
        given if isinstance(given, dict) else {_label(value): value for value in given}
    )
    if not choices:
        raise SpecError(f"{place}: needs at least one choice")
    if len(choices) < len(given):
        raise SpecError(f"{place}: the choices {given!r} are not distinct")
    labelled = isinstance(given, dict)
    return Dimension(
        path,
        "categorical",
        choices=choices,
        is_labelled=labelled,
        **condition._asdict(),
    )


def _number_dimension(
    path: str, place: str, given: Tree, condition: Condition
) -> Dimension:
    kind = _checked_kind(place, given)
    low, high, step = given["low"], given["high"], given.get("step")
    log = given.get("log", False)
    if low > high or (log and low <= 0) or (step is not None and (step <= 0 or log)):
        raise SpecError(
            f"{place}: needs low <= high, low > 0 with log, step > 0 and not with log;"
            f" got {given}"
        )
    if kind == "float":
        low, high, step = float(low), float(high), None if step is None else float(step)
    if step is not None:
        last = _last_drawn(low, high, step)
        high = int(last) if kind == "int" else float(last)
    return Dimension(path, kind, low, high, step, log, **condition._asdict())


def _checked_kind(place: str, given: Tree) -> Literal["int", "float"]:
    """Whether a range is of whole numbers.

    Raises:
        SpecError: a key that a range does not have, or a value that its key does not take.
    """
    unknown = set(given) - {"low", "high", "log", "step", "type"}
    if unknown or not {"low", "high"} <= set(given):
        raise SpecError(
            f"{place}: a range is {{low, high}} with optional log, step, type (float or"
            " int), a map {layer_map}, {mapping_layer} or {mapping_layer_coeff};"
            f" got keys {', '.join(map(str, given))}"
        )
    numbers = {name: given[name] for name in ("low", "high")}
    if given.get("step") is not None:
        numbers["step"] = given["step"]
    for name, number in numbers.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise SpecError(f"{place}.{name}: must be a finite number; got {number!r}")
    are_whole = all(isinstance(number, int) for number in numbers.values())
    kind = given.get("type", "int" if are_whole else "float")
    if kind not in ("int", "float") or (kind == "int" and not are_whole):
        raise SpecError(
            f"{place}.type: int (with whole low, high and step) or float; got {kind!r}"
        )
    if not isinstance(given.get("log", False), bool):
        raise SpecError(f"{place}.log: true or false; got {given['log']!r}")
    return "int" if kind == "int" else "float"


def _last_drawn(low: float, high: float, step: float) -> Decimal:
    """The last number of `low`, `low + step`, … that is not above `high`.

    It is computed in decimals, as Optuna counts steps: 0.1 has no exact double.
    """
    start, unit = Decimal(str(low)), Decimal(str(step))
    return start + (Decimal(str(high)) - start) // unit * unit


def leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all that is no mapping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{prefix}.{key}", inner)
    else:
        yield prefix, value


def config_keys(dimension: Dimension) -> list[str]:
    """The keys of the flat config that a dimension sets."""
    parts = dimension.path.split(".")
    if dimension.stage is not None:
        del parts[1:3]
    elif dimension.slot is not None:
        del parts[2]
    base = ".".join(parts[1:] if parts[0] == "stages" else parts)
    values = list(dimension.choices.values()) if dimension.choices is not None else []
    if not any(isinstance(value, dict) for value in values):
        return [base]
    return list(
        dict.fromkeys(key for value in values for key, _ in leaves(base, value))
    )
