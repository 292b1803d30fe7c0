"""Whether one choice beats another, as the report draws it."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

import analysis
from analysis.report.versus import versus_section

EVIL = "<b onclick=x>"


def pairs_run(make_run, gain: float, name: str = "wfn") -> analysis.Run:
    """Six configurations of two seeds: three pairs that differ in `init` alone."""

    def change(record: dict) -> None:
        number, seed = record["number"], record["replicate"]
        pair, side = divmod(number, 2)
        noise = 0.01 * (pair - 1) * side + 0.001 * seed
        accuracy = 0.8 + 0.01 * pair + gain * side + noise
        record |= {
            "status": "complete",
            "error": None,
            "seed": seed,
            "config": {
                "source.args.depth": 1,
                "init": name if side else "uniform",
                "finetune.lr": pair + 1.0,
            },
            "metrics": {"accuracy": accuracy, "gmacs": 1.0 + pair - 0.3 * side},
        }

    header = {"params": ["init", "finetune.lr"]}
    path = make_run(name="pairs", trials=12, replicates=2, change=change, header=header)
    return analysis.load(path)


def rows_of(text: str) -> list[list[str]]:
    rows = re.findall("<tr>(.*?)</tr>", text)[1:]
    cells = [re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    return [[html.unescape(re.sub("<[^>]+>", "", c)) for c in row] for row in cells]


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.05, "better"), (0.0, "not distinguishable")]
)
def test_the_verdict_of_a_pair_is_that_of_its_interval(
    make_run, gain: float, verdict: str
) -> None:
    run = pairs_run(make_run, gain)
    rows = {row[1]: row for row in rows_of(versus_section(run, None))}
    assert set(rows) == {"front", "accuracy", "gmacs"}
    assert rows["accuracy"][0] == "wfn against uniform"
    assert rows["accuracy"][5:] == [verdict, "3 pairs of configurations"]
    wanted = analysis.compare(run.select("init==wfn"), run.select("init==uniform"))[0]
    assert wanted.verdict == verdict
    said = rows["accuracy"][2].removesuffix(" points").replace("−", "-")
    assert float(said) == pytest.approx(100 * wanted.mean, rel=0.01, abs=1e-9)
    assert rows["front"][6] == "2 pairs of seeds, 3 configurations each"


def test_a_size_is_compared_by_its_ratio(make_run) -> None:
    """0.7, 1.7 / 2 and 2.7 / 3 of the size: smaller in every pair."""
    run = pairs_run(make_run, 0.0)
    rows = {row[1]: row for row in rows_of(versus_section(run, None))}
    mean = (0.7 * 0.85 * 0.9) ** (1 / 3)
    assert rows["gmacs"][2] == f"{mean:.3g} ×"
    low, high = map(float, rows["gmacs"][3].split(" to "))
    assert low < mean < high


def test_unequal_numbers_are_no_pairs(make_run) -> None:
    """Fronts of 3 and 2 configurations say nothing of the choice; their picture has no interval."""
    run = pairs_run(make_run, 0.05)
    fewer = replace(run, trials=run.trials[2:])
    rows = {row[1]: row for row in rows_of(versus_section(fewer, None))}
    assert rows["front"][3] == "–"
    assert rows["front"][5:] == [
        "cannot be judged",
        "3 and 2 configurations: not equally many",
    ]


def test_nothing_is_said_where_there_is_no_choice(make_run, demo_run) -> None:
    run = pairs_run(make_run, 0.05)
    assert versus_section(replace(run, parameters=["finetune.lr"]), None) == ""
    text = versus_section(demo_run, None)
    assert "not set" not in text
    assert "one choice" in text


def test_names_are_escaped(make_run) -> None:
    assert "<b onclick" not in versus_section(pairs_run(make_run, 0.05, EVIL), None)
