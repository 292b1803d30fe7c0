"""The parts of the report that are plain HTML: words, picks, tables. Everything from the
run is escaped.
"""

from __future__ import annotations

import html
import json
import math
from typing import Any

import pandas as pd

from analysis import summary
from analysis.comparison import Comparison
from analysis.run import Run

_MAX_NAMED = 200


def parts(run: Run, compared: Comparison | None) -> dict[str, str]:
    """The places of `report.html` that hold HTML."""
    return {
        "kind": "Comparison of sweeps" if run.members else "Sweep report",
        "meta": _meta(run),
        "summary": _summary(run, compared),
        "picks": _picks(run),
        "tiles": _tiles(run),
        "compare": _compare(run, compared),
        "stages": _stages(run),
        "failures": _failures(run),
        "problems": _problems(run),
        "reproduce": _reproduce(run),
    }


def escape(value: Any) -> str:
    """Text for HTML content and quoted attributes, without lone surrogates."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _meta(run: Run) -> str:
    if run.members:
        return " <i>·</i> ".join(
            f"<span>{escape(label)}</span>" for label in run.members
        )
    created = pd.to_datetime(run.created, errors="coerce", utc=True)
    items = [] if pd.isna(created) else [f"{created:%-d %B %Y, %H:%M} UTC"]
    devices = run.trials["device"].dropna().unique()
    items += [escape(device) for device in devices[:2]] + (
        [f"{len(devices) - 2} more"] if len(devices) > 2 else []
    )
    items += [f"seed {run.seed}"] if run.seed is not None else []
    return " <i>·</i> ".join(f"<span>{item}</span>" for item in items)


def _counts(status: dict[str, int]) -> str:
    words = [f"{count} {name}" for name, count in status.items()]
    return (
        ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
        if words
        else "none"
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _summary(run: Run, compared: Comparison | None) -> str:
    total = summary.totals(run)
    if not total["trials"]:
        return "<p>No trial has been recorded yet.</p>"
    seeds = int(run.points()["replicates"].max()) if len(run.points()) else 1
    lines = [
        f"<b>{_plural(total['trials'], 'trial')}</b>:"
        f" {escape(_counts(total['status']))}."
    ]
    if seeds > 1:
        lines.append(
            f"They are {_plural(len(run.points()), 'configuration')}, each with up to"
            f" {seeds} seeds."
        )
    goals = [
        f"{'low' if o.mode == 'min' else 'high'} <b>{escape(o.metric)}</b>"
        for o in run.objectives
    ]
    what = "configurations" if seeds > 1 else "trials"
    if total["front"] and len(goals) > 1:
        number = (
            "One offers a"
            if total["front"] == 1
            else f"{total['front']} {what} are on the front, each a"
        )
        lines.append(
            f"{number} trade of {' against '.join(goals)} that no other beats."
        )
    elif not total["front"]:
        lines.append(
            "No complete trial has finite objectives within the bounds yet, so there is"
            " no front."
        )
    if compared is not None and len(compared.groups) > 1:
        first, second = compared.groups[:2]
        lines.append(
            f"<b>{escape(first.name)}</b> reaches furthest: its front dominates"
            f" {100 * first.volume:.1f} % of the space between the best values and the"
            f" reference point, that of {escape(second.name)}"
            f" {100 * second.volume:.1f} %."
        )
    advised = summary.advice(run)
    if advised:
        _, row, text = advised[0]
        lines.append(
            "If no single number matters most, ship trial"
            f" {_link(run.trials['trial_id'].iloc[row])}: {escape(text)}."
        )
    return f"<p>{' '.join(lines)}</p>".replace(" %", "&nbsp;%")


def _tiles(run: Run) -> str:
    total = summary.totals(run)
    done = total["status"].get("complete", 0)
    saved, spent = total["seconds_saved"], total["seconds"]
    share = (
        f"{100 * saved / (saved + spent):.0f} % of the work"
        if saved
        else "no stage was run twice"
    )
    what = "configuration" if (run.points()["replicates"] > 1).any() else "trial"
    tiles = [
        ("Trials", str(total["trials"]), f"{done} complete"),
        (
            "On the front",
            str(total["front"]),
            f"of {_plural(len(run.points()), 'complete ' + what)}",
        ),
        ("Time of trials", summary.duration(spent), "all together"),
        ("Saved by the cache", summary.duration(saved), share),
    ]
    body = "".join(
        "<div"
        f" class='tile'><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>"
        for a, b, c in tiles
    )
    return f"<dl class='tiles'>{body}</dl>"


def _values(run: Run, row: pd.Series) -> list[tuple[str, str]]:
    """Objectives of a point with their spread, then its accuracy on the test set, as name
    and text.
    """
    names = [o.metric for o in run.objectives]
    if "metric/test_accuracy" in row.index and "test_accuracy" not in names:
        names.append("test_accuracy")
    found = []
    for name in names:
        value, spread = row[f"metric/{name}"], row.get(f"sd/{name}", math.nan)
        if pd.notna(value) and not isinstance(value, str):
            found.append((name, summary.plus_minus(float(value), float(spread), name)))
    return found


def _picks(run: Run) -> str:
    cards: list[str] = []
    points = run.points()
    for title, index, text in summary.advice(run):
        row = points.loc[points.index == index].iloc[0]
        chosen = [(p, row.get(f"config/{p}")) for p in run.params]
        config = [
            f"{escape(p)} <b>{escape(_plain(v))}</b>"
            for p, v in chosen
            if v is not None and pd.notna(v)
        ]
        values = "".join(
            f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>"
            for n, v in _values(run, row)
        )
        best = "best compromise" in title
        note = (
            "Farthest from the line between the front's ends."
            if best
            else escape(text) + " beside the best compromise."
        )
        if len(run.objectives) == 1:
            note = ""
        cards.append(
            "<article"
            f" class='pick{' first' if not cards else ''}'><header><h3>{escape(title)}</h3>"
            f"{_link(row['trial_id'], 'trial ' + str(row['trial_id']))}</header><dl>{values}</dl>"
            f"<p class='note'>{note}</p><p"
            f" class='config'>{', '.join(config)}</p>{_get(run, row['trial_id'])}</article>"
        )
    seeds = (
        "<p class='note'>Mean ± standard deviation over seeds; the trial is the seed"
        " nearest the mean.</p>"
    )
    more = seeds if cards and (points["replicates"] > 1).any() else ""
    return f"<div class='picks'>{''.join(cards)}</div>{more}" if cards else ""


def _get(run: Run, trial_id: str) -> str:
    """The commands that export a trial's model and run the trial again."""
    lines = [
        ("Export", summary.command(run, trial_id, "onnx")),
        ("Run again", summary.command(run, trial_id, "reproduce")),
    ]
    body = "".join(
        f"<dt>{name}</dt><dd><code>{escape(text)}</code></dd>" for name, text in lines
    )
    return (
        "<details class='get'><summary>Get this model</summary><dl"
        f" class='commands'>{body}</dl></details>"
    )


