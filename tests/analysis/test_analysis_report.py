"""The report: escaping, and how a real browser shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis.report import data as plots
from analysis.report import page as report

EVIL = (
    "</script><script>window.evil = 1</script><img src=x"
    ' onerror="window.evil=1"><!--\u2028\'"&amp;'
)
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ),
)
chromium = shutil.which("chromium")
needs_browser = pytest.mark.skipif(chromium is None, reason="chromium is not installed")


def browse(page: Path, folder: Path, size: str = "1280,900") -> tuple[str, list[str]]:
    """The page as the browser leaves it once all is drawn, and what it wrote to the
    console, but for hints.
    """
    command = [
        str(chromium),
        *FLAGS,
        f"--user-data-dir={folder}",
        f"--window-size={size}",
    ]
    command += ["--virtual-time-budget=2500", "--dump-dom", page.as_uri()]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True
    )
    console = [
        line
        for line in result.stderr.splitlines()
        if "CONSOLE" in line and "willReadFrequently" not in line
    ]
    return result.stdout, console


def with_probe(page: Path, script: str) -> Path:
    """A copy of a report that runs `script` when all is drawn; its result is the body's
    data-probe.
    """
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()
    )
    probe = (
        "<script>setTimeout(() => { document.body.dataset.probe = JSON.stringify((()"
        f" => {{ {script} }})()); }}, 1500);"
    )
    copy = page.with_name("probe.html")
    copy.write_text(text.replace("</body>", probe + "</script></body>"))
    return copy


def probed(page: Path, folder: Path, script: str, size: str = "1280,900"):
    dom, console = browse(with_probe(page, script), folder, size)
    assert console == []
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found is not None
    return json.loads(html.unescape(found.group(1)))


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
    assert text.count("plotly.js v") == 1


def test_nothing_is_asked_of_a_network(make_run):
    text = analysis.write_report(make_run(trials=8)).read_text()
    for _, attributes in Elements(text).found:
        assert not any(
            (attributes.get(name) or "").startswith(("http", "//"))
            for name in ("src", "href", "action")
        )
    own = text.replace(report._plotly(), "")
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


def test_several_runs_are_compared_on_one_page(make_run, tmp_path):
    paths = [make_run("one", trials=8), make_run("two", seed=1, trials=6)]
    text = analysis.write_report(paths, tmp_path / "both.html").read_text()
    assert "Comparison of sweeps" in text
    for part in (
        "<h2>Compared by run</h2>",
        "<th scope='row'>one</th>",
        "<th scope='row'>two</th>",
        "after 4 points",
    ):
        assert part in text


def test_seeds_are_told_once(make_run):
    text = analysis.write_report(make_run(trials=60, replicates=3)).read_text()
    assert "They are 20 configurations, each with up to 3 seeds." in text
    assert text.count("over seeds; the trial is the seed nearest the mean") == 1


def test_page_data(make_run):
    data = plots.page_data(analysis.load(make_run()))
    assert data["colour"] == "config/init"
    assert len(data["front"]) == len(analysis.load(make_run("again")).front())
    share = data["progress"]["share"]
    assert share == sorted(share)
    assert 0 < share[-1] <= 1
    effect = next(e for e in data["effects"] if e["param"] == "init")
    assert sum(level["count"] for level in effect["levels"]) == 31
    assert {t["stage"] for t in data["curves"]["trials"]} == {"wfn"}


def test_explained_variance():
    values = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    assert plots.explained([0, 0, 0, 1, 1, 1], values) > 0.7
    assert plots.explained([0, 1, 0, 1, 0, 1], values) < 0.2
    assert plots.explained([0] * 6, values) == 0.0


@needs_browser
def test_browser_draws_all_and_runs_nothing_of_the_run(make_run, tmp_path):
    """A script or handler from the run, were there one, would meet the policy and a message
    on the console.
    """
    dom, console = browse(
        analysis.write_report(evil_run(make_run), by="init"), tmp_path / "profile"
    )
    assert console == []
    assert "data-ready=" in dom
    elements = Elements(dom).found
    drawn = {
        attributes.get("id")
        for _, attributes in elements
        if "js-plotly-plot" in (attributes.get("class") or "")
    }
    assert {
        "front-plot",
        "curves-plot",
        "progress-plot",
        "importance-plot",
        "compare-plot",
    } <= drawn
    assert (
        sum(
            "js-plotly-plot" in (attributes.get("class") or "")
            for _, attributes in elements
        )
        >= 10
    )
    assert (
        sum(tag == "tr" and "data-row" in attributes for tag, attributes in elements)
        == 40
    )
    assert any(
        tag == "svg" and attributes.get("class") == "parallel"
        for tag, attributes in elements
    )
    assert not any(
        tag == "img" or "onerror" in attributes for tag, attributes in elements
    )
    assert f"<h1>{EVIL}</h1>" in html.unescape(dom)


@needs_browser
def test_browser_ties_points_to_rows_and_fits_a_phone(make_run, tmp_path):
    names = (
        ("accuracy", "max", 0.85),
        ("latency_ms", "min", 9.0),
        ("num_params", "min", None),
    )
    objectives = [
        {"metric": metric, "mode": mode, "bound": bound}
        for metric, mode, bound in names
    ]
    path = make_run(header={"objectives": objectives})
    page = analysis.write_report(path)
    best = f"{100 * analysis.load(path).complete()['metric/accuracy'].max():.2f} %"
    script = """
      const shown = () => [...document.querySelectorAll('tbody tr[data-row]')].filter((r) => !r.hidden);
      const plot = $('front-plot'); const trace = plot.data.findLast((t) => t.customdata);
      Plotly.Fx.hover(plot, [{ curveNumber: plot.data.lastIndexOf(trace), pointNumber: 0 }]);
      const hover = [...plot.querySelectorAll('.hoverlayer text')].map((t) => t.textContent).join(' ');
      plot.emit('plotly_click', { points: [{ customdata: trace.customdata[0] }] });
      const on = [...document.querySelectorAll('tr.on')].map((r) => Number(r.dataset.row) - trace.customdata[0]);
      const stage = [...document.querySelectorAll('#stages thead button')].find((b) => b.textContent === 'Hits');
      stage.click();
      const hits = [...document.querySelectorAll('#stages tbody tr')].map((r) => Number(r.cells[3].textContent));
      const first = shown()[0].cells[2].textContent;
      document.querySelectorAll('#table thead button')[2].click();
      const lowest = shown()[0].cells[2].textContent;
      const search = document.querySelector('#table-controls input[type=search]');
      search.value = 'failed'; search.dispatchEvent(new Event('input'));
      $('theme').click();
      return { on, first, lowest, failed: shown().length, theme: document.documentElement.dataset.theme,
        ink: plot.layout.font.color, lines: document.querySelectorAll('.parallel path.on').length,
        wider: document.documentElement.scrollWidth - document.documentElement.clientWidth, bounds: plot.layout.shapes.length,
        modes: document.querySelectorAll('.segments button').length,
        axes: document.querySelectorAll('#front-controls select').length, hover: hover.includes('Trial ' + D.ids[trace.customdata[0]]),
        sorted: hits.length > 2 && hits.every((v, i) => i === 0 || hits[i - 1] >= v),
        requests: performance.getEntriesByType('resource').map((r) => r.name) };
    """
    assert probed(page, tmp_path / "profile", script, "500,900") == {
        **{
            "on": [0],
            "first": best,
            "lowest": "40.00 %",
            "failed": 3,
            "theme": "dark",
            "ink": "#e9ebed",
        },
        **{
            "lines": 1,
            "wider": 0,
            "bounds": 2,
            "modes": 2,
            "axes": 4,
            "hover": True,
            "sorted": True,
            "requests": [],
        },
    }


@needs_browser
def test_browser_leaves_out_the_front_of_a_run_without_a_complete_trial(
    make_run, tmp_path
):
    def interrupt(record):
        record["status"] = "interrupted"
        record["metrics"] = {}

    page = analysis.write_report(make_run(trials=3, change=interrupt))
    script = (
        "return { front: document.getElementById('front') !== null, trials:"
        " document.querySelectorAll('tr[data-row]').length }"
    )
    assert probed(page, tmp_path / "profile", script) == {"front": False, "trials": 3}
    assert "No complete trial" in page.read_text()
