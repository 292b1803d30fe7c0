"""The report: escaping, and how a real browser shows it."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import numbers, summary
from analysis.baseline import Baseline
from analysis.certainty import bounds_probability
from analysis.numbers import percent
from analysis.report import columns, still
from analysis.report import data as plots
from analysis.report import page as report
from analysis.where import where_mask
from tests.analysis.test_predictions import kept as kept_predictions
from tests.analysis.test_predictions import write as write_predictions

EVIL = (
    "</script><script>window.evil = 1</script><img src=x"
    ' onerror="window.evil=1"><!--\u2028\'"&amp;'
)


class Elements(HTMLParser):
    """Collects start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def evil_run(make_run):
    def change(record):
        record["config"]["init"] = {"none": EVIL}.get(
            record["config"]["init"], record["config"]["init"]
        )
        record["config"][EVIL] = EVIL
        record["host"] = EVIL
        record["versions"][EVIL] = EVIL
        for stage in record["stages"]:
            stage["name"] = EVIL
        if record["error"]:
            record["error"] = {"type": EVIL, "message": EVIL, "traceback": EVIL}
        if record["number"] < 4:
            record["metrics"][EVIL] = 1.0

    header = {
        "name": EVIL,
        "command": EVIL,
        "params": ["init", "finetune.lr", EVIL],
        "spec": {EVIL: EVIL},
    }
    path = make_run("evil", header=header, change=change)
    (path / "trials" / EVIL.replace("/", "")).mkdir()
    return path


def test_json_for_script_cannot_leave_its_element():
    text = report.json_for_script({"a": EVIL + "\u2029", "b": ["</", "<!--"]})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text)["a"] == EVIL + "\u2029"
    with pytest.raises(ValueError, match="Out of range"):
        report.json_for_script([float("nan")])


def test_nothing_from_the_run_becomes_markup(make_run):
    text = analysis.write_report(evil_run(make_run)).read_text()
    elements = Elements(text).found
    assert sum(tag == "script" for tag, _ in elements) == 3
    assert not any(
        tag in ("img", "iframe", "object", "link", "form") for tag, _ in elements
    )
    assert not any(
        name.startswith("on") for _, attributes in elements for name in attributes
    )
    assert text.count("* plotly.js (cartesian - minified) v") == 1


