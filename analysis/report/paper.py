"""What a paper needs of a run: figures as vectors, and its front as LaTeX and Markdown tables, with
standard deviations or measured quartiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis import summary
from analysis.files import write_text
from analysis.numbers import THIN_SPACE, label, plain, plus_minus
from analysis.report.figures import write_figures
from analysis.report.markdown import code
from analysis.run import Run

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "µ": r"\textmu{}",
    THIN_SPACE: r"\,",
    "\u00a0": "~",
} | {char: "\\" + char for char in "&%$#_{}"}


def write_paper(run: Run, folder: str | Path, by: str | None = None) -> list[Path]:
    """Write `front.tex`, `front.md` and the figures of `write_figures` as PDF and SVG.

    The tables have a row for the baseline and one for each configuration on the front, with the
    same digits as `sweeps front`. Raises ValueError where matplotlib is not installed (the tables
    are written before), OSError where a file cannot be written.
    """
    target = Path(folder)
    heads, rows = front_table(run)
    written = [target / "front.tex", target / "front.md"]
    write_text(written[0], as_latex(heads, rows))
    write_text(written[1], _as_markdown(heads, rows))
    return [*written, *write_figures(run, target, by, formats=("pdf", "svg"))]


def front_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of text: the trial, objectives and the same on the test set with their
    intervals, parameters.
    """
    rows = run.front()
    parameters = [p for p in run.parameters if f"config/{p}" in rows]
    names: list[str] = []
    found: list[tuple[str, dict[str, str], list[str]]] = []
    if run.baseline is not None:
        units = {o.metric: run.metrics.unit(o.metric) for o in run.objectives}
        values = {
            name: plus_minus(run.baseline.metrics[name], None, unit)
            for name, unit in units.items()
            if name in run.baseline.metrics
        }
        found.append(("baseline", values, ["" for _ in parameters]))
        names += values
    for _, row in rows.iterrows():
        figures = dict(summary.figures_of(run, row))
        names += figures
        values_of = [row[f"config/{name}"] for name in parameters]
        found.append((str(row["trial_id"]), figures, [plain(v) for v in values_of]))
    names = list(dict.fromkeys(names))
    heads = ["trial", *(_head(run, name) for name in names), *parameters]
    return heads, [
        [trial, *(figures.get(name, "") for name in names), *values]
        for trial, figures, values in found
    ]


def _head(run: Run, name: str) -> str:
    """A metric's name; its unit stands in the cells where it is a share."""
    unit = run.metrics.unit(name)
    return name if unit == "fraction" else label(name, unit)


def as_latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` with the rules of the package booktabs."""
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        _latex_row(heads),
        r"\midrule",
        *map(_latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ("".join(_LATEX.get(char, char) for char in cell) for cell in cells)
    return " & ".join(escaped) + r" \\"


def _as_markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(code(head) for head in heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
    ]
    lines += ["| " + " | ".join(cell or "–" for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
