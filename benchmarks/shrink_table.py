"""Rows of `benchmarks/shrink.py`, and in how many goals `shrink` is ahead."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sweeps.shrink.request import Goal, goal

OURS = "shrink"
USE_ALL_TIME = (OURS, "torch_pruning")
"""Ways that look at the goal and are given seconds.

The others take what they need, and make one file for all goals.
"""
LEVEL = 0.02
"""Costs that differ by less, as a share of the greater one, count as level."""

Standing = Literal["ahead", "level", "behind"]
Place = tuple[str, str, int]
"""Pair, goals in words and seed: what the ways are compared in."""


@dataclass(frozen=True)
class Row:
    """What a way made of a goal.

    Attributes:
        goals: quantity → limit, as options of `sweeps shrink` have it; the first is compared.
        seconds: that the way took.
        limit_seconds: that it was given, where it uses all of them; else None.
        met: whether cost and validation accuracy keep the goal.
        ms: of one image on one thread; source_ms was measured in turns with it.
        runtime: that executed the file; the source's is OpenVINO.
    """

    pair: str
    goals: dict[str, str]
    seed: int
    way: str
    seconds: int
    limit_seconds: int | None
    met: bool
    ms: float
    source_ms: float
    bytes: int
    source_bytes: int
    val_accuracy: float
    source_val_accuracy: float
    test_accuracy: float
    source_test_accuracy: float
    runtime: str = "openvino"

    @property
    def place(self) -> Place:
        return self.pair, goals_said(self.goals), self.seed

    @property
    def cost(self) -> float:
        """Of the goal's quantity, as a multiple of the source's."""
        if next(iter(self.goals)) == "bytes":
            return self.bytes / self.source_bytes
        return self.ms / self.source_ms


def wanted(goals: dict[str, str]) -> list[Goal]:
    """The goals of a pair, parsed.

    Raises:
        SpecError: one is no amount.
        ValueError: one of a quantity that this benchmark does not measure.
    """
    for quantity in goals:
        if quantity not in ("latency", "bytes"):
            raise ValueError(
                f"goals: {quantity} is not measured; latency and bytes are"
            )
    return [goal(quantity, text) for quantity, text in goals.items()]  # type: ignore[arg-type]


def goals_said(goals: dict[str, str]) -> str:
    return ", ".join(f"{quantity} {limit}" for quantity, limit in goals.items())


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def append(path: Path, row: Row) -> None:
    with path.open("a") as out:
        out.write(json.dumps(asdict(row)) + "\n")


def limit_seconds(way: str, beside: list[Row], pairs_seconds: float) -> float | None:
    """What a way has for a goal: as long as `shrink` took, where that is known.

    Args:
        beside: rows of the same goal and seed.
    """
    if way not in USE_ALL_TIME:
        return None
    if way == OURS:
        return pairs_seconds
    ours = [row.seconds for row in beside if row.way == OURS]
    return float(ours[0]) if ours else pairs_seconds


def standing(ours: Row, theirs: Row) -> Standing:
    """How one stands beside another: ahead where it alone meets the goal, or costs less."""
    if ours.met != theirs.met:
        return "ahead" if ours.met else "behind"
    near = abs(ours.cost - theirs.cost) <= LEVEL * max(ours.cost, theirs.cost)
    if near or not ours.met:
        return "level"
    return "ahead" if ours.cost < theirs.cost else "behind"


def against_all(standings: Iterable[Standing]) -> Standing:
    """Beside several: ahead of every one, behind one at least, or level with the best."""
    found = set(standings)
    if "behind" in found:
        return "behind"
    return "ahead" if found == {"ahead"} else "level"


def by_place(rows: Iterable[Row]) -> dict[Place, dict[str, Row]]:
    """Place → way → its row, in the order of the rows."""
    places: dict[Place, dict[str, Row]] = {}
    for row in rows:
        places.setdefault(row.place, {})[row.way] = row
    return places


def counted(rows: Iterable[Row]) -> list[str]:
    """How many goals each way keeps, and in how many `shrink` is ahead of the others: two lines."""
    beside: dict[str, list[Standing]] = {}
    overall: list[Standing] = []
    kept: dict[str, list[bool]] = {}
    for ways in by_place(rows).values():
        for way, row in ways.items():
            kept.setdefault(way, []).append(row.met)
        ours = ways.pop(OURS, None)
        if ours is None or not ways:
            continue
        found = {way: standing(ours, theirs) for way, theirs in ways.items()}
        overall.append(against_all(found.values()))
        for way, each in found.items():
            beside.setdefault(way, []).append(each)
    met = ", ".join(f"{way} {sum(each)} of {len(each)}" for way, each in kept.items())
    single = "; ".join(f"{way}: {_tally(each)}" for way, each in beside.items())
    return [
        f"goals kept: {met}",
        f"{OURS} beside all others, of {len(overall)} goals: {_tally(overall)} ({single})",
    ]


def _tally(standings: list[Standing]) -> str:
    kinds: tuple[Standing, ...] = ("ahead", "level", "behind")
    return ", ".join(f"{kind} in {standings.count(kind)}" for kind in kinds)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown, a line for each goal and a column for each way, and the counts.

    A cell is cost over the source's, and points of accuracy gained on the validation part (on the
    test part); bold where the goal is kept. Seconds are those of `shrink`.
    """
    ways = list(dict.fromkeys([OURS, *(row.way for row in rows)]))
    heads = ["pair", "goal", "seed", *ways, "seconds"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for (pair, goals, seed), found in sorted(by_place(rows).items()):
        cells = [_cell(found[way]) if way in found else "–" for way in ways]
        seconds = f"{found[OURS].seconds:,}" if OURS in found else "–"
        lines.append(_line([pair, goals, str(seed), *cells, seconds]))
    return [*lines, "", *counted(rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row) -> str:
    val = 100 * (row.val_accuracy - row.source_val_accuracy)
    test = 100 * (row.test_accuracy - row.source_test_accuracy)
    said = f"{row.cost:.3f}, {val:+.1f} ({test:+.1f})".replace("-", "−")
    return f"**{said}**" if row.met else said
