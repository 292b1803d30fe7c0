"""Integers that remember whose size they are, while a forward pass computes with them.

Forward passes write sizes as attributes of their modules (`num_heads`). They are passed in as
such integers, so that it is known which attribute belongs to which axis, and which size is
computed from which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.channels.identities import Rows
from trainers.models.cut_model import is_plain_layer

Axes = list[Rows | None]
"""Rows of each axis of a tensor."""


@dataclass(frozen=True)
class Attribute:
    """An integer that a module holds; `item` is its place where the attribute is a tuple."""

    module: str
    name: str
    item: int | None = None


class Sized(int):
    """A size: `times` / `over` of an attribute, or of the positions of an axis.

    Attributes:
        attribute: whose value it is.
        rows: whose number it is.
        others: attributes, or rows of axes, that it was computed with.
    """

    attribute: Attribute | None
    rows: Rows | None
    times: int
    over: int
    others: tuple[Any, ...]

    def __new__(
        cls,
        value: int,
        attribute: Attribute | None = None,
        rows: Rows | None = None,
        times: int = 1,
        over: int = 1,
        others: tuple[Any, ...] = (),
    ) -> "Sized":
        made = super().__new__(cls, value)
        made.attribute, made.rows, made.others = attribute, rows, others
        made.times, made.over = times, over
        return made

    @property
    def attributes(self) -> list[Attribute]:
        """Attributes that it was computed with."""
        return [other for other in self.others if isinstance(other, Attribute)]

    @property
    def axes(self) -> list[Rows]:
        """Rows of other axes that it was computed with."""
        return [other for other in self.others if not isinstance(other, Attribute)]

    def _scaled(self, value: int, by: Any, times: int, over: int) -> int:
        if not isinstance(by, int):
            return NotImplemented
        others = self.others
        if isinstance(by, Sized):
            others += (*by.others, by.attribute if by.rows is None else by.rows)
        return Sized(
            value,
            self.attribute,
            self.rows,
            self.times * times,
            self.over * over,
            others,
        )

    def __mul__(self, by: Any) -> int:
        return (
            self._scaled(int(self) * int(by), by, int(by), 1)
            if _whole(by)
            else int(self) * by
        )

    __rmul__ = __mul__

    def __floordiv__(self, by: Any) -> int:
        if not _whole(by) or int(self) % int(by):
            return int(self) // by
        return self._scaled(int(self) // int(by), by, 1, int(by))

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def _whole(by: Any) -> bool:
    return isinstance(by, int) and not isinstance(by, bool)


@contextmanager
def sized_attributes(module: nn.Module) -> Iterator[None]:
    """Let the integers of all modules remember whose they are, in this block."""
    before: list[tuple[nn.Module, str, Any]] = []
    for path, each in module.named_modules():
        if is_plain_layer(each):
            continue
        for name, value in list(vars(each).items()):
            if name.startswith("_") or name == "training":
                continue
            found = _sized(value, Attribute(path, name))
            if found is not value:
                before.append((each, name, value))
                vars(each)[name] = found
    try:
        yield
    finally:
        for each, name, value in before:
            vars(each)[name] = value


def _sized(value: Any, attribute: Attribute) -> Any:
    if type(value) is int and value > 0:
        return Sized(value, attribute)
    if type(value) in (tuple, list) and all(type(x) is int for x in value):
        items = [
            Sized(x, Attribute(attribute.module, attribute.name, i))
            for i, x in enumerate(value)
        ]
        return type(value)(items)
    return value


def sized_shape(shape: torch.Size, axes: Axes) -> torch.Size:
    if all(rows is None for rows in axes):
        return shape
    return torch.Size(
        [
            n if rows is None else Sized(n, rows=rows)
            for n, rows in zip(shape, axes, strict=True)
        ]
    )


def flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from flat(value)
        else:
            yield value
