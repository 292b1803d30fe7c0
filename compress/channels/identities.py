"""Which positions along the axes of a model's tensors can only go together.

Legend
    atom        one thing that is kept or removed: a channel, a head, a dimension of all heads
    row         the atoms of one position along an axis; the position goes where any of them goes
    0           stands for "never removed", and for an empty place in a row
    rows        int64 (n, k), one row for each of the n positions; None: no position ever goes

Two axes that are added element by element must lose the same positions, so their rows are made one
(`unify`). A reshape that splits an axis of H·D positions into H and D leaves rectangles only: each
of its atoms becomes the pair of an atom of the first and an atom of the second axis. Where two
structures do not fit each other, their atoms are fixed: too much is kept then, nothing goes wrong.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class Identities:
    """All atoms of a model, and what is known about them."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._size = 1
        self._made_of: dict[int, frozenset[int]] = {}

    def fresh(self, n: int) -> Rows:
        """Rows of n new atoms, which have nothing to do with each other (n, 1)."""
        if self._size + n > len(self._parent):
            grown = np.arange(2 * (self._size + n), dtype=np.int64)
            grown[: self._size] = self._parent[: self._size]
            self._parent = grown
        atoms = np.arange(self._size, self._size + n, dtype=np.int64)
        self._size += n
        return atoms[:, None]

    def resolved(self, rows: Rows) -> Rows:
        """The same rows by what is known now: atoms that stand for others are replaced, the
        rest ascends after zeros, and each occurs once in a row.
        """
        roots = self._roots(rows)
        unique, places = np.unique(roots, return_inverse=True)
        if any(int(atom) in self._made_of for atom in unique):
            parts = [sorted(self._atoms(int(atom))) for atom in unique]
            width = max(1, max(map(len, parts)))
            table = np.zeros((len(unique), width), np.int64)
            for i, part in enumerate(parts):
                table[i, : len(part)] = part
            roots = table[places.reshape(-1)].reshape(len(rows), -1)
        roots = np.sort(roots, axis=1)
        roots[:, 1:][roots[:, 1:] == roots[:, :-1]] = 0
        roots = np.sort(roots, axis=1)
        used = roots.any(0)
        return roots[:, used] if used.any() else roots[:, :1]

    def fix(self, rows: Rows | None) -> None:
        """Never remove these positions."""
        if rows is None:
            return
        for atom in np.unique(self.resolved(rows)):
            if atom:
                self._parent[atom] = 0

    def unify(self, a: Rows | None, b: Rows | None) -> None:
        """Each position of one axis goes where that of the other goes, (n, k) and (n, l)."""
        if a is None or b is None:
            self.fix(a)
            self.fix(b)
            return
        assert len(a) == len(b), (a.shape, b.shape)
        a, b = self.resolved(a), self.resolved(b)
        if a.shape == b.shape and (a == b).all():
            return
        pairs = np.unique(np.concatenate([a, b], 1), axis=0)
        for row in pairs.tolist():
            self._unify(set(row[: a.shape[1]]), set(row[a.shape[1] :]))

    def _unify(self, first: set[int], second: set[int]) -> None:
        a = frozenset().union(*map(self._atoms, first))
        b = frozenset().union(*map(self._atoms, second))
        a, b = a - b, b - a
        if len(a) > len(b):
            a, b = b, a
        if (
            len(a) != 1
        ):  # nothing against something, or pairs that do not tell which is which
            for atom in a | b:
                self._parent[atom] = 0
            return
        (one,) = a
        if len(b) == 1:
            (other,) = b
            self._parent[max(one, other)] = min(one, other)
        else:
            self._made_of[one] = b

    def split(self, rows: Rows | None, sizes: Sequence[int]) -> list[Rows | None]:
        """The axes of these sizes that an axis of their product is reshaped into."""
        if rows is None:
            return [None] * len(sizes)
        if len(sizes) == 1:
            return [rows]
        first, rest = sizes[0], int(np.prod(sizes[1:]))
        if first == 1:
            return [None, *self.split(rows, sizes[1:])]
        if rest == 1:
            return [rows, *[None] * (len(sizes) - 1)]
        outer, inner = self._split(rows, first, rest)
        return [outer, *self.split(inner, sizes[1:])]

    def _split(self, rows: Rows, n: int, m: int) -> tuple[Rows | None, Rows | None]:
        """Rows of the n outer and the m inner positions."""
        rows = self.resolved(rows)
        position, _ = np.nonzero(rows)
        atoms = rows[rows > 0]
        # an atom that fills whole lines of the grid (n, m) belongs to an outer position
        outer = _whole_lines(atoms, position // m, m)
        inner = _whole_lines(atoms, position % m, n)
        left = ~np.isin(atoms, np.concatenate([outer, inner]))
        if left.any():
            new_outer, new_inner = self.fresh(n), self.fresh(m)
            others, where = atoms[left], position[left]
            once = len(np.unique(others)) == len(others) == len(np.unique(where))
            if not once:
                self.fix(others[:, None])
            else:
                grid = np.zeros(n * m, np.int64)
                grid[where] = others
                self.unify(
                    grid[:, None],
                    np.concatenate(
                        [np.repeat(new_outer, m, 0), np.tile(new_inner, (n, 1))], 1
                    ),
                )
                rows = self.resolved(rows)
                position, _ = np.nonzero(rows)
                atoms = rows[rows > 0]
                outer = _whole_lines(atoms, position // m, m)
                inner = _whole_lines(atoms, position % m, n)
        return (
            _gathered(atoms, position // m, outer, n),
            _gathered(atoms, position % m, inner, m),
        )

    def merge(self, axes: Sequence[tuple[int, Rows | None]]) -> Rows | None:
        """The axis that axes (size, rows) are flattened into."""
        if all(rows is None for _, rows in axes):
            return None
        merged = np.zeros((1, 1), np.int64)
        for size, rows in axes:
            rows = np.zeros((size, 1), np.int64) if rows is None else rows
            merged = np.concatenate(
                [np.repeat(merged, size, 0), np.tile(rows, (len(merged), 1))], 1
            )
        return self.resolved(merged)

    def _roots(self, atoms: Rows) -> Rows:
        roots = self._parent[atoms]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                return roots
            roots = above

    def _atoms(self, atom: int) -> frozenset[int]:
        """What an atom stands for; nothing where it is fixed."""
        while (above := int(self._parent[atom])) != atom:
            atom = above
        if atom == 0:
            return frozenset()
        made_of = self._made_of.get(atom)
        if made_of is None:
            return frozenset({atom})
        return frozenset().union(*map(self._atoms, made_of))


def _whole_lines(atoms: Rows, line: Rows, length: int) -> Rows:
    """Those of `atoms` that occur in all `length` positions of each line in which they occur."""
    if not len(atoms):
        return atoms
    keys, counts = np.unique(np.stack([atoms, line]), axis=1, return_counts=True)
    part = np.unique(keys[0][counts != length])
    return np.setdiff1d(atoms, part)


def _gathered(atoms: Rows, line: Rows, wanted: Rows, n: int) -> Rows | None:
    """Rows (n, k) of the wanted atoms by their line; None where there are none."""
    chosen = np.isin(atoms, wanted)
    pairs = np.unique(np.stack([line[chosen], atoms[chosen]]), axis=1)
    if not pairs.size:
        return None
    counts = np.bincount(pairs[0], minlength=n)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = np.zeros((n, counts.max()), np.int64)
    rows[pairs[0], np.arange(pairs.shape[1]) - starts[pairs[0]]] = pairs[1]
    return rows
