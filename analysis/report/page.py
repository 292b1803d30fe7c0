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
from dataclasses import dataclass
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
    "report_trial.js",
    "report_predictions.js",
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
    return assembled(content_of(run, compared))


@dataclass(frozen=True)
class Content:
    """What a page shows of a run.

    Attributes:
        title: what readers call the run.
        parts: HTML by the names of the template's gaps.
        data: what the scripts draw, as JSON.
        has_depth: whether they draw in three dimensions too.
    """

    title: str
    parts: dict[str, str]
    data: str
    has_depth: bool


def content_of(
    run: Run, compared: Comparison | None = None, is_live: bool = False
) -> Content:
    """What the page of a run shows; a live page asks its server for the predictions of a trial."""
    return Content(
        run.heading,
        words.parts(run, compared, is_live),
        json_for_script(plots.page_data(run, compared, not is_live)),
        len(run.objectives) > 2,
    )


def assembled(content: Content, secret: str | None = None, version: str = "") -> str:
    """The page as HTML.

    Args:
        secret: where a server answers the page (`sweeps serve`), what the page must send with a
            wish; None for a page that stands alone.
        version: by which the server calls this content.
    """
    is_live = secret is not None
    scripts = [plotly_script(content.has_depth), page_script(is_live)]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    live = words.live_section(secret, version) if secret is not None else ""
    parts = {
        "title": escape(content.title),
        "policy": (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';"
            " img-src data: blob:; base-uri 'none'; form-action 'none'"
            + ("; connect-src 'self'" if is_live else "")
        ),
        "style": _asset("report.css"),
        "plotly": scripts[0],
        "script": scripts[1],
        "data": content.data,
        "live": live,
        **content.parts,
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


def page_script(is_live: bool = False) -> str:
    """The page's own script."""
    names = [*_SCRIPTS, "report_live.js"] if is_live else _SCRIPTS
    return "\n".join(_asset(name) for name in names)


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
