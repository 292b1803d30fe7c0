"""The report: one self-contained HTML file that opens from disk, in light and dark, and asks nothing of a network.

Everything in a run folder is untrusted: text is escaped, data is inert JSON, and a content security policy lets only
the scripts of this package run, each named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import plots, summary
from analysis.load import Run, atomic_write, load

_SCRIPTS = ("report.js", "report_parallel.js", "report_plots.js", "report_table.js")


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run folder `path` to `out`, by default `<run>/report.html`; gives the file's path.

    Raises ValueError where `path` is not a run folder, OSError where the report cannot be written.
    """
    run = load(path)
    target = Path(out) if out is not None else run.path / "report.html"
    text = render(run)
    atomic_write(target, lambda file: file.write(text.encode("utf-8")))
    return target


def render(run: Run) -> str:
    """The report of a run as the text of an HTML page."""
    scripts = [_plotly(), "\n".join(_asset(name) for name in _SCRIPTS)]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    parts = {
        "title": escape(run.name),
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "style": _asset("report.css"),
        "plotly": scripts[0],
        "script": scripts[1],
        "data": json_for_script(plots.page_data(run)),
        "meta": _meta(run),
        "summary": _summary(run),
        "tiles": _tiles(run),
        "picks": _picks(run),
        "stages": _stages(run),
        "failures": _failures(run),
        "problems": _problems(run),
        "reproduce": _reproduce(run),
    }
    # One pass, so that what is put in is never searched for further places.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], _asset("report.html"))