def _link(trial_id: Any, text: Any = None) -> str:
    """A button that marks a trial in the plots and the table."""
    shown = trial_id if text is None else text
    return (
        "<button type='button' class='link'"
        f" data-trial='{escape(trial_id)}'>{escape(shown)}</button>"
    )


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: float | None, text: str) -> str:
    """A cell of a number, which the page sorts by."""
    known = value is not None and math.isfinite(value)
    return (
        f"<td class='n' data-v='{value:.9g}'>{text}</td>"
        if known
        else "<td class='n none'>–</td>"
    )


def _head(names: list[str], first: str, last: str = "") -> str:
    heads = "".join(f"<th class='n'>{escape(name)}</th>" for name in names)
    return f"<thead><tr><th>{escape(first)}</th>{heads}{last}</tr></thead>"


def _compare(run: Run, found: Comparison | None) -> str:
    if found is None:
        return ""
    time = summary.duration(found.time)
    seeds = any(math.isfinite(g.spread) for g in found.groups)
    head = ["Points", "On common front", "Hypervolume", *(["± seeds"] if seeds else [])]
    head += [
        f"after {_plural(found.budget, 'point')}",
        f"after {time}",
        *(f"best {o.metric}" for o in run.objectives),
    ]
    rows = []
    for g in found.groups:
        cells = [
            _cell(g.points, str(g.points)),
            _cell(g.on_front, f"{g.on_front} of {g.front}"),
        ]
        shares = [g.volume, *([g.spread] if seeds else []), g.budget, g.at_time]
        cells += [_cell(v, f"{100 * v:.1f} %") for v in shares]
        cells += [
            _cell(v, escape(summary.quantity(v, o.metric)))
            for v, o in zip(g.best, run.objectives, strict=True)
        ]
        cells.append(_cell(g.seconds, summary.duration(g.seconds)))
        rows.append(f"<tr><th scope='row'>{escape(g.name)}</th>{''.join(cells)}</tr>")
    reference = ", ".join(
        f"{escape(m)} {escape(summary.quantity(v, m))}"
        for m, v in found.reference.items()
    )
    note = (
        "Hypervolume of each front, as a share of the box between the best values of"
        f" all and the common reference point ({reference}). The columns “after” give"
        " all the same budget: as many points as the smallest group has, or as much"
        " time of trials as the shortest took. Of each own front, so many points are"
        " on the front of all."
    )
    body = (
        "<div class='scroll'><table class='plain sortable'>"
        f"{_head([*head, 'Time'], found.by)}<tbody>{''.join(rows)}</tbody></table></div>"
        "<div class='controls' id='compare-controls'></div><div class='legend'></div>"
        "<div class='plot low' id='compare-plot'></div>"
    )
    return _card("compare", f"Compared by {escape(found.by)}", note, body)


