"""Integers that remember whose size they are, while a forward pass computes with them.

Forward passes write sizes as attributes of their modules (`num_heads`). They are passed in as
such integers, so that it is known which attribute belongs to which axis, and which size is
computed from which. What they are not followed through (`int(0.5 * size)`) is a plain number, which
does not change when a model is cut.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


class Size(int):
    """An integer that remembers whose size it is, also when it is added and subtracted."""

    def __add__(self, by: Any) -> int:
        return _sum(self, by)

    def __radd__(self, by: Any) -> int:
        return _sum(by, self)

    def __sub__(self, by: Any) -> int:
        return _sum(self, -by) if _whole(by) else NotImplemented

    def __rsub__(self, by: Any) -> int:
        return _sum(by, -self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


class Sized(Size):
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

    def _scaled(self, value: int, by: int, times: int, over: int) -> int:
        return Sized(
            value,
            self.attribute,
            self.rows,
            self.times * times,
            self.over * over,
            (*self.others, *origins(by)),
        )

    def __mul__(self, by: Any) -> int:
        return (
            self._scaled(int(self) * int(by), by, int(by), 1)
            if _whole(by) and by
            else int(self) * by
        )

    __rmul__ = __mul__

    def __neg__(self) -> int:
        return self * -1

    def __floordiv__(self, by: Any) -> int:
        value = int(self) // by
        if not _whole(by):
            return value
        if value * by != int(self):
            return _untold(value, self, by)
        return self._scaled(value, by, 1, int(by))

    def __rfloordiv__(self, by: Any) -> int:
        return _untold(by // int(self), self) if _whole(by) else by // int(self)


class SizedSum(Size):
    """A sum of sizes.

    Attributes:
        terms: what was added, in this order, and negative what was subtracted.
    """

    terms: tuple[int, ...]

    def __new__(cls, terms: Sequence[int]) -> "SizedSum":
        made = super().__new__(cls, sum(map(int, terms)))
        made.terms = tuple(terms)
        return made

    def __neg__(self) -> int:
        return SizedSum([-term for term in self.terms])

    def __mul__(self, by: Any) -> int:
        value = int(self) * by
        return _untold(value, self, by) if _whole(by) else value

    __rmul__ = __mul__

    def __floordiv__(self, by: Any) -> int:
        value = int(self) // by
        return _untold(value, self, by) if _whole(by) else value


def _whole(by: Any) -> bool:
    return isinstance(by, int) and not isinstance(by, bool)


def _untold(value: int, *sizes: int) -> Sized:
    """A size of which it is only known from which others it was computed."""
    return Sized(value, others=tuple(x for size in sizes for x in origins(size)))


def _sum(first: Any, second: Any) -> Any:
    """The sum of two sizes, in which what is added and subtracted is left out."""
    if not (_whole(first) and _whole(second)):
        return NotImplemented
    terms: list[int] = []
    for size in (first, second):
        for term in size.terms if isinstance(size, SizedSum) else [size]:
            at = next((i for i, other in enumerate(terms) if _cancel(other, term)), -1)
            if at >= 0:
                del terms[at]
            elif is_sized(term) or term:
                terms.append(term)
    if len(terms) > 1:
        return SizedSum(terms)
    return terms[0] if terms else 0


def _cancel(one: int, other: int) -> bool:
    return (
        isinstance(one, Sized)
        and isinstance(other, Sized)
        and int(one) == -int(other)
        and one.attribute == other.attribute
        and one.rows is other.rows
        and not one.others
        and not other.others
    )


def is_sized(value: Any) -> bool:
    """Whether a value remembers whose size it is."""
    return isinstance(value, Size)


def origins(size: int) -> tuple[Any, ...]:
    """Attributes, and rows of axes, from which a size was computed."""
    if isinstance(size, SizedSum):
        return tuple(x for term in size.terms for x in origins(term))
    if not isinstance(size, Sized):
        return ()
    own = size.attribute if size.rows is None else size.rows
    return size.others if own is None else (own, *size.others)


def blocks(size: int) -> tuple[int, ...]:
    """Signed sizes of the parts of an axis, one behind the other, that a size is the sum of."""
    if isinstance(size, SizedSum):
        return tuple(block for term in size.terms for block in blocks(term))
    if not isinstance(size, Sized) or size.over > 1 or size.others or not size:
        return (size,)
    count = abs(size.times)
    one = Sized(abs(size) // count, size.attribute, size.rows)
    return (one if size > 0 else -one,) * count


@contextmanager
def sized_attributes(
    module: nn.Module, axes_of: Callable[[Tensor], Axes]
) -> Iterator[None]:
    """Let the integers of all modules remember whose they are, in this block.

    Args:
        axes_of: rows of the axes of a parameter, which a layer's own sizes follow.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for path, each in module.named_modules():
        found = (
            _sizes_of_layer(each, axes_of)
            if is_plain_layer(each)
            else _sizes_of_module(path, each)
        )
        for name, value in found.items():
            before.append((each, name, vars(each)[name]))
            vars(each)[name] = value
    try:
        yield
    finally:
        for each, name, value in before:
            vars(each)[name] = value


def _sizes_of_layer(
    layer: nn.Module, axes_of: Callable[[Tensor], Axes]
) -> dict[str, Any]:
    """Sizes that are set by the layer's weight once that is cut."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return {}
    names: dict[str, int] = {}
    if isinstance(layer, nn.Linear):
        names = {"out_features": 0, "in_features": 1}
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        names = {"out_channels": 0} | ({"in_channels": 1} if layer.groups == 1 else {})
    elif isinstance(layer, _BatchNorm):
        names = {"num_features": 0}
    elif isinstance(layer, nn.GroupNorm):
        names = {"num_channels": 0}
    axes = axes_of(weight)
    return {
        name: Sized(weight.shape[axis], rows=axes[axis])
        for name, axis in names.items()
        if axes[axis] is not None
    }


def _sizes_of_module(path: str, module: nn.Module) -> dict[str, Any]:
    """Integers that a cut gives the module with their new values."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        sized = _sized(value, Attribute(path, name))
        if sized is not value:
            found[name] = sized
    return found


def _sized(value: Any, attribute: Attribute) -> Any:
    if type(value) is int and value > 0:
        return Sized(value, attribute)
    if type(value) in (tuple, list) and all(type(x) is int for x in value):
        items = [
            Sized(x, Attribute(attribute.module, attribute.name, i)) if x > 0 else x
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
    """What stands in values, in the tuples and lists among them, and in bounds of slices."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from flat(value)
        elif isinstance(value, slice):
            yield from (value.start, value.stop, value.step)
        else:
            yield value
