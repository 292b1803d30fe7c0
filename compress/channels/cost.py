"""What a model costs when only some units of each group stay.

Legend
    B, G     ways to cut that are looked at together, groups of the model
    r        (B, G): share of each group's units that stays
    N_s, f_s positions of a segment of an axis (those that belong to the same groups), and the
             share of them that stays, Π r_g over its groups
    axis     Σ_s N_s · f_s positions stay
    term     constant · Π of its axes: multiply-accumulates of a product, values of a parameter

Latency is Σ of a table's milliseconds over the layers; see `compress.channels.latency`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compress.channels.layout import Layout, Rows

Floats = npt.NDArray[np.float64]


class Cost(Protocol):
    """What a cut model costs, in one unit."""

    def of(self, shares: Floats) -> Floats:
        """The cost (B,) of models of which shares (B, G) of each group's units stay."""


class Axes:
    """How many positions stay along some axes."""

    def __init__(self, layout: Layout, rows: Sequence[Rows]) -> None:
        group = np.full(layout.num_units + 1, -1)
        for i, each in enumerate(layout.groups):
            group[each.units] = i
        sizes: list[int] = []
        members: list[set[int]] = []
        axes: list[int] = []
        for axis, positions in enumerate(rows):
            of_position = np.sort(group[positions], axis=1)
            kinds, counts = np.unique(of_position, axis=0, return_counts=True)
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                sizes.append(count)
                members.append(set(kind) - {-1})
                axes.append(axis)
        self._sizes = np.array(sizes, float)
        self._member = np.zeros((len(layout.groups), len(sizes)))
        for segment, groups in enumerate(members):
            self._member[list(groups), segment] = 1
        self._axis = np.zeros((len(sizes), len(rows)))
        self._axis[np.arange(len(sizes)), axes] = 1

    def counts(self, shares: Floats) -> Floats:
        """Positions that stay (B, A)."""
        kept = np.exp(np.log(np.maximum(shares, 1e-12)) @ self._member)
        return (kept * self._sizes) @ self._axis


class Terms:
    """A sum of terms."""

    def __init__(
        self, layout: Layout, terms: Sequence[tuple[float, Sequence[Rows]]]
    ) -> None:
        distinct: dict[bytes, int] = {}
        rows: list[Rows] = []
        places: list[tuple[int, int]] = []
        for i, (_, axes) in enumerate(terms):
            for each in axes:
                key = each.tobytes() + str(each.shape).encode()
                if key not in distinct:
                    distinct[key] = len(rows)
                    rows.append(each)
                places.append((i, distinct[key]))
        self._axes = Axes(layout, rows)
        self._constants = np.array([constant for constant, _ in terms], float)
        self._uses = np.zeros((len(rows), len(terms)))
        for term, axis in places:
            self._uses[axis, term] += 1

    def of(self, shares: Floats) -> Floats:
        """The sum (B,) for shares (B, G)."""
        logs = np.log(np.maximum(self._axes.counts(shares), 1e-12))
        return np.exp(logs @ self._uses) @ self._constants


def macs(layout: Layout) -> Terms:
    """Multiply-accumulates of one image."""
    return Terms(layout, [(each.times, each.rows) for each in layout.products])


def values(layout: Layout, bytes_of: dict[str, int]) -> Terms:
    """What the named tensors hold, each of their values weighted: 1 for parameters, or bytes."""
    terms = []
    for name, weight in bytes_of.items():
        constant = float(weight)
        rows = []
        for axis, n in enumerate(layout.shapes.get(name, ())):
            if (name, axis) in layout.rows:
                rows.append(layout.rows[name, axis])
            else:
                constant *= n
        terms.append((constant, rows))
    return Terms(layout, terms)
