"""Figures as PNG and SVG."""

from __future__ import annotations

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