def test_nothing_is_asked_of_a_network(make_run):
    text = analysis.write_report(make_run(trials=8)).read_text()
    for _, attributes in Elements(text).found:
        assert not any(
            (attributes.get(name) or "").startswith(("http", "//"))
            for name in ("src", "href", "action")
        )
    own = text.replace(report.plotly_script(), "")
    assert set(re.findall(r"https?://[^\"' ]+", own)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in own
    assert "url(" not in own
    policy = next(
        a["content"]
        for _, a in Elements(text).found
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_report_goes_where_it_is_told(make_run, tmp_path):
    path = make_run(trials=8)
    assert analysis.write_report(path) == path / "report.html"
    assert analysis.write_report(path, tmp_path / "elsewhere.html").is_file()
    with pytest.raises(ValueError, match="give out"):
        analysis.write_report([path, path])


def test_a_run_is_called_by_its_title(make_run, tmp_path):
    title = "digits-vit: 0.5 times the bytes & 200 images/s"
    path = make_run("run", trials=8, header={"title": title})
    run = analysis.load(path)
    assert (run.name, run.heading) == ("run", title)
    text = analysis.write_report(run).read_text()
    shown = title.replace("&", "&amp;")
    assert f"<title>{shown} · sweep report</title>" in text
    assert f"<h1>{shown}</h1>" in text
    markdown = analysis.write_markdown(run, tmp_path / "a.md").read_text()
    assert markdown.startswith(f"# `{title}`\n")
    again = analysis.load(path)  # from its Parquet tables, too
    assert again.heading == title
    untitled = analysis.load(make_run("other", trials=8, header={"title": None}))
    assert untitled.heading == "other"
    # a slash of a title is no border in the ids of a comparison's trials
    merged = analysis.merge([run, untitled])
    assert list(merged.members) == [title.replace("/", " per "), "other"]
    assert merged.heading == " and ".join(merged.members)
    assert {name.partition("/")[0] for name in merged.trials["trial_id"]} == set(
        merged.members
    )


def test_several_runs_are_compared_on_one_page(make_run, tmp_path):
    paths = [make_run("one", trials=8), make_run("two", seed=1, trials=6)]
    text = analysis.write_report(paths, tmp_path / "both.html").read_text()
    assert "Comparison of sweeps" in text
    for part in (
        "<h2>Compared by run</h2>",
        "<th scope='row'>one</th>",
        "<th scope='row'>two</th>",
        "after 4 configurations",
    ):
        assert part in text


def test_seeds_are_told_once(make_run):
    text = analysis.write_report(make_run(trials=60, replicates=3)).read_text()
    assert "They are 20 configurations, each with up to 3 seeds." in text
    assert text.count("over seeds; the trial is the seed nearest the mean") == 1


def test_page_data(make_run, demo_run):
    data = plots.page_data(demo_run)
    assert data["colour"] == "config/init"
    assert len(data["front"]) == len(analysis.load(make_run("again")).front())
    share = data["progress"]["share"]
    assert share == sorted(share)
    assert 0 < share[-1] <= 1
    effect = next(e for e in data["effects"] if e["parameter"] == "init")
    assert sum(level["count"] for level in effect["levels"]) == 31
    assert {t["stage"] for t in data["curves"]["trials"]} == {"wfn"}


def test_explained_variance():
    values = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    assert columns.explained([0, 0, 0, 1, 1, 1], values) > 0.7
    assert columns.explained([0, 1, 0, 1, 0, 1], values) < 0.2
    assert columns.explained([0] * 6, values) == 0.0


def test_browser_draws_all_and_runs_nothing_of_the_run(make_run, open_page):
    """A script or handler from the run, were there one, would meet the policy and a message
    on the console.
    """
    page = open_page(analysis.write_report(evil_run(make_run), by="init"))
    assert page.console == []
    dom = page.dom
    elements = Elements(dom).found
    plots_ = [a for _, a in elements if "js-plotly-plot" in (a.get("class") or "")]
    assert {
        "front-plot",
        "curves-plot",
        "progress-plot",
        "importance-plot",
        "compare-plot",
    } <= {attributes.get("id") for attributes in plots_}
    assert len(plots_) > 7  # and one for each choice that is compared
    assert not any(
        tag == "img" or "onerror" in attributes for tag, attributes in elements
    )
    assert page.run("return window.evil === undefined")
    assert f"<h1>{EVIL}</h1>" in html.unescape(dom)


def three_objectives(make_run) -> Path:
    bounds = {"accuracy": ("max", 0.85), "latency_ms": ("min", 9.0)}
    bounds["num_params"] = ("min", None)
    objectives = [
        {"metric": metric, "mode": mode, "bound": bound}
        for metric, (mode, bound) in bounds.items()
    ]
    return make_run(header={"objectives": objectives})


ROWS = "[...document.querySelectorAll('tbody tr[data-row]')]"


def test_browser_ties_marks_to_rows_and_fits_a_phone(make_run, open_page):
    path = three_objectives(make_run)
    page = open_page(analysis.write_report(path), 500)
    best = analysis.load(path).complete()["metric/accuracy"].max()
    cell = f"return {ROWS}.filter((r) => !r.hidden)[0].cells[2].textContent"
    assert page.run(cell) == percent(best, 2)
    on = page.run("""
        const plot = $('front-plot');
        const trace = plot.data.findLast((t) => t.customdata);
        const curveNumber = plot.data.lastIndexOf(trace);
        Plotly.Fx.hover(plot, [{ curveNumber, pointNumber: 0 }]);
        const texts = [...plot.querySelectorAll('.hoverlayer text')];
        const hover = texts.map((t) => t.textContent).join(' ');
        plot.emit('plotly_click', { points: [{ customdata: trace.customdata[0] }] });
        const rows = [...document.querySelectorAll('tr.on')];
        return {
          rows: rows.map((r) => Number(r.dataset.row) - trace.customdata[0]),
          hover: hover.includes('Trial ' + D.ids[trace.customdata[0]]),
          lines: document.querySelectorAll('.parallel path.on').length,
          bounds: plot.layout.shapes.length,
        };
    """)
    assert on == {"rows": [0], "hover": True, "lines": 1, "bounds": 2}
    page.run("document.querySelectorAll('#table thead button')[2].click()")
    assert page.run(cell) == "40.00 %"
    page.run("""
        const search = document.querySelector('#table-controls input[type=search]');
        search.value = 'failed';
        search.dispatchEvent(new Event('input'));
    """)
    assert page.run(f"return {ROWS}.filter((r) => !r.hidden).length") == 3
    page.run("$('theme').click()")
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    assert page.run("return $('front-plot').layout.font.color") == "#e9ebed"
    assert (
        page.run("""
        const root = document.documentElement;
        return root.scrollWidth - root.clientWidth;
    """)
        == 0
    )
    assert page.run("return document.querySelectorAll('.segments button').length") == 2
    selects = "document.querySelectorAll('#front-controls select').length"
    assert page.run(f"return {selects}") == 4
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.console == []


def test_names_of_rows_stay_on_a_phone(demo_run, open_page, tmp_path) -> None:
    """Tables that are wider than a phone keep their first column, and the navigation follows."""
    page = open_page(analysis.write_report(demo_run, tmp_path / "a.html"), 390, 844)
    moved = page.run("""
        const table = document.querySelector('#stages .scroll');
        const name = table.querySelector('tbody th');
        const before = name.getBoundingClientRect().left;
        table.scrollLeft = 150;
        return [table.scrollLeft, name.getBoundingClientRect().left - before];
    """)
    assert moved == [150, 0]
    page.run("scrollTo({ top: 1e6, behavior: 'instant' }); watchNav(); return null")
    seen = page.run("""
        const bar = $('nav').getBoundingClientRect();
        const link = document.querySelector('#nav a.here').getBoundingClientRect();
        return link.left >= bar.left && link.right <= bar.right && $('nav').scrollLeft > 0;
    """)
    assert seen is True


def test_browser_sorts_plain_tables(demo_page):
    hits = demo_page.run("""
        const heads = [...document.querySelectorAll('#stages thead button')];
        heads.find((b) => b.textContent === 'Hits').click();
        const rows = [...document.querySelectorAll('#stages tbody tr')];
        return rows.map((r) => Number(r.cells[3].textContent)).filter((n) => !isNaN(n));
    """)
    assert len(hits) > 2
    assert hits == sorted(hits, reverse=True)


def test_browser_leaves_out_the_front_of_a_run_without_a_complete_trial(
    make_run, open_page
):
    def interrupt(record):
        record["status"] = "interrupted"
        record["metrics"] = {}

    path = analysis.write_report(make_run(trials=3, change=interrupt))
    page = open_page(path)
    assert page.run("return document.getElementById('front').hidden")
    assert page.run(f"return {ROWS}.length") == 3
    assert "No trial is complete" in path.read_text()
    assert page.console == []


def test_the_page_writes_numbers_as_python_does(demo_page):
    rng = np.random.default_rng(0)
    values = [0.0, 1.0, -2.5, 0.5, 1234.5, 2.0**53, 1e15, 1e21, 0.125, 9.9995e-5]
    values += (10 ** rng.uniform(-9, 17, 400) * rng.choice([-1, 1], 400)).tolist()
    values += np.round(rng.uniform(0, 20000, 200), 1).tolist()
    values += (rng.integers(0, 20000, 400) / 2 ** rng.integers(0, 18, 400)).tolist()
    for name, write in (
        ("number(v)", numbers.number),
        ("plain(v)", lambda v: numbers.plain(v)),
        ("figure(v, 'fraction')", lambda v: numbers.figure(v, "fraction")),
    ):
        kept = (
            values
            if name != "figure(v, 'fraction')"
            else [v for v in values if abs(v) < 1e15]
        )
        shown = demo_page.run(f"return {json.dumps(kept)}.map((v) => {name})")
        assert shown == [write(v) for v in kept]


@pytest.mark.parametrize("unit", ["ms", "fraction"])
def test_what_is_rounded_for_the_page_reads_as_if_it_were_not(unit):
    rng = np.random.default_rng(1)
    values = 10 ** rng.uniform(-7, 12, 5000) * rng.choice([-1, 1], 5000)
    if unit == "fraction":
        values = rng.uniform(0, 1.2, 5000)
    # close to a tie, as 0.12344996: to six digits it would be 0.123450, and then 0.1235
    ties = np.round(values, 5) + rng.uniform(-4, 4, 5000) * 1e-8
    whole = np.round(values) + 0.5
    for exact in (values, ties, whole if unit == "ms" else ties):
        for value, sent in zip(exact, columns.compact_all(exact, unit), strict=True):
            assert numbers.figure(sent, unit) == numbers.figure(value, unit)
    assert columns.compact_all(np.array([0.1234567, np.nan, 3.0])) == [
        0.123457,
        None,
        3,
    ]


def test_a_value_is_the_same_in_report_markdown_and_terminal(
    make_run, demo_run, demo_page, open_page, tmp_path
):
    markdown = analysis.write_markdown(demo_run, tmp_path / "out.md").read_text()
    for _, row in analysis.front_text(demo_run).iterrows():
        cells = demo_page.run(
            f"const row = ROW.get({json.dumps(row['trial_id'])});"
            "return D.columns.map((c) => show(c, row));"
        )
        for name in ("accuracy", "gmacs", "finetune.lr"):
            assert row[name] in cells
            assert row[name] in markdown
    replicated = analysis.load(make_run("seeds", trials=24, replicates=3))
    page = open_page(analysis.write_report(replicated))
    for _, row in analysis.front_text(replicated).iterrows():
        lines = page.run(
            f"return describe(ROW.get({json.dumps(row['trial_id'])}), '\\n')"
        )
        assert row["accuracy"] in lines
        assert "±" in row["accuracy"]


def test_the_loss_that_may_be_lost_chooses_the_first_card(make_run, open_page) -> None:
    """Without a script the card for one point; the slider changes it."""
    means = {0: (0.895, 4.0), 1: (0.88, 2.0), 2: (0.8, 1.0)}

    def change(record: dict) -> None:
        accuracy, gmacs = means[record["number"]]
        metrics = {"accuracy": accuracy, "gmacs": gmacs, "latency_ms": 1.0}
        record |= {"status": "complete", "metrics": metrics, "error": None}

    run = analysis.load(make_run(trials=3, change=change))
    found = replace(run, baseline=Baseline("the source", {"accuracy": 0.9, "gmacs": 8}))
    images = pd.DataFrame({"trial_id": list("ab"), "images": [400, 400]})
    found = replace(found, classes=run.classes.iloc[:0].merge(images, how="outer"))
    page = open_page(analysis.write_report(found))
    assert page.run("return document.querySelectorAll('.member').length") == 3
    for points, trial, words in (
        (1, "00000", "within 1 point"),
        (2.5, "00001", "within 2.5 points"),
        (10, "00002", "within 10 points"),
        (0.25, "00000", "more than 0.25 points"),
    ):
        page.run(
            f"(loss => (loss.value = {points}, loss.dispatchEvent(new Event('input'))))($('loss'))"
        )
        card = page.run(
            "return document.querySelector('.member:not([hidden])').textContent"
        )
        assert trial in card
        assert words in card
        bound = [replace(found.objectives[0], bound=0.9 - points / 100)]
        rows = found.configurations()
        chances = bounds_probability(rows, bound, found.classes)
        labels = "$('front-plot').layout.annotations.map((a) => a.text)"
        named = [
            text for text in page.run(f"return {labels}") if f"trial {trial}" in text
        ]
        assert len(named) == ("more" not in words)
        row = [*rows["trial_id"]].index(trial)
        assert f"probability of {summary.chance_text(chances[row])}" in card
    assert "gmacs 8 × lower against the source" in page.run(
        "return document.querySelectorAll('.member')[2].textContent"
    )
    star = "document.querySelector('#front-plot').data.filter(t => t.marker?.symbol === 'star')"
    assert page.run(f"return {star}.map(t => [t.x[0], t.y[0]])") == [[8, 0.9]]
    assert "baseline" in page.run(
        "return document.querySelector('#table thead').textContent"
    )


CONSTRAINTS = (
    "accuracy>=90%",
    "accuracy >= 0.85 and (gmacs<0.5 or init == none)",
    "init!=none or 'finetune.lr' < 1e-3",
    "init.element_rule != uniform",
    "status=failed",
    "finetune.epochs>4 and nvit.target<=.6",
)


@pytest.mark.parametrize(
    ("bound", "trial", "words"),
    [
        ({"loss": 0.02, "to": "source"}, "00001", "within 2 points of accuracy"),
        ({"loss": 0.0049, "to": "source"}, "00000", "within 0.5 points of accuracy"),
        # what is no share of points, or none on the slider, leaves one point
        ({"loss": 0.02, "relative": True}, "00000", "within 1 point of accuracy"),
        ({"loss": 0.5}, "00000", "within 1 point of accuracy"),
        ({"loss": 1e999}, "00000", "within 1 point of accuracy"),
        ("none", "00000", "within 1 point of accuracy"),
    ],
)
def test_the_first_card_allows_the_loss_of_the_spec(
    make_run, bound, trial: str, words: str
) -> None:
    means = {0: (0.895, 4.0), 1: (0.88, 2.0), 2: (0.8, 1.0)}

    def change(record: dict) -> None:
        accuracy, gmacs = means[record["number"]]
        metrics = {"accuracy": accuracy, "gmacs": gmacs}
        record |= {"status": "complete", "metrics": metrics, "error": None}

    spec = {"objectives": [{"metric": "accuracy", "mode": "max", "bound": bound}]}
    run = analysis.load(make_run(trials=3, change=change))
    source = Baseline("the source", {"accuracy": 0.9, "gmacs": 8})
    run = replace(run, baseline=source, spec=spec)
    text = analysis.write_report(run).read_text()
    said = re.sub("<[^>]*>", "", text[text.index("Ship ") :])
    assert said.startswith(f"Ship trial {trial}, the lowest gmacs {words}")
    points = words.split()[1]
    assert re.search(f"id='loss'[^>]*value='{points}'", text)


def test_the_page_reads_constraints_as_python_does(demo_run, demo_page) -> None:
    for text in CONSTRAINTS:
        wanted = demo_run.trials["trial_id"][where_mask(text, demo_run.trials)]
        kept = demo_page.run(
            f"return D.ids.filter((_, row) => where({json.dumps(text)})(row))"
        )
        assert kept == list(wanted), text
    wrong = ("accuracy>=", "accuracy>=0.9 or", "nothing<1", "init<3", "(gmacs<1", "a b")
    refused = demo_page.run(f"""
        return {json.dumps(wrong)}.filter((text) => {{
          try {{ where(text); return true; }} catch (error) {{ return false; }}
        }});
    """)
    assert refused == []


def test_one_selection_stands_in_all_views_and_in_the_address(
    demo_run, open_page
) -> None:
    page = open_page(analysis.write_report(demo_run))
    page.run("""
        const search = document.querySelector('#table-controls input[type=search]');
        search.value = 'init==sws_expand';
        search.dispatchEvent(new Event('input'));
        const colour = [...document.querySelectorAll('#front-controls select')].at(-1);
        colour.value = 'status';
        colour.dispatchEvent(new Event('change'));
        select(D.eligible.find((row) => where('init==sws_expand')(row)));
    """)
    seen = """(() => {
        const bright = $('front-plot').data.filter((t) => Array.isArray(t.marker?.opacity));
        const rows = bright.flatMap((t) => t.customdata.filter((_, i) => t.marker.opacity[i] > .2));
        return JSON.stringify({
          rows: rows.sort((a, b) => a - b).map((row) => D.ids[row]),
          lines: document.querySelectorAll('.parallel path:not(.off):not(.axis)').length,
          chosen: document.querySelector('tr.on')?.dataset.row,
          by: document.querySelector('.legend .by').textContent,
        });
    })()"""
    done = demo_run.configurations()
    wanted = list(done["trial_id"][done["config/init"] == "sws_expand"])
    page.wait(f"JSON.parse({seen}).rows.length === {len(wanted)}")
    first = json.loads(page.run(f"return {seen}"))
    assert first["rows"] == wanted
    assert first["lines"] == len(wanted)
    assert first["by"] == "status"
    address = page.run("return location.hash")
    assert "filter=init" in address
    page.run(
        "document.documentElement.removeAttribute('data-ready'); location.hash = 'x='"
    )
    page.wait("document.documentElement.dataset.ready && table.filter === ''")
    assert json.loads(page.run(f"return {seen}")) != first
    page.run(
        "document.documentElement.removeAttribute('data-ready');"
        f"location.hash = {json.dumps(address)}"
    )
    page.wait("document.documentElement.dataset.ready")
    page.wait(f"JSON.parse({seen}).rows.length === {len(wanted)}")
    assert json.loads(page.run(f"return {seen}")) == first
    assert page.console == []
    page.run(
        "state.painters.set('curves', () => { throw new Error('of this panel'); })"
    )
    page.run("repaint()")
    assert "of this panel" in page.run("return $('curves').textContent")
    assert page.run("return document.querySelectorAll('.broken').length") == 1
    page.run("$('nav').querySelector('a').click()")


def test_axes_end_where_values_must(make_run, demo_run, demo_page, open_page) -> None:
    """One trial of 54 %: neither 150 % nor half an epoch is possible. Many trials are not drawn
    from zero on.
    """
    least = demo_run.complete()["metric/accuracy"].min()
    low = demo_page.run("return $('front-plot').layout.yaxis.range[0]")
    assert least - 0.2 < low < least

    def change(record: dict) -> None:
        record["metrics"] = {"accuracy": 0.544, "gmacs": 0.3, "latency_ms": 1.0}
        record |= {"status": "complete", "error": None}

    page = open_page(analysis.write_report(make_run(trials=1, change=change)))
    low, high = page.run("return $('front-plot').layout.yaxis.range")
    assert low >= 0
    assert high <= 1
    assert page.run("return $('curves-plot').layout.xaxis.dtick") == 1
    assert page.run("return $('progress-plot').layout.xaxis.dtick") == 1


def test_a_trial_has_a_page_beside_the_pick_or_another_one(demo_run, demo_page) -> None:
    row = demo_run.trials["trial_id"].searchsorted("00003")
    trial = demo_run.trials.iloc[row]
    assert demo_page.run(f"select({row}); return $('trial').hidden") is False
    shown = demo_page.run("return $('trial-body').textContent")
    assert percent(trial["metric/accuracy"], 2) in shown
    for stage in demo_run.stages[demo_run.stages["trial_id"] == "00003"]["name"]:
        assert stage in shown
    last = demo_run.epochs.query("trial_id == '00003' and stage == 'finetune'")
    assert percent(last["accuracy"].iloc[-1], 2) in shown
    assert "dög" in shown
    assert "export" in shown
    assert "00003-onnx" in shown
    seen = demo_page.run("""
        const tables = [...document.querySelectorAll('#trial-body .scroll')];
        const stages = tables.find((t) => t.getAttribute('aria-label') === 'Stages');
        return [tables.every((t) => t.scrollHeight <= t.clientHeight + 20),
                [...stages.querySelectorAll('tbody tr')].map((r) => [...r.cells].slice(-2)
                  .map((c) => c.textContent))];
    """)
    assert seen[0], "no table of the trial is cut below"
    for (_, after), (before, _) in itertools.pairwise(seen[1]):
        assert before == after
    other = demo_page.run("""
        document.querySelector('#trial-controls button').click();
        const other = D.eligible.find((row) => row !== state.row);
        select(other);
        return [other, $('trial-body').textContent, location.hash,
                document.querySelectorAll('#trial-body tr.differs').length];
    """)
    names = [f"config/{name}" for name in demo_run.parameters]
    pair = demo_run.trials.iloc[[row, other[0]]][names].astype("string").fillna("")
    assert other[3] == int((pair.iloc[0] != pair.iloc[1]).sum())
    assert "trial 00003" in other[1]
    assert "beside=00003" in other[2]
    demo_page.run("select(state.row); return null")
    assert demo_page.run("return $('trial').hidden")
    assert demo_page.console == []


AXE = """axe.run().then((found) => JSON.stringify(found.violations.map((v) =>
    [v.id, v.nodes.map((node) => node.html.slice(0, 200))])))"""


def axe_script() -> str:
    """axe-core, where `npm install axe-core` has put it: in this checkout or above it, or where
    AXE_CORE says.
    """
    named = [Path(os.environ["AXE_CORE"])] if "AXE_CORE" in os.environ else []
    places = [p / "node_modules/axe-core/axe.min.js" for p in Path(__file__).parents]
    found = [path for path in (*named, *places) if path.is_file()]
    if not found:
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    return found[0].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing(make_run, open_page, width: int, theme: str) -> None:
    script = axe_script()
    path = make_run(trials=40)
    for trial in (path / "trials").iterdir():
        write_predictions(path, trial.name, kept_predictions())
    found = replace(
        analysis.load(path),
        baseline=Baseline("the source", {"accuracy": 0.95, "gmacs": 1.2}),
    )
    page = open_page(analysis.write_report(found), width)
    page.run(f"setTheme('{theme}'); repaint(); select(D.eligible[0])")
    page.run("for (const box of document.querySelectorAll('details')) box.open = true")
    call = page.browser.call
    call("Runtime.evaluate", page.session, expression=script)
    answer = call(
        "Runtime.evaluate",
        page.session,
        expression=AXE,
        awaitPromise=True,
        returnByValue=True,
    )
    assert json.loads(answer["result"]["value"]) == []


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (390, 844)])
def test_the_first_screen_has_verdict_and_front(
    demo_run, open_page, tmp_path, width: int, height: int
) -> None:
    source = Baseline("the source", {"accuracy": 0.95, "gmacs": 1.2})
    run = replace(demo_run, baseline=source)
    page = open_page(analysis.write_report(run, tmp_path / "a.html"), width, height)
    seen = page.run("""
        const box = (selector) => document.querySelector(selector).getBoundingClientRect();
        return [document.querySelector('.lead').textContent, box('.lead').top,
                box('#front-plot .nsewdrag').bottom, innerHeight];
    """)
    assert re.match(r"\s*Ship trial \w+, the lowest gmacs within 1 point", seen[0])
    assert 0 < seen[1] < 200
    assert seen[2] < seen[3]


