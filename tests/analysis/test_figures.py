"""Figures as PNG and SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

import analysis


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
