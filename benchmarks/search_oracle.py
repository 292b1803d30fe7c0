"""The fewest seconds in which a search could find 95 % of a recorded table's hypervolume.

OMP_NUM_THREADS=1 python benchmarks/search_oracle.py [--tables …] [--limit 120]

An oracle knows the table beforehand, and trains only what it wants to have found; no search that
has to learn from its trials takes less. Two answers: the greedy one takes the configuration with
the most hypervolume per second, again and again; the least is that of an integer program, found
within `--limit` seconds, or between the bounds that were reached in them. Both count the stages as
the replays do, once for each prefix. Beside them their share of the seconds that the samplers
alone took in results/search-replay.parquet, and how the least is made up.

The program, for two objectives, both to be minimised after `to_costs`: configurations in the order
of the first objective are the nodes of a graph, an edge leads to any that is worse in the first
and better in the second, and a path is a front. Its hypervolume is the sum of its edges'
rectangles, its cost that of measuring its nodes and of the prefixes that they need.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix
from search_replay import SHARE, TABLES

from analysis import pareto
from analysis.contract import Objective
from sweeps.search.prefixes import Key, Prefixes
from sweeps.search.simulate import RecordedTable
from sweeps.space.sweep import Sweep


class Recorded:
    """A table as an oracle sees it.

    Attributes:
        costs: (n, 2) objectives to be minimised.
        keys: of each configuration, the prefix that each entry of its pipeline ends.
        seconds: (n, entries + 1) of the entries with an empty cache; the last is never cached.
        reference: (2,) point of the hypervolume, as `costs`.
        needed: hypervolume that is to be found.
    """

    def __init__(self, sweep: Sweep, table: RecordedTable) -> None:
        prefixes, goals = Prefixes(sweep.space), sweep.spec.objectives
        self.costs = pareto.to_costs(table.values, goals)
        self.keys = [prefixes.keys(draw) for draw in table.draws]
        self.seconds = np.array(
            [prefixes.by_entry(table.seconds_of(row)) for row in range(len(self.keys))]
        )
        reference = pareto.reference_point(table.values, goals)
        self.reference = pareto.to_costs(reference[None], goals)[0]
        self._goals = [Objective(o.metric, "min") for o in goals]
        self.needed = SHARE * self.volume([*range(len(self.keys))])

    def volume(self, rows: list[int]) -> float:
        return pareto.hypervolume(self.costs[rows], self._goals, self.reference)

    def price(self, row: int, paid: set[Key]) -> float:
        """Seconds of a configuration where these prefixes are cached."""
        new = [key not in paid for key in self.keys[row]]
        return float(self.seconds[row, :-1][new].sum() + self.seconds[row, -1])


def greedy(table: Recorded) -> float:
    """Seconds of the oracle that never looks further than its next configuration."""
    chosen: list[int] = []
    paid: set[Key] = set()
    spent = volume = 0.0
    while volume < table.needed:
        gains = [
            min(table.volume([*chosen, row]), table.needed) - volume
            for row in range(len(table.keys))
        ]
        prices = [table.price(row, paid) for row in range(len(table.keys))]
        best = int(np.argmax(np.array(gains) / np.maximum(prices, 1e-3)))
        spent += prices[best]
        chosen.append(best)
        paid.update(table.keys[best])
        volume = table.volume(chosen)
    return spent


Edge = tuple[int, int, float]
"""From a node to another, and the hypervolume between them; -1 is the start of all paths, the
number of nodes their end.
"""
Row = dict[int, float]
"""One line of the program's matrix: variable → its coefficient."""
Rule = tuple[Row, float, float]
"""Such a line, and the least and the most that it may give."""