def test_names_of_metrics_are_explained(demo_run) -> None:
    text = report.render(demo_run)
    named = demo_run.metrics.of(demo_run.objectives[0].metric)
    assert named.description
    glossary = text[text.index("id='glossary'") :]
    assert f"<dt>{named.name}</dt><dd>{html.escape(named.description)}" in glossary
    assert f"title='{html.escape(named.description)}'" in text


def test_costs_add_up(make_run) -> None:
    """Stages, what is no stage, and the baseline are what all took."""

    def change(record: dict) -> None:
        if record["seconds"] is not None:
            record["seconds"] += 5.0

    run = analysis.load(make_run(trials=12, change=change))
    run = replace(run, baseline=Baseline("the source", {"accuracy": 0.9}, 60.0))
    others = summary.other_costs(run)
    names = [name for name, _, _ in others]
    assert names[:2] == ["start, data and measuring", "baseline"]
    assert all("before this run" in name for name in names[2:])
    known = run.trials["seconds"].sum() + 60.0 + sum(s for _, _, s in others[2:])
    spent = summary.stage_table(run)["seconds"].sum() + sum(s for _, _, s in others)
    ended = run.stages["trial_id"].isin(run.trials.dropna(subset="seconds")["trial_id"])
    unended = run.stages[~ended]["seconds"].sum()
    assert spent - unended == pytest.approx(known)
    assert "All together" in report.render(run)
    # nothing has ended yet
    begun = replace(run, trials=run.trials[run.trials["seconds"].isna()], baseline=None)
    begun = replace(begun, stages=run.stages.iloc[:0])
    assert summary.other_costs(begun) == []


