"""What a trial keeps of its predictions, and its page in the report."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import analysis
from analysis.contract import PREDICTIONS_FILE
from analysis.predictions import LARGEST_BYTES, read_predictions
from analysis.report import predictions as shown


def png(side: int = 4, shade: int = 0) -> str:
    file = io.BytesIO()
    Image.new("L", (side, side), shade).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def kept(**changes: Any) -> dict[str, Any]:
    content = {
        "schema": 2,
        "part": "validation",
        "confusion": [[0, 0, 40], [1, 0, 8], [1, 1, 2]],
        "calibration": [[40, 0.9, 0.8], [10, 0.5, 0.6]],
        "samples": [[1, 0, 0.99, png()], [0, 0, 0.4, png(shade=9)]],
    }
    return content | changes


def write(run: Path, trial: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (run / "trials" / trial / PREDICTIONS_FILE).write_text(text)


def test_predictions_are_read(make_run) -> None:
    run = make_run(trials=3)
    assert read_predictions(run, "00000") is None
    write(run, "00000", kept())
    found = read_predictions(run, "00000")
    assert found is not None
    assert found.confusion[1] == (1, 0, 8)
    assert found.samples[0][:3] == (1, 0, 0.99)
    assert found.calibration_error == pytest.approx((40 * 0.1 + 10 * 0.1) / 50)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        (kept(schema=9), "schema 9"),
        ({"schema": 2}, "KeyError"),
        (kept(confusion=[[0, -1, 3]]), "no count"),
        (kept(confusion=[[0, 1]]), "not enough values"),
        (kept(calibration=[[1, 2, 0.5]]), "not from 0 to 1"),
        (kept(samples=[[0, 0, float("nan"), png()]]), "not from 0 to 1"),
        (kept(samples=[[0, 0, 0.5, "<svg onload=evil()>"]]), "not base64"),
        (kept(samples=[[0, 0, 0.5, base64.b64encode(b"GIF89a").decode()]]), "no PNG"),
        (kept(samples=[[0, 0, 0.5, png(2000)]]), "a side above"),
        (kept(samples=[[0, 0, 0.5, "A" * 40_000]]), "too long"),
        (" " * (LARGEST_BYTES + 1), "larger than"),
    ],
)
def test_what_is_malformed_is_named(make_run, content: object, said: str) -> None:
    run = make_run(trials=3)
    write(run, "00000", content)
    with pytest.raises(
        ValueError, match=rf"trials/00000/{PREDICTIONS_FILE}: .*{said}|{said}"
    ):
        read_predictions(run, "00000")


def test_a_link_out_of_the_run_is_not_followed(make_run, tmp_path: Path) -> None:
    run = make_run(trials=3)
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(kept()))
    (run / "trials/00000" / PREDICTIONS_FILE).symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the run folder"):
        read_predictions(run, "00000")


def test_the_page_carries_few_and_light_thumbnails(
    make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that two trials share stands once; what has no room is left out."""
    path = make_run(trials=12)
    for folder in (path / "trials").iterdir():
        write(path, folder.name, kept())
    run = analysis.load(path)
    rows = {trial: row for row, trial in enumerate(run.trials["trial_id"])}
    found = shown.shown_predictions(run, rows, rows)
    assert len(found["images"]) == 2
    assert len(found["trials"]) == 12
    monkeypatch.setattr(shown, "MAX_THUMBNAILS", len(png()))
    monkeypatch.setattr(shown, "MAX_TRIALS", 5)
    found = shown.shown_predictions(run, rows, rows)
    assert len(found["images"]) == 1
    assert [len(t["samples"]) for t in found["trials"].values()] == [1] * 5
    write(path, "00000", "{")
    found = shown.shown_predictions(run, rows, rows)
    assert "not valid JSON" in found["trials"]["0"]["problem"]


def test_a_trial_shows_what_it_predicts(make_run, open_page) -> None:
    path = make_run(trials=12)
    for trial in ("00000", "00001"):
        write(path, trial, kept() if trial == "00000" else "{")
    page = open_page(analysis.write_report(path))
    seen = page.run("""
        select(0);
        const images = [...document.querySelectorAll('.samples img')];
        return [$('trial-body').textContent, images.map((i) => [i.naturalWidth, i.alt]),
                document.querySelectorAll('.reliability circle').length];
    """)
    names = list(analysis.load(path).classes.query("trial_id == '00000'")["class"])
    assert "expected calibration error 10.00 %" in seen[0].replace("\u202f", " ")
    assert seen[2] == 2
    page.wait("[...document.querySelectorAll('.samples img')].every((i) => i.complete)")
    assert page.run("return document.querySelector('.samples img').naturalWidth") == 4
    assert seen[1][0][1] == f"{names[1]}, taken for {names[0]}, 99 %"
    assert "not valid JSON" in page.run("select(1); return $('trial-body').textContent")
    assert page.console == []
