"""What is known of the tensors of a pass: rows of their axes, and what was done with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.channels.identities import Identities, Rows
from compress.channels.sizes import Attribute, Axes, Sized, SizedSum, origins


@dataclass(frozen=True)
class Use:
    """An axis whose size is `times` / `over` of an attribute; rows of its positions."""

    attribute: Attribute
    rows: Rows
    times: int = 1
    over: int = 1


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one operation on one image: `times` those of all its axes.

    Attributes:
        rows: of the axes whose number of positions can change.
        weight: the parameter that takes part; None: there is none.
    """

    times: int
    rows: tuple[Rows, ...]
    weight: str | None = None


class Followed:
    """Rows of all tensors that a pass has seen so far."""

    def __init__(self) -> None:
        self.ids = Identities()
        self.sizes: list[Use] = []
        self.products: list[Product] = []
        self.ratios: list[tuple[Any, Rows, Sequence[Rows | None]]] = []
        self.unknown: set[str] = set()
        self.pad_is_sized = False
        # tensors are held, so that no other gets the identity of one that is gone
        self.known: dict[int, tuple[Tensor, Axes]] = {}
        self.names: dict[int, str] = {}
        self._held: set[Attribute] = set()

    def start(self, name: str, tensor: Tensor) -> None:
        """All positions of a parameter or buffer are new."""
        if id(tensor) not in self.known:
            self.names[id(tensor)] = name
            self.set(
                tensor, [self.ids.fresh(n) if n > 1 else None for n in tensor.shape]
            )

    def axes(self, tensor: Any) -> Axes:
        known = self.known.get(id(tensor))
        return [None] * tensor.ndim if known is None else known[1]

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self.known[id(tensor)] = (tensor, axes)

    def note(
        self, size: int, rows: Rows | None, source: Sequence[Rows | None] = ()
    ) -> None:
        """Note that a pass gave an axis its size; `source` are the axes that were reshaped into
        it. What is a plain number in the pass is one in that of the cut model, too: such an axis
        stays, and the size of an axis that stays does.
        """
        if rows is None:
            self.hold(size)
        elif isinstance(size, SizedSum):
            self._note_sum(size, rows, source)
        elif isinstance(size, Sized):
            self._note_one(size, rows, source)
        else:
            self.ids.fix(rows)

    def hold(self, size: int) -> None:
        """A size is the same in the cut model: so are all that it was computed from."""
        for origin in origins(size):
            if not isinstance(origin, Attribute):
                self.ids.fix(origin)
            elif origin not in self._held:
                self._held.add(origin)
                for use in self.sizes:
                    if use.attribute == origin:
                        self.ids.fix(use.rows)

    def _note_sum(
        self, size: SizedSum, rows: Rows, source: Sequence[Rows | None]
    ) -> None:
        """Parts of an axis have the sizes that its own is the sum of."""
        if min(size.terms) < 0:
            self.hold(size)
            self.ids.fix(rows)
            return
        at = 0
        for term in size.terms:
            self.note(term, rows[at : at + term], source)
            at += term

    def _note_one(self, size: Sized, rows: Rows, source: Sequence[Rows | None]) -> None:
        if size.attribute is not None:
            self._use(Use(size.attribute, rows, size.times, size.over))
        if size.rows is not None or size.others:
            self.ratios.append((size, rows, source))

    def _use(self, use: Use) -> None:
        """An attribute is one number: all axes that it is the size of lose as many positions."""
        if use.attribute in self._held:
            self.ids.fix(use.rows)
        for other in self.sizes:
            if other.attribute != use.attribute:
                continue
            alike = (other.times, other.over) == (use.times, use.over)
            if alike and len(other.rows) == len(use.rows):
                self.ids.unify(other.rows, use.rows)
            else:
                self.ids.fix(other.rows)
                self.ids.fix(use.rows)
        self.sizes.append(use)

    def fix_ratios(self) -> None:
        """Keep axes whose size is computed from that of an axis which they are no part of."""
        for size, rows, source in self.ratios:
            if size.rows is not None:
                own = self.ids.resolved(size.rows)
                parts = [self.ids.resolved(x) for x in (rows, *source) if x is not None]
                if any(x.shape == own.shape and (x == own).all() for x in parts):
                    continue
            given = [use.rows for use in self.sizes if use.attribute in size.attributes]
            for each in (rows, size.rows, *size.axes, *given):
                self.ids.fix(each)
            if size.attribute is not None:
                for use in self.sizes:
                    if use.attribute == size.attribute:
                        self.ids.fix(use.rows)

    def count(self, times: int, weight: Tensor, *axes: tuple[int, Rows | None]) -> None:
        """Note an operation whose work is `times` that of all its axes (size, rows)."""
        times *= math.prod(n for n, rows in axes if rows is None)
        rows = tuple(rows for _, rows in axes if rows is not None)
        self.products.append(Product(times, rows, self.names.get(id(weight))))

    def fix(self, *tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for rows in self.axes(tensor):
                    self.ids.fix(rows)

    def elementwise(self, out: Tensor, inputs: Sequence[Tensor]) -> Axes:
        """Rows of a result whose elements come from those of the inputs at the same place."""
        axes: Axes = [None] * out.ndim
        for i in range(1, out.ndim + 1):
            if out.shape[-i] == 1:
                continue
            given = [
                self.axes(x)[-i]
                for x in inputs
                if x.ndim >= i and x.shape[-i] == out.shape[-i]
            ]
            for rows in given[1:]:
                self.ids.unify(given[0], rows)
            axes[-i] = given[0] if given else None
        return axes