def test_the_front_shows_without_a_script(make_run) -> None:
    run = analysis.load(make_run(trials=24))
    drawn = still.front_picture(run)
    circles = [a for tag, a in Elements(drawn).found if tag == "circle"]
    assert len(circles) == len(run.configurations())
    filled = [a for a in circles if a["class"] == "still-front"]
    assert len(filled) == len(run.front())
    places = [float(a[name] or 0) for a in circles for name in ("cx", "cy")]
    assert min(places) > 0
    assert max(places) < still.WIDTH
    assert f"<noscript>{drawn}</noscript>" in report.render(run)


def test_paper_has_the_commands_and_plots_are_saved_as_svg(demo_page) -> None:
    opened = (
        "return [...document.querySelectorAll('details.get')].map((box) => box.open)"
    )
    demo_page.run("dispatchEvent(new Event('beforeprint'))")
    assert set(demo_page.run(opened)) == {True}
    assert demo_page.run("return table.limit") is None  # no limit: JSON has no infinity
    demo_page.run("dispatchEvent(new Event('afterprint'))")
    closed = "[...document.querySelectorAll('details.get:not(.first *)')]"
    assert demo_page.run(f"return {closed}.every((box) => !box.open)")
    button = "#front-plot [data-title='Save as SVG']"
    assert demo_page.run(f'return document.querySelector("{button}") !== null')
    assert demo_page.console == []


