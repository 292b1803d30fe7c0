"""Which commands the report offers for a model, and what it says of their files."""

from __future__ import annotations

import re

import analysis
from analysis.report.delivery import LOAD_PACKED, commands_data, deliveries, needed


def coded_run(make_run, objective: str = "coded_bytes", runtime: str = "torch"):
    """Trials whose files have known sizes; `objective` is one of these."""

    def change(record: dict) -> None:
        sizes = {"coded_bytes": 26450, "file_bytes": 82572, "model_bytes": 75512}
        number = record["number"]
        metrics = {name: size + number for name, size in sizes.items()}
        metrics["accuracy"] = 0.9 + 0.001 * number
        record |= {"status": "complete", "metrics": metrics, "error": None}

    header = {
        "objectives": [
            {"metric": "accuracy", "mode": "max"},
            {"metric": objective, "mode": "min"},
        ],
        "spec": {"measure": {"runtime": runtime}},
    }
    path = make_run(f"{objective}-{runtime}", trials=3, change=change, header=header)
    return analysis.load(path)


def test_the_file_whose_size_counts_comes_first(make_run) -> None:
    run = coded_run(make_run)
    assert [each.what for each in deliveries(run)] == ["packed", "onnx", "reproduce"]
    notes = commands_data(run, ["00001"], {"00001": 1})["sizes"]["1"]
    assert re.match(r"26.451( bytes)?, which coded_bytes counts", notes[0])
    assert re.match("size not measured; its weights are 75.513", notes[1])
    assert notes[2] == ""


def test_the_deployed_file_is_that_of_the_measured_runtime(make_run) -> None:
    run = coded_run(make_run, "file_bytes", "openvino")
    assert [each.what for each in deliveries(run)] == [
        "openvino",
        "packed",
        "reproduce",
    ]
    notes = commands_data(run, ["00000"], {"00000": 0})["sizes"]["0"]
    assert "which file_bytes counts" in notes[0]
    assert re.match("26.450", notes[1])


def test_card_and_trial_page_offer_the_same(make_run, open_page) -> None:
    """The card of the pick says what the page of any trial does, with what is needed beside."""
    run = coded_run(make_run)
    page = open_page(analysis.write_report(run))
    card, panel = page.run("""
        const texts = (start) => [...document.querySelectorAll(`${start} .commands > *`)]
          .map((node) => node.textContent);
        const row = ROW.get(document.querySelector('.pick.first [data-trial]').dataset.trial);
        select(row);
        return [texts('.pick.first'), texts('#trial-body')];
    """)
    assert card == panel
    assert len(card) == 6
    assert "-packed" in card[1]
    assert LOAD_PACKED in page.run("return $('trial-body').textContent")
    assert page.console == []


def test_each_of_several_runs_has_its_commands(make_run) -> None:
    runs = [coded_run(make_run), coded_run(make_run, "coded_bytes", "onnxruntime")]
    both = analysis.merge(runs)
    found = commands_data(both, [], {})["commands"]
    assert len(found) == 2
    for label, commands in found.items():
        assert all(label.rstrip("/") in text for _, text in commands)


def test_what_loads_the_coded_file_exists() -> None:
    from compress import codec

    assert LOAD_PACKED.startswith("compress.codec.decode(")
    assert callable(codec.decode)


def test_without_a_coded_size_nothing_is_said_of_it(demo_run) -> None:
    assert "packed" not in [each.what for each in deliveries(demo_run)]
    assert len(needed(demo_run)) == 1