def _stages(run: Run) -> str:
    table = summary.stage_table(run)
    if table.empty:
        return ""
    top = max(float((table["seconds"] + table["saved"]).max()), 1e-9)
    rows = []
    for row in table.fillna({"name": "", "stage": "", "phase": ""}).to_dict("records"):
        method = (
            ""
            if row["name"] == row["stage"]
            else f" <small>{escape(row['stage'])}</small>"
        )
        width = (100 * row["seconds"] / top, 100 * row["saved"] / top)
        bar = (
            f"<span class='bar'><i style='width:{width[0]:.2f}%'></i><u"
            f" style='width:{width[1]:.2f}%'></u></span>"
        )
        saved = summary.duration(row["saved"]) if row["saved"] else "–"
        cells = _cell(row["runs"], str(row["runs"])) + _cell(
            row["hits"], str(row["hits"])
        )
        cells += _cell(row["seconds"], summary.duration(row["seconds"])) + _cell(
            row["saved"], saved
        )
        rows.append(
            f"<tr><th scope='row'>{escape(row['name'])}{method}</th>"
            f"<td>{escape(row['phase'])}</td>{cells}<td class='wide'>{bar}</td></tr>"
        )
    key = "<span class='key'><i></i>spent <u></u>saved</span>"
    head = "".join(f"<th{c}>{t}</th>" for t, c in [("Stage", ""), ("Phase", "")])
    head += (
        "".join(f"<th class='n'>{t}</th>" for t in ("Runs", "Hits", "Spent", "Saved"))
        + f"<td class='wide'>{key}</td>"
    )
    note = (
        "A stage that an earlier trial has already run on the same input is read from"
        " the stage cache: a hit."
    )
    body = (
        "<div class='scroll'><table class='plain"
        f" sortable'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    return _card("stages", "Cost and stage cache", note, body)


def _failures(run: Run) -> str:
    table = summary.failures(run)
    if table.empty:
        return ""
    items = []
    for row in table.to_dict("records"):
        ids = " ".join(_link(trial_id) for trial_id in row["trial_ids"][:_MAX_NAMED])
        more = (
            f" and {len(row['trial_ids']) - _MAX_NAMED} more"
            if len(row["trial_ids"]) > _MAX_NAMED
            else ""
        )
        alike = "; other numbers in the others" if row["alike"] > 1 else ""
        trace = ""
        if not pd.isna(row["traceback"]):
            text = escape(row["traceback"])
            trace = f"<details><summary>Traceback</summary><pre>{text}</pre></details>"
        items.append(
            f"<li><p class='error'>{escape(row['error'])}</p><p class='ids'>Trials"
            f" {ids}{more}{alike}</p>{trace}</li>"
        )
    count = sum(len(ids) for ids in table["trial_ids"])
    return _card(
        "failures",
        "Failures",
        f"{_plural(count, 'trial')} ended with an error.",
        f"<ul class='failures'>{''.join(items)}</ul>",
    )


def _problems(run: Run) -> str:
    if not run.problems:
        return ""
    items = "".join(
        f"<li>{escape(problem)}</li>" for problem in run.problems[:_MAX_NAMED]
    )
    more = (
        f"<li>and {len(run.problems) - _MAX_NAMED} more</li>"
        if len(run.problems) > _MAX_NAMED
        else ""
    )
    return _card(
        "problems",
        "Files that could not be read",
        "The rest of the run is shown.",
        f"<ul class='problems'>{items}{more}</ul>",
    )


def _reproduce(run: Run) -> str:
    bodies = [
        _reproduce_one(member, label) for label, member in run.members.items()
    ] or [_reproduce_one(run, "")]
    return (
        _card("reproduce", "How to reproduce", "", "".join(bodies))
        if any(bodies)
        else ""
    )


def _reproduce_one(run: Run, label: str) -> str:
    versions = {
        c.partition("/")[2]: run.trials[c].dropna().unique()
        for c in map(str, run.trials)
        if c.startswith("version/")
    }
    facts = [
        (escape(name), escape(", ".join(map(str, found))))
        for name, found in versions.items()
        if len(found)
    ]
    facts = ([("seed", escape(run.seed))] if run.seed is not None else []) + facts
    hosts = run.trials["host"].dropna().unique()
    facts += (
        [("host", escape(", ".join(hosts[:4]) + (" …" if len(hosts) > 4 else "")))]
        if len(hosts)
        else []
    )
    body = f"<h3>{escape(label)}</h3>" if label else ""
    body += f"<pre class='command'>{escape(run.command)}</pre>" if run.command else ""
    body += (
        "<dl class='facts'>"
        + "".join(f"<div><dt>{a}</dt><dd>{b}</dd></div>" for a, b in facts)
        + "</dl>"
    )
    if run.spec:
        spec = escape(json.dumps(run.spec, indent=2, ensure_ascii=False))
        body += f"<details><summary>Resolved spec</summary><pre>{spec}</pre></details>"
    return body if facts or run.command or run.spec else ""


def _card(name: str, title: str, note: str, body: str) -> str:
    lead = f"<p class='note'>{note}</p>" if note else ""
    return f"<section class='card' id='{name}'><h2>{title}</h2>{lead}{body}</section>"
