"""The report: one self-contained HTML file that opens from disk, in light and dark, and
asks nothing of a network.

Everything in a run folder is untrusted: text is escaped, data is inert JSON, and a content
security policy lets only the scripts of this package run, each named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison, compare_groups
from analysis.contract import REPORT_FILE
from analysis.files import write_text
from analysis.loading import loaded
from analysis.merging import RUN_PARAMETER, merge
from analysis.report import data as plots
from analysis.report import words
from analysis.report.html import escape
from analysis.run import Run

_SCRIPTS = (
    "report.js",
    "report_numbers.js",
    "report_where.js",
    "report_parallel.js",
    "report_plots.js",
    "report_front.js",
    "report_more.js",
    "report_layers.js",
    "report_table.js",
)

_PLOTLY = "plotly-cartesian.min.js"
"""Plotly's own bundle of the plots in two dimensions (npm: plotly.js-cartesian-dist-min, MIT)."""


def write_report(
    path: str | Path | Run | Sequence[str | Path | Run],
    out: str | Path | None = None,
    by: str | None = None,
) -> Path:
    """Write the report of one run folder, or of several compared; gives the file's path.

    Args:
        path: a run folder or a loaded run, or several.
        out: the file; by default `<run>/report.html`, needed for several.
        by: compare the configurations by this parameter, for example `init`; several runs are
            compared by `run`.

    Raises ValueError where a path is not a run folder, `out` is missing, the runs share no
    objective, or there is no parameter `by`; OSError where the report cannot be written.
    """
    paths = [path] if isinstance(path, str | Path | Run) else list(path)
    if len(paths) > 1 and out is None:
        raise ValueError(
            "a report of several runs belongs to none of them: give out, its file"
        )
    runs = [loaded(p) for p in paths]
    run = runs[0] if len(runs) == 1 else merge(runs)
    found = compare_groups(run, by or RUN_PARAMETER) if by or run.members else None
    target = Path(out) if out is not None else run.path / REPORT_FILE
    text = render(run, found)
    write_text(target, text)
    return target


def render(run: Run, compared: Comparison | None = None) -> str:
    """The report of a run (or a merged one, with its comparison) as the text of an HTML page."""
    scripts = [plotly_script(len(run.objectives) > 2), page_script()]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    parts = {
        "title": escape(run.name),
        "policy": (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';"
            " img-src data: blob:; base-uri 'none'; form-action 'none'"
        ),
        "style": _asset("report.css"),
        "plotly": scripts[0],
        "script": scripts[1],
        "data": json_for_script(plots.page_data(run, compared)),
        **words.parts(run, compared),
    }
    # One pass, so that what is put in is never searched for further gaps.
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], _asset("report.html")
    )


def json_for_script(data: Any) -> str:
    """Strict JSON that is safe inside a script element: no `<`, `>`, `&`, U+2028 or U+2029 remains.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    return (
        resources.files("analysis.report")
        .joinpath("assets", name)
        .read_text(encoding="utf-8")
    )


def page_script() -> str:
    """The page's own script."""
    return "\n".join(_asset(name) for name in _SCRIPTS)


def plotly_script(has_depth: bool = False) -> str:
    """Plotly's script, with the line ends that the browser's parser gives it, so that its
    hash holds.

    Args:
        has_depth: whether it draws in three dimensions too, at three times the size.
    """
    if has_depth:
        from plotly.offline import get_plotlyjs

        text = str(get_plotlyjs())
    else:
        text = _asset(_PLOTLY)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    assert not re.search("</script|<!--", text), "it would end its own script element"
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode(
        "ascii"
    )
