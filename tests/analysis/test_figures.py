"""Figures as PNG and SVG."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

import analysis
from analysis.report import figures
from analysis.report.paper import as_latex


def test_figures_are_whole(make_run, tmp_path):
    pytest.importorskip("matplotlib")
    run = analysis.load(make_run(trials=36, replicates=3))
    first = analysis.write_figures(run, tmp_path / "a", by="init")
    assert [p.name for p in first] == [
        "front.png",
        "progress.png",
        "importance.png",
        "layers.png",
        "comparison.png",
    ]
    for path in first:
        assert path.read_bytes().startswith(b"\x89PNG")
        text = path.with_suffix(".svg").read_text()
        ET.fromstring(text)
        assert "<dc:date>" not in text  # same data, same bytes


def test_figures_of_little_are_few(make_run, tmp_path):
    """One objective, no replicates, nothing to compare, and a single configuration."""
    pytest.importorskip("matplotlib")
    header = {"objectives": [{"metric": "latency_ms", "mode": "min"}]}

    def spread(record):
        if record["metrics"]:
            record["metrics"]["latency_ms"] = 0.1 * 10 ** record["number"]

    run = analysis.load(make_run(trials=4, header=header, change=spread))
    names = [p.name for p in analysis.write_figures(run, tmp_path / "four")]
    assert names == ["front.png", "progress.png", "layers.png"]
    empty = analysis.load(make_run("empty", trials=0))
    assert analysis.write_figures(empty, tmp_path / "none") == []


def test_layers_of_a_model_that_is_not_quantised(make_run, tmp_path):
    pytest.importorskip("matplotlib")
    path = make_run(trials=4)
    for file in path.glob("trials/*/layers.json"):
        text = file.read_text()
        file.write_text(re.sub(r'"num_unique": \d+', '"num_unique": 100000', text))
    names = [
        p.name for p in analysis.write_figures(analysis.load(path), tmp_path / "f")
    ]
    assert "layers.png" in names


def test_log_ticks_are_plain_text_and_a_group_keeps_its_colour(make_run, tmp_path):
    pytest.importorskip("matplotlib")

    def change(record):
        if record["metrics"]:
            record["metrics"]["gmacs"] = 3 * 10 ** (record["number"] / 12)

    run = analysis.load(make_run(trials=36, change=change))
    folder = tmp_path / "f"
    analysis.write_figures(run, folder, by="init", formats=("svg",))
    front = (folder / "front.svg").read_text()
    assert "mathdefault" not in front
    assert "<!-- 100 -->" in front
    comparison = (folder / "comparison.svg").read_text()
    groups = figures._groups(run.configurations(), "config/init")
    order = [g.name for g in analysis.compare_groups(run, by="init").groups]
    colours = {group.name: group.colour for group in groups}
    lines = re.findall(r"<path [^>]*style=\"fill: none; stroke: (#\w+)", comparison)
    drawn = [colour for colour in lines if colour in colours.values()]
    assert list(dict.fromkeys(drawn)) == [colours[name] for name in order]


def test_a_paper_gets_vectors_and_tables_with_intervals(make_run, tmp_path):
    pytest.importorskip("matplotlib")
    run = analysis.load(make_run(trials=24, replicates=3))
    written = analysis.write_paper(run, tmp_path / "paper")
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"front.tex", "front.md", "front.pdf", "front.svg"} <= names
    latex = written[0].read_text()
    rows = analysis.front_text(run)
    assert latex.count(r" \\") == len(rows) + 1
    for value in rows["accuracy"]:
        assert value.replace("±", r"$\pm$").replace("%", r"\%") in latex
        assert value in written[1].read_text()
    assert as_latex(["a_b"], [["5 % \\x"]]).splitlines()[3:6] == [
        r"a\_b \\",
        r"\midrule",
        r"5 \% \textbackslash{}x \\",
    ]


def test_a_group_stands_in_the_legend_once(make_run, tmp_path):
    """Whether all of its configurations are on the front, some or none."""
    pytest.importorskip("matplotlib")
    run = analysis.load(make_run(trials=36))
    analysis.write_figures(run, tmp_path, by="init", formats=("svg",))
    text = (tmp_path / "front.svg").read_text()
    names = [
        group.name for group in figures._groups(run.configurations(), "config/init")
    ]
    on_front = set(run.front()["config/init"])
    assert on_front < set(run.configurations()["config/init"]), "one has none"
    assert all(text.count(f"<!-- {name} -->") == 1 for name in names)


def test_wide_numbers_do_not_touch(make_run):
    mpl = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def change(record):
        if record["metrics"]:
            record["metrics"]["gmacs"] = 300_000.0 + 50_000 * record["number"]

    run = analysis.load(make_run(trials=36, change=change))
    with mpl.rc_context(figures._STYLE):
        figure = Figure(layout="constrained")
        figures._front(figure, run, None)
        figure.draw_without_rendering()
        for axes in figure.axes:
            labels = [t.get_window_extent() for t in axes.get_xticklabels()]
            shown = [box for box in labels if box.width]
            gaps = [b.x0 - a.x1 for a, b in itertools.pairwise(shown)]
            assert min(gaps) > 0
