"""Which units stay: the most importance that a budget affords.

Legend
    g, n_g      a group, and how many of its units stay: the most important ones
    c           a chunk: units of one group that are removed together, the least important first;
                what stays is a multiple of a chunk's size, so that the first may be smaller
    V(c), S(c)  importance of a chunk; cost that its removal saves, all other groups as they are

It is a knapsack whose weights change with what is in it: a layer that has fewer inputs saves less
with each output. So the cost falls to its limit in rounds. In each round the chunks of least V/S
go, in the order of their group, until they save the round's part by the present S; then S is
computed anew (HALP, Shen et al., NeurIPS 2022, does the same between its prunings). At the end
chunks that still fit come back, and exchanges that gain importance are made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compress.channels.cost import Cost, Floats
from compress.channels.layout import Group, Keep

Counts = npt.NDArray[np.int64]
ROUNDS = 24
_EXCHANGES = 8


@dataclass(frozen=True)
class GroupRule:
    """What may become of a group.

    Attributes:
        least: units that stay at least.
        chunk: units that go together; so many, or a multiple, stay.
    """

    least: int
    chunk: int


class Choice:
    """The choice of what stays.

    Args:
        groups: of the model.
        rules: one a group.
        scores: importance of every unit (U,), at least 0.
        cost: what a cut model costs.
        keep: units that are there still; default: all.
        blocks: path of a residual block → its groups, all of which may go together; see
            `dropped`.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rules: Sequence[GroupRule],
        scores: Floats,
        cost: Cost,
        keep: Keep | None = None,
        blocks: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.blocks = dict(blocks or {})
        self.dropped: list[str] = []
        self._there = np.ones(len(groups))
        self.cost = cost
        self.num_units = len(scores)
        keep = np.ones(len(scores), bool) if keep is None else keep
        self.sizes = np.array([len(group.units) for group in groups])
        # the units of each group that are there, the least important first
        self.order = []
        for group in groups:
            units = group.units[keep[group.units]]
            self.order.append(units[np.argsort(scores[units], kind="stable")])
        self.now = np.array([len(units) for units in self.order])
        self.chunks = np.array([rule.chunk for rule in rules])
        self.first = np.where(
            self.now % self.chunks, self.now % self.chunks, self.chunks
        )
        spare = self.now - self.first - np.array([rule.least for rule in rules])
        self.most = np.where(spare < 0, 0, 1 + spare // self.chunks)
        self.gone = np.zeros(len(groups), int)
        # importance of the chunks of each group, in the order in which they go; inf at its end
        width = int(self.most.max(initial=0)) + 1
        self.value = np.full((len(groups), width), np.inf)
        self.totals = []
        for g, units in enumerate(self.order):
            sums = np.cumsum(np.concatenate([[0.0], scores[units]]))
            self.totals.append(sums)
            ends = self._removed(np.arange(self.most[g] + 1), g)
            self.value[g, : self.most[g]] = np.diff(sums[ends])

    def shares(self, gone: Counts) -> Floats:
        """Shares of units (B, G) that stay where `gone` (B, G) chunks go."""
        return (self.now - self._removed(gone)) / self.sizes * self._there

    def _removed(self, gone: Counts, group: int | None = None) -> Counts:
        """Units of which so many chunks are made, of all groups (…, G) or of one (…)."""
        which = slice(None) if group is None else group
        first, chunk = self.first[which], self.chunks[which]
        return np.where(gone > 0, first + (gone - 1) * chunk, 0)

    def cost_now(self) -> float:
        """The cost of what stays."""
        return float(self.cost.of(self.shares(self.gone[None]))[0])

    def to(self, limit: float, rounds: int = ROUNDS) -> Keep:
        """Remove chunks until the cost is at most `limit`, or nothing more may go.

        Returns:
            The units that stay (U,).
        """
        begin = self.cost_now()
        for i in range(rounds):
            aim = begin + (limit - begin) * (i + 1) / rounds
            while (cost := self.cost_now()) > aim:
                bound = self._remove(cost - aim)
                if not self._drop(bound) and bound == np.inf:
                    return self.keep()
        self._improve(limit)
        return self.keep()

    def keep(self) -> Keep:
        """The units that stay (U,)."""
        keep = np.zeros(self.num_units, bool)
        for units, removed in zip(self.order, self._removed(self.gone), strict=True):
            keep[units[removed:]] = True
        return keep

    def _drop(self, bound: float) -> bool:
        """Drop the blocks that are worth less than `bound` of importance for what they save;
        True where one was.
        """
        before = len(self.dropped)
        for path in [path for path in self.blocks if path not in self.dropped]:
            groups = list(self.blocks[path])
            removed = self._removed(self.gone)
            left = sum(self.totals[g][-1] - self.totals[g][removed[g]] for g in groups)
            now = self.cost_now()
            self._there[groups] = 0
            saved = now - self.cost_now()
            if saved > 0 and left / saved < bound:
                self.dropped.append(path)
                self.most[groups] = self.gone[groups]
            else:
                self._there[groups] = 1
        return len(self.dropped) > before

    def _savings(self) -> Floats:
        """What the next chunk of each group saves (G,); tiny where nothing may go."""
        each = self.gone + np.eye(len(self.gone), dtype=int)
        each = np.minimum(each, self.most)
        costs = self.cost.of(self.shares(np.concatenate([self.gone[None], each])))
        return np.maximum(costs[0] - costs[1:], 1e-12 * max(costs[0], 1e-30))

    def _remove(self, wanted: float) -> float:
        """Remove the chunks of least V/S that save `wanted` by the present S, at least one.

        Returns:
            The largest V/S of what went; inf where nothing could.
        """
        saved = self._savings()
        columns = np.arange(self.value.shape[1])
        left = columns >= self.gone[:, None]
        ratio = np.where(left, self.value / saved[:, None], -np.inf)
        # a chunk does not go before those that come before it in its group
        ratio = np.maximum.accumulate(ratio, axis=1)
        ratio = np.where(left & (columns < self.most[:, None]), ratio, np.inf)
        order = np.argsort(ratio, axis=None, kind="stable")
        order = order[np.isfinite(ratio.reshape(-1)[order])]
        if not len(order):
            return np.inf
        total = np.cumsum(saved[order // len(columns)])
        count = int(np.searchsorted(total, wanted * (1 - 1e-9))) + 1
        self.gone += np.bincount(order[:count] // len(columns), minlength=len(saved))
        return float(ratio.reshape(-1)[order[:count]].max())

    def _improve(self, limit: float) -> None:
        """Put back what fits, then exchange one chunk for another where that is worth more."""
        self._put_back(limit)
        for _ in range(_EXCHANGES):
            if not self._exchange(limit):
                return
            self._put_back(limit)

    def _last_values(self) -> Floats:
        """Importance of the chunk that went last in each group (G,); -inf where none did."""
        at = np.maximum(self.gone - 1, 0)
        back = (self.gone > 0) & (self._there > 0)
        return np.where(back, self.value[np.arange(len(at)), at], -np.inf)

    def _put_back(self, limit: float) -> None:
        while True:
            back = self.gone - np.eye(len(self.gone), dtype=int)
            fits = self.cost.of(self.shares(np.maximum(back, 0))) <= limit
            worth = np.where(fits, self._last_values(), -np.inf)
            best = int(worth.argmax())
            if not worth[best] > 0:
                return
            self.gone[best] -= 1

    def _exchange(self, limit: float) -> bool:
        """Put one chunk back and take another; True where that gained importance."""
        count = len(self.gone)
        at = np.arange(count)
        back_value = self._last_values()
        next_value = self.value[at, np.minimum(self.gone, self.value.shape[1] - 1)]
        next_value = np.where(self.gone < self.most, next_value, np.inf)
        gain = back_value[:, None] - next_value
        np.fill_diagonal(gain, -np.inf)
        pairs = np.argwhere(gain > 0)
        if not len(pairs):
            return False
        pairs = pairs[np.argsort(-gain[pairs[:, 0], pairs[:, 1]], kind="stable")][:64]
        tries = np.repeat(self.gone[None], len(pairs), 0)
        tries[np.arange(len(pairs)), pairs[:, 0]] -= 1
        tries[np.arange(len(pairs)), pairs[:, 1]] += 1
        fits = self.cost.of(self.shares(tries)) <= limit
        if not fits.any():
            return False
        self.gone = tries[int(fits.argmax())]
        return True
