"""Several runs on one axis set, what decides, layers, and the summaries outside the report."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

import analysis
from analysis import summary
from analysis.importance import importance
from analysis.points import points_of
from analysis.report.layers import layer_data
from analysis.report.markdown import code

EVIL = "<img src=x onerror=alert(1)> [a](javascript:1) `b` | c\n# d @everyone"


def simple_run(make_run, name: str, rows: list[tuple[float, float, float]]):
    """A run whose complete trials have these (accuracy, gmacs, seconds), in this order."""

    def change(record):
        accuracy, gmacs, seconds = rows[record["number"]]
        start = pd.Timestamp("2026-03-04T09:00:00+00:00") + pd.Timedelta(
            seconds=100 * record["number"]
        )
        record |= {
            "status": "complete",
            "metrics": {"accuracy": accuracy, "gmacs": gmacs},
            "seconds": seconds,
        }
        record |= {
            "started": start.isoformat(),
            "ended": (start + pd.Timedelta(seconds=seconds)).isoformat(),
        }

    return analysis.load(make_run(name, trials=len(rows), change=change))


def test_compared_by_hand(make_run):
    """Reference: accuracy 0.5 - 0.04, gmacs 3 + 0.2, so the box is 0.44 x 2.2; volumes are
    rectangles in it.
    """
    a = simple_run(make_run, "a", [(0.5, 3.0, 10), (0.9, 2.0, 10), (0.7, 1.0, 20)])
    b = simple_run(make_run, "b", [(0.8, 1.5, 15)])
    found = analysis.compare(analysis.merge([a, b]))
    assert found.reference == pytest.approx({"accuracy": 0.46, "gmacs": 3.2})
    box = 0.44 * 2.2
    first, second = found.groups
    assert (first.name, second.name) == ("a", "b")
    after_two = 0.44 * 1.2
    assert first.volume == pytest.approx((after_two + 0.24 * 1.0) / box)
    assert second.volume == pytest.approx(0.34 * 1.7 / box)
    assert (first.points, first.front, first.on_front) == (3, 2, 2)
    assert (second.points, second.front, second.on_front) == (1, 1, 1)
    assert (found.budget, found.time) == (1, 15)
    assert first.budget == pytest.approx(0.04 * 0.2 / box)  # one trial each
    assert first.at_time == pytest.approx(
        0.04 * 0.2 / box
    )  # its second trial ends after 20 s of trials
    assert second.at_time == pytest.approx(second.volume)
    assert first.best == pytest.approx((0.9, 1.0))
    assert (first.seconds, second.seconds) == (40, 15)
    assert first.curves["points"][0] == [1, 2, 3]
    assert first.curves["compute"][0] == [10, 20, 40]
    assert first.curves["wall"][0] == pytest.approx([10, 110, 220])
    assert math.isnan(first.spread)


def test_merge_keeps_trials_apart(make_run):
    a, b = analysis.load(make_run("a")), analysis.load(make_run("b/a", seed=1))
    merged = analysis.merge([a, b])
    assert len(merged.trials) == 80
    assert merged.trials["trial_id"].is_unique
    assert set(merged.trials["config/run"]) == {"a", "a (2)"}
    assert len(merged.points()) == len(a.points()) + len(b.points())
    assert merged.source_of("a (2)/00003") == (b.path, "00003")
    assert len(merged.layers) == len(a.layers) + len(b.layers)
    best = merged.front().iloc[0]["trial_id"]
    assert summary.command(merged, best, "onnx").startswith(
        "sweeps export --format onnx -o "
    )


def test_merge_takes_shared_objectives_and_bounds(make_run):
    bounded = [
        {"metric": "gmacs", "mode": "min", "bound": 0.5},
        {"metric": "accuracy", "mode": "max", "bound": 0.5},
    ]
    a = analysis.load(make_run("a", header={"objectives": bounded}))
    b = analysis.load(
        make_run(
            "b",
            header={
                "objectives": [{"metric": "accuracy", "mode": "max", "bound": 0.5}]
            },
        )
    )
    merged = analysis.merge([a, b])
    assert [(o.metric, o.bound) for o in merged.objectives] == [
        ("gmacs", None),
        ("accuracy", 0.5),
    ]
    other = analysis.load(
        make_run("c", header={"objectives": [{"metric": "elsewhere", "mode": "min"}]})
    )
    with pytest.raises(ValueError, match="share no objective"):
        analysis.merge([other, b])
    with pytest.raises(ValueError, match="two runs or more"):
        analysis.merge([a])


def test_compared_by_a_parameter(make_run):
    run = analysis.load(make_run(trials=90, replicates=3))
    found = analysis.compare(run, "init")
    assert {g.name for g in found.groups} == set(run.points()["config/init"])
    assert sum(g.points for g in found.groups) == len(run.points())
    assert [g.volume for g in found.groups] == sorted(
        (g.volume for g in found.groups), reverse=True
    )
    assert all(g.spread > 0 for g in found.groups)
    with pytest.raises(
        ValueError, match="no parameter 'nothing' to compare by; valid: init"
    ):
        analysis.compare(run, "nothing")


def test_importance_finds_what_decides(make_run):
    shares = {i.param: i for i in importance(analysis.load(make_run(trials=80)))}
    assert shares["init"].shares[0] == max(
        i.shares[0] for i in shares.values() if not i.conditional
    )
    assert shares["nvit.target"].shares[1] > 0.9
    assert shares["init.element_rule"].conditional
    assert 0 < shares["init.element_rule"].count < shares["init"].count
    for k in range(2):
        assert sum(
            i.shares[k] for i in shares.values() if not i.conditional
        ) == pytest.approx(1)
    assert importance(analysis.load(make_run("few", trials=8))) == []


def test_layers_of_the_picks_come_first(make_run):
    run = analysis.load(make_run())
    data = layer_data(run)
    assert [d["row"] for d in data[:3]] == list(
        dict.fromkeys([run.picks()["knee"], *run.picks().values()])
    )[:3]
    for shown in data:
        trial = run.trials.iloc[shown["row"]]
        rows = run.layers[run.layers["trial_id"] == trial["trial_id"]]
        blocks = rows[rows["kind"] == "block"]
        assert shown["dims"]["mlp"] == blocks["mlp"].tolist()
        assert bool(shown["sources"]) == (trial["config/init"] == "sws_expand")
        assert shown["layers"] == rows[rows["kind"] == "Linear"]["layer"].tolist()
        assert shown["orders"] == [[0, 120], [1, 52000], [2, 9400], [3, 310]]
        assert shown["quantised"]
        assert sum(shown["histogram"]["counts"]) > 1e4


def test_markdown_keeps_text_as_text(make_run, tmp_path):
    def change(record):
        record["config"]["init"] = (
            EVIL if record["config"]["init"] == "none" else record["config"]["init"]
        )
        if record["error"]:
            record["error"] = {"type": "E", "message": EVIL, "traceback": ""}

    run = analysis.load(
        make_run(change=change, header={"name": EVIL, "command": "run ```\n<b>x</b>"})
    )
    text = analysis.write_markdown(run, tmp_path / "out.md", by="init").read_text()
    outside = re.sub(r"(`{3,}).*?\1", "", text, flags=re.DOTALL)
    outside = re.sub(r"`[^`\n]*`", "", outside)
    assert not re.search(r"<img|javascript|@everyone|<b>|^# d", outside, re.MULTILINE)
    assert "40 trials: 31 complete" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", a)) >= 3 for a in tables)


def test_code_span():
    assert code("a`b|c\n d") == "`a'b\\|c d`"
    assert code("") == "` `"


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


@pytest.mark.parametrize(
    ("value", "spread", "metric", "text"),
    [
        (0.92413, 0.00641, "accuracy", "92.41 ± 0.64 %"),
        (0.9, 0.123, "accuracy", "90 ± 12 %"),
        (12345.6, 120.0, "num_params", "12\u202f346 ± 120"),
        (1.5, 0.0, "latency_ms", "1.5 ms"),
        (1.5, math.nan, "latency_ms", "1.5 ms"),
        (1.5, 0.25, "latency_ms", "1.50 ± 0.25 ms"),
        (0.389, 0.0206, "gmacs", "0.389 ± 0.021"),
    ],
)
def test_plus_minus(value, spread, metric, text):
    assert summary.plus_minus(value, spread, metric) == text


def test_points_of_nothing(make_run):
    run = analysis.load(make_run(trials=0))
    assert points_of(run.complete(), run.objectives).empty
    with pytest.raises(ValueError, match="nothing to compare"):
        analysis.compare(run, "init")