def least(table: Recorded, limit: float) -> tuple[float, float, int]:
    """Seconds of the best path found, a bound below that of all, and the path's length."""
    order = _nodes(table)
    edges = _edges(table.costs[order], table.reference)
    # a key names its prefix, and the place tells apart where nothing is searched in between
    prefixes = {
        (place, key): table.seconds[row, place]
        for row in order
        for place, key in enumerate(table.keys[row])
    }
    own = [*table.seconds[order, -1], 0.0]  # never cached; the end costs nothing
    price = np.array([*(own[to] for _, to, _ in edges), *prefixes.values()])
    column = {prefix: len(edges) + i for i, prefix in enumerate(prefixes)}
    rows, low, top = zip(*_rules(table, order, edges, column), strict=True)
    found = milp(
        price,
        constraints=LinearConstraint(_matrix(rows, len(price)), low, top),
        integrality=np.arange(len(price)) < len(edges),
        bounds=Bounds(0, 1),
        options={"time_limit": limit},
    )
    if found.x is None:
        return np.inf, float(found.mip_dual_bound or 0.0), 0
    return found.fun, found.mip_dual_bound, int(found.x[: len(edges)].sum().round()) - 1


def _nodes(table: Recorded) -> np.ndarray:
    """Configurations that dominate the reference, by the first objective and then the second."""
    within = np.flatnonzero((table.costs < table.reference).all(axis=1))
    return within[np.lexsort(table.costs[within].T[::-1])]


def _edges(costs: np.ndarray, reference: np.ndarray) -> list[Edge]:
    """All edges between nodes of these costs (n, 2), and from the start and to the end."""
    end = len(costs)
    edges = [(-1, node, 0.0) for node in range(end)]
    wide = reference[0] - costs[:, 0]
    high = reference[1] - costs[:, 1]
    for node in range(end):
        edges.append((node, end, wide[node] * high[node]))
        later = np.flatnonzero(
            (costs[:, 0] > costs[node, 0]) & (costs[:, 1] < costs[node, 1])
        )
        for other in later:
            edges.append((node, other, (wide[node] - wide[other]) * high[node]))
    return edges


def _matrix(rows: Sequence[Row], columns: int) -> csr_matrix:
    values = [value for row in rows for value in row.values()]
    at_row = [i for i, row in enumerate(rows) for _ in row]
    at_column = [column for row in rows for column in row]
    return csr_matrix((values, (at_row, at_column)), shape=(len(rows), columns))


def _rules(
    table: Recorded,
    order: np.ndarray,
    edges: list[Edge],
    column: dict[tuple[int, Key], int],
) -> Iterator[Rule]:
    """One path, every prefix of its nodes paid, and enough hypervolume."""
    yield {i: 1.0 for i, (here, _, _) in enumerate(edges) if here < 0}, 1.0, 1.0
    into, out = _by_node(len(order), edges)
    for node, row in enumerate(order):
        # as many edges leave a node as lead to it
        balance = dict.fromkeys(into[node], 1.0) | dict.fromkeys(out[node], -1.0)
        yield balance, 0.0, 0.0
        for place, key in enumerate(table.keys[row]):
            if table.seconds[row, place] > 0:
                used = dict.fromkeys(into[node], -1.0)
                yield used | {column[place, key]: 1.0}, 0.0, np.inf
    shares = {i: area / table.needed for i, (_, _, area) in enumerate(edges)}
    yield shares, 1.0 - 1e-9, np.inf


def _by_node(nodes: int, edges: list[Edge]) -> tuple[list[list[int]], list[list[int]]]:
    """Numbers of the edges that lead to each node, and of those that leave it."""
    into: list[list[int]] = [[] for _ in range(nodes)]
    out: list[list[int]] = [[] for _ in range(nodes)]
    for index, (here, to, _) in enumerate(edges):
        if here >= 0:
            out[here].append(index)
        if to < nodes:
            into[to].append(index)
    return into, out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument(
        "--replays", type=Path, default=Path("results/search-replay.parquet")
    )
    options = parser.parse_args()
    replays = pd.read_parquet(options.replays)
    alone = replays[replays["cost"] == "none"]
    means = alone.groupby(["table", "sampler"])["seconds"].mean()
    for name in options.tables:
        sweep, rows = TABLES[name]()
        table = Recorded(sweep, RecordedTable(rows, sweep.space, sweep.spec))
        near = greedy(table)
        found, bound, count = least(table, options.limit)
        best = min(near, found)
        print(
            f"{name}: greedy {near:.1f} s; least {found:.1f} s in {count}"
            f" configurations, not below {bound:.1f} s"
        )
        for sampler, seconds in means[name].sort_values().items():
            print(f"  {best / seconds:.2f} of {sampler} alone ({seconds:.1f} s)")


if __name__ == "__main__":
    main()
