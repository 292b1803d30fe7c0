"""The table of `docs/models.md`, from what `model_matrix.py` recorded."""

from collections.abc import Mapping
from typing import Any, Protocol

FENCE = ("<!-- matrix -->", "<!-- end of the matrix -->")
SIGNS = {"works": "✓", "refuses": "–", "broken": "✗"}


class Column(Protocol):
    """What the page needs of a column of `model_matrix.COLUMNS`."""

    title: str
    tells: str


def page(text: str, rows: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """The page with everything between its fences written anew."""
    before, rest = text.split(FENCE[0])
    after = rest.split(FENCE[1])[1]
    return f"{before}{FENCE[0]}\n{matrix(rows, columns)}\n{FENCE[1]}{after}"


def matrix(rows: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Counts, a table for each kind of family, what the columns show, and the refusals."""
    notes: dict[str, int] = {}
    kinds = list(dict.fromkeys(row["kind"] for row in rows.values()))
    tables = [
        _table(
            kind, {n: r for n, r in rows.items() if r["kind"] == kind}, columns, notes
        )
        for kind in kinds
    ]
    return "\n\n".join(
        [_counts(rows, columns), *tables, _legend(columns), _refusals(notes)]
    )


def _counts(rows: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    cells = [cell for row in rows.values() for cell in row["cells"].values()]
    counts = {sign: sum(cell[0] == sign for cell in cells) for sign in SIGNS}
    untried = len(rows) * len(columns) - len(cells)
    return (
        f"{len(rows)} families × {len(columns)} columns: {counts['works']} cells work,"
        f" {counts['refuses']} are refused, {counts['broken']} are broken"
        + (f", {untried} are yet to be tried (?)." if untried else ".")
    )


def _table(
    kind: str,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    notes: dict[str, int],
) -> str:
    lines = [
        f"### {kind}",
        "",
        "| family | tried as | " + " | ".join(c.title for c in columns.values()) + " |",
        "|---|---|" + ":-:|" * len(columns),
    ]
    for name, row in rows.items():
        cells = [_cell(row["cells"].get(column), row, notes) for column in columns]
        lines.append(f"| {name} | `{row['model']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(cell: list[str] | None, row: Mapping[str, Any], notes: dict[str, int]) -> str:
    if cell is None:
        return "?"
    status, reason = cell
    if status == "works":
        return SIGNS[status]
    # one note for all models that are refused alike
    reason = reason.replace(row["model"], "MODEL")
    number = notes.setdefault(reason, len(notes) + 1)
    return f"{SIGNS[status]} [{number}](#refusals)"


def _legend(columns: Mapping[str, Any]) -> str:
    lines = ["### What a ✓ has shown", "", "| column | shown |", "|---|---|"]
    lines += [f"| {c.title} | {c.tells} |" for c in columns.values()]
    return "\n".join(lines)


def _refusals(notes: Mapping[str, int]) -> str:
    lines = [
        "### Refusals",
        "",
        "As `sweeps validate` or `sweeps export` says them:",
        "",
    ]
    return "\n".join(
        lines + [f"{number}. {reason}" for reason, number in notes.items()]
    )