def escape(value: Any) -> str:
    """Text for HTML content and quoted attributes, without lone surrogates."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def json_for_script(data: Any) -> str:
    """Strict JSON that is safe inside a script element: no `<`, `>`, `&`, U+2028 or U+2029 remains.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    return resources.files("analysis").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Plotly's script, with the line ends that the browser's parser gives it, so that its hash holds."""
    text = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    assert not re.search("</script|<!--", text), "plotly.min.js would end its own script element"
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _meta(run: Run) -> str:
    created = pd.to_datetime(run.created, errors="coerce", utc=True)
    items = [] if pd.isna(created) else [f"{created:%-d %B %Y, %H:%M} UTC"]
    devices = run.trials["device"].dropna().unique()
    items += [escape(device) for device in devices[:2]] + ([f"{len(devices) - 2} more"] if len(devices) > 2 else [])
    items += [f"seed {run.seed}"] if run.seed is not None else []
    return " <i>·</i> ".join(f"<span>{item}</span>" for item in items)


def _counts(status: dict[str, int]) -> str:
    words = [f"{count} {name}" for name, count in status.items()]
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else "none"


def _values(run: Run, row: pd.Series) -> list[tuple[str, str]]:
    """Objectives of a trial, then its accuracy on the test set, as name and text."""
    names = [o.metric for o in run.objectives]
    if "metric/test_accuracy" in row.index and "test_accuracy" not in names:
        names.append("test_accuracy")
    known = [(name, row[f"metric/{name}"]) for name in names]
    return [(name, summary.quantity(float(v), name)) for name, v in known if pd.notna(v) and not isinstance(v, str)]


def _summary(run: Run) -> str:
    total = summary.totals(run)
    if not total["trials"]:
        return "<p>No trial has been recorded yet.</p>"
    trials = "trial" if total["trials"] == 1 else "trials"
    lines = [f"<b>{total['trials']} {trials}</b>: {escape(_counts(total['status']))}."]
    goals = [f"{'low' if o.mode == 'min' else 'high'} <b>{escape(o.metric)}</b>" for o in run.objectives]
    if total["front"] and len(goals) > 1:
        number = "One offers a" if total["front"] == 1 else f"{total['front']} of them are on the front, each a"
        lines.append(f"{number} trade of {' against '.join(goals)} that no other trial beats.")
    elif not total["front"]:
        lines.append("No complete trial has finite objectives within the bounds yet, so there is no front.")
    best = run.best()
    for index, objective in enumerate(run.objectives[:1] if len(best) else []):
        word = "lowest" if objective.mode == "min" else "highest"
        cost = [f"{escape(name)} {value}" for name, value in _values(run, best.iloc[index])]
        rest = f", at {', '.join(cost[1:])}" if cost[1:] else ""
        lines.append(
            f"The {word} {escape(objective.metric)} is that of trial {escape(best.iloc[index]['trial_id'])}: {cost[0]}{rest}."
        )
    saved = total["seconds_saved"]
    spent = f"The trials took {summary.duration(total['seconds'])}"
    share = 100 * saved / (saved + total["seconds"]) if saved else 0
    lines.append(
        f"{spent}; the stage cache saved {summary.duration(saved)} more ({share:.0f} %)." if saved else f"{spent}."
    )
    return f"<p>{' '.join(lines)}</p>"


def _tiles(run: Run) -> str:
    total = summary.totals(run)
    done = total["status"].get("complete", 0)
    tiles = [
        ("Trials", str(total["trials"]), f"{done} complete"),
        ("On the front", str(total["front"]), f"of {done} complete"),
        ("Time spent", summary.duration(total["seconds"]), "all trials together"),
        ("Saved by the cache", summary.duration(total["seconds_saved"]), "stages not run again"),
    ]
    body = "".join(
        f"<div class='tile'><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles
    )
    return f"<dl class='tiles'>{body}</dl>"


def _picks(run: Run) -> str:
    words = {"min": "lowest", "max": "highest"}
    titles = {"knee": "knee"} | {f"best {o.metric}": f"{words[o.mode]} {o.metric}" for o in run.objectives}
    best = run.best()
    cards = []
    # A trial that is picked twice is shown once.
    for trial_id, rows in best.groupby("trial_id", sort=False):
        title = escape(", ".join(titles[str(pick)] for pick in rows.index))
        knee = "<p class='note'>The best compromise: farthest from the line between the front's ends.</p>"
        chosen = [(p, rows.iloc[0].get(f"config/{p}")) for p in run.params]
        config = [f"{escape(p)} <b>{escape(_plain(v))}</b>" for p, v in chosen if v is not None and pd.notna(v)]
        values = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in _values(run, rows.iloc[0]))
        cards.append(
            f"<article class='pick'><header><h3>{title}</h3>{_link(trial_id, f'trial {trial_id}')}</header><dl>{values}</dl>"
            f"{knee if 'knee' in rows.index else ''}<p class='config'>{', '.join(config)}</p></article>"
        )
    return f"<div class='picks'>{''.join(cards)}</div>" if cards else ""


def _link(trial_id: Any, text: Any) -> str:
    """A button that marks a trial in the plots and the table."""
    return f"<button type='button' class='link' data-trial='{escape(trial_id)}'>{escape(text)}</button>"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stages(run: Run) -> str:
    table = summary.stage_table(run)
    if table.empty:
        return ""
    top = max(float((table["seconds"] + table["saved"]).max()), 1e-9)
    rows = []
    for row in table.fillna({"name": "", "stage": "", "phase": ""}).to_dict("records"):
        method = "" if row["name"] == row["stage"] else f" <small>{escape(row['stage'])}</small>"
        width = (100 * row["seconds"] / top, 100 * row["saved"] / top)
        bar = f"<span class='bar'><i style='width:{width[0]:.2f}%'></i><u style='width:{width[1]:.2f}%'></u></span>"
        rows.append(
            f"<tr><th scope='row'>{escape(row['name'])}{method}</th><td>{escape(row['phase'])}</td><td class='n'>{row['runs']}</td>"
            f"<td class='n'>{row['hits']}</td><td class='n'>{summary.duration(row['seconds'])}</td>"
            f"<td class='n'>{summary.duration(row['saved']) if row['saved'] else '–'}</td><td class='wide'>{bar}</td></tr>"
        )
    head = "<th>Stage</th><th>Phase</th><th class='n'>Runs</th><th class='n'>Hits</th><th class='n'>Spent</th>"
    head += "<th class='n'>Saved</th><th class='wide'><span class='key'><i></i>spent <u></u>saved</span></th>"
    note = "A stage that an earlier trial has already run on the same input is read from the stage cache: a hit."
    return _card(
        "stages",
        "Stage cache",
        note,
        f"<div class='scroll'><table class='plain'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>",
    )


def _failures(run: Run) -> str:
    table = summary.failures(run)
    if table.empty:
        return ""
    items = []
    for row in table.to_dict("records"):
        ids = " ".join(_link(trial_id, trial_id) for trial_id in row["trial_ids"])
        trace = (
            ""
            if pd.isna(row["traceback"])
            else f"<details><summary>Traceback</summary><pre>{escape(row['traceback'])}</pre></details>"
        )
        items.append(f"<li><p class='error'>{escape(row['error'])}</p><p class='ids'>Trials {ids}</p>{trace}</li>")
    count = sum(len(ids) for ids in table["trial_ids"])
    note = f"{count} trial{'' if count == 1 else 's'} ended with an error."
    return _card("failures", "Failures", note, f"<ul class='failures'>{''.join(items)}</ul>")


def _problems(run: Run) -> str:
    if not run.problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems[:200])
    more = f"<li>and {len(run.problems) - 200} more</li>" if len(run.problems) > 200 else ""
    return _card(
        "problems",
        "Files that could not be read",
        "The rest of the run is shown.",
        f"<ul class='problems'>{items}{more}</ul>",
    )


def _reproduce(run: Run) -> str:
    versions = {
        c.partition("/")[2]: run.trials[c].dropna().unique() for c in map(str, run.trials) if c.startswith("version/")
    }
    facts = [(escape(name), escape(", ".join(map(str, found)))) for name, found in versions.items() if len(found)]
    facts = ([("seed", escape(run.seed))] if run.seed is not None else []) + facts
    hosts = run.trials["host"].dropna().unique()
    facts += [("host", escape(", ".join(hosts[:4]) + (" …" if len(hosts) > 4 else "")))] if len(hosts) else []
    body = f"<pre class='command'>{escape(run.command)}</pre>" if run.command else ""
    body += "<dl class='facts'>" + "".join(f"<div><dt>{a}</dt><dd>{b}</dd></div>" for a, b in facts) + "</dl>"
    if run.spec:
        spec = escape(json.dumps(run.spec, indent=2, ensure_ascii=False))
        body += f"<details><summary>Resolved spec</summary><pre>{spec}</pre></details>"
    return _card("reproduce", "How to reproduce", "", body) if facts or body else ""


def _card(name: str, title: str, note: str, body: str) -> str:
    lead = f"<p class='note'>{note}</p>" if note else ""
    return f"<section class='card' id='{name}'><h2>{title}</h2>{lead}{body}</section>"