def test_paper_holds_all_that_is_printed(demo_run, open_page, tmp_path) -> None:
    """No table leaves the page's edge, where nothing can be scrolled."""
    page = open_page(analysis.write_report(demo_run, tmp_path / "a.html"), 760)
    page.browser.call("Emulation.setEmulatedMedia", page.session, media="print")
    page.run("dispatchEvent(new Event('beforeprint'))")
    wide = page.run("""
        const right = (node) => node.getBoundingClientRect().right;
        return [...document.querySelectorAll('main section, table.plain, main svg, .plot')]
            .filter((node) => right(node) > innerWidth + 1)
            .map((node) => node.outerHTML.slice(0, 90));
    """)
    assert wide == []


def test_the_table_is_saved_as_csv(demo_run, demo_page) -> None:
    rows = list(csv.DictReader(io.StringIO(demo_page.run("return asCsv()"))))
    found = {row["trial_id"]: row for row in rows}
    assert set(found) == set(demo_run.trials["trial_id"])
    for _, trial in demo_run.complete().iterrows():
        row = found[trial["trial_id"]]
        assert float(row["metric/accuracy"]) == pytest.approx(trial["metric/accuracy"])
        assert row["config/init"] == trial["config/init"]
    front = {trial for trial, row in found.items() if row["on_front"] == "true"}
    assert front == set(demo_run.front()["trial_id"])
