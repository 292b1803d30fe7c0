"""The live page in a browser; `tests/sweeps/test_serve.py` has its server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.notes import Note, read_notes
from sweeps.run.driving import driving
from sweeps.run.requests import read_requests
from sweeps.serve import live
from tests.analysis.browser import Browser
from tests.analysis.test_predictions import kept as kept_predictions
from tests.analysis.test_predictions import write as write_predictions
from tests.sweeps.serving import begun, epoch, served


def test_the_page_grows_while_trials_run(
    make_run: Callable[..., Path],
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch in its curve, an ended trial in the table and on the front, without a reload."""
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LOOKS", 0.1)
    run = make_run(trials=8)
    for trial in (run / "trials").iterdir():
        write_predictions(run, trial.name, kept_predictions())
    with driving(run), served(run) as server:
        page = browser.open(f"{server.address}run/demo/")
        page.run("window.first = true; select(D.eligible[0])")
        page.wait("document.querySelectorAll('.samples img').length === 2")
        page.wait("$('live-note').textContent.includes('driven by')")
        chosen = page.run("return D.ids[state.row]")
        record = begun(run, "00700")
        page.wait("ROW.has('00700')")
        for number in range(2):
            epoch(record, number)
        values = (
            "D.curves.trials.find((t) => t.row === ROW.get('00700'))?.values[0].length"
        )
        page.wait(f"{values} === 2")
        page.wait("$('live-trials').textContent.includes('epoch 2 of 4')")
        drawn = (
            "$('curves-plot').data.some((t) => t.customdata.includes(ROW.get('00700')))"
        )
        page.wait(drawn)
        before = page.run("return D.eligible.length")
        record.finish("complete", metrics={"accuracy": 0.999, "gmacs": 0.001})
        page.wait(f"D.eligible.length === {before + 1}")
        page.wait("FRONT.has(ROW.get('00700'))")
        page.wait("$('summary').textContent.includes('00700')")
        page.wait("table.nodes.has(ROW.get('00700'))")
        assert page.run("return D.ids[state.row]") == chosen
        page.run("document.querySelector('#live-controls button').click()")
        page.wait("$('live-note').textContent.includes('no more start')")
        assert (run / "stop").exists()
        page.run("""
            $('try-text').value = 'stages.finetune.lr: 0.01\\nstages.init: none';
            $('try').requestSubmit();
        """)
        page.wait("$('live-requests').textContent.includes('waits for its turn')")
        wanted = {"stages.finetune.lr": 0.01, "stages.init": "none"}
        assert read_requests(run)["0000"].configuration == wanted
        page.run("""
            const [text, tags] = document.querySelectorAll('.noted textarea, .noted input');
            text.value = 'Ship this.';
            tags.value = 'ship, small';
            text.closest('form').requestSubmit();
        """)
        page.wait("D.notes[state.row]?.tags.length === 2")
        assert read_notes(run, [])[chosen] == Note("Ship this.", ("ship", "small"))
        assert page.run("return window.first")
        assert page.console == []
        page.close()
