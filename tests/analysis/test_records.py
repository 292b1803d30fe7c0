"""Plans and records of schema 2, whole and damaged, and what a run says of its metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.header import metrics_of_run
from analysis.tables.records import config_of
from analysis.tables.schema import TABLES


def edit(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rows(run: analysis.Run) -> pd.DataFrame:
    return run.trials.set_index("trial_id")


def test_both_schemas_give_the_same_tables(make_run):
    def change(record):
        record |= {"world_size": 4, "feasible": record["status"] == "complete"}
        record["code"] = {"commit": "c" * 40, "dirty": record["number"] == 3}
        if record["status"] == "pruned":
            record["pruned"] = {"stage": "wfn", "epoch": 3, "metric": "accuracy"}
        if record["number"] == 20:
            record["refines"] = 7

    new = analysis.load(make_run("new", change=change))
    old = analysis.load(make_run("old", change=change, schema=1))
    assert new.problems == old.problems == []
    assert old.classes.empty  # version 0.1 did not write them
    for name in set(TABLES) - {"classes"}:
        pd.testing.assert_frame_equal(
            getattr(new, name), getattr(old, name), check_like=True
        )
    pd.testing.assert_frame_equal(new.fronts, old.fronts)
    assert rows(new).loc["00003", "code"] == "c" * 40 + "+"


def test_a_plan_without_a_record_is_a_running_trial(make_run):
    path = make_run(trials=6)
    (path / "trials" / "00001" / "record.json").unlink()
    run = analysis.gather(path)
    row = rows(run).loc["00001"]
    assert run.problems == []
    assert (row["status"], row["seed"], row["number"]) == ("running", 1001, 1)
    assert row["config/nvit.target"] > 0
    assert pd.isna(row["attempts"])
    assert pd.isna(row["device"])
    assert len(run.stages[run.stages["trial_id"] == "00001"]) == 0
    # its record is read as soon as it is there, whoever writes it
    record = json.loads((path / "trials" / "00002" / "record.json").read_text())
    record |= {"trial_id": "00001", "status": "failed", "machine": None}
    record["error"] = {"type": "ProcessDied", "message": "out of memory"}
    (path / "trials" / "00001" / "record.json").write_text(json.dumps(record))
    row = rows(analysis.gather(path)).loc["00001"]
    assert (row["status"], row["error"]) == ("failed", "ProcessDied: out of memory")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "00002/plan.json: not valid JSON"),
        ('{"schema": 7}', "00002/plan.json: schema 7, this reader knows 1 and 2"),
        ('{"schema": true}', "00002/plan.json: schema True"),
        ('{"schema": 2, "trial_id": "x"}', "00002/plan.json: trial_id is 'x'"),
        (None, "00002/plan.json: missing or unusable"),
    ],
)
def test_a_damaged_plan_is_named_and_the_record_is_read(make_run, content, problem):
    path = make_run(trials=6)
    file = path / "trials" / "00002" / "plan.json"
    file.unlink() if content is None else file.write_text(content)
    run = analysis.load(path)
    assert any(problem in text for text in run.problems)
    row = rows(run).loc["00002"]
    assert row["status"] == "complete"
    assert row["metric/accuracy"] > 0
    assert pd.isna(row["number"])
    assert len(run.front())
    analysis.write_report(run)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "00002/record.json: not valid JSON"),
        ("[]", "00002/record.json: not a JSON object"),
        ('{"schema": 2, "trial_id": "x"}', "00002/record.json: trial_id is 'x'"),
        (
            '{"schema": 2, "trial_id": "00002", "status": "lost"}',
            "00002/record.json: status 'lost' is none of complete, pruned",
        ),
        (
            '{"schema": 2, "trial_id": "00002", "status": "failed", "machine": 3}',
            "00002/record.json: machine must be a JSON object",
        ),
    ],
)
def test_a_damaged_record_leaves_what_was_planned(make_run, content, problem):
    path = make_run(trials=6)
    (path / "trials" / "00002" / "record.json").write_text(content)
    run = analysis.load(path)
    assert any(problem in text for text in run.problems)
    row = rows(run).loc["00002"]
    assert (row["status"], row["seed"]) == ("running", 1002)
    assert pd.isna(row["metric/accuracy"])


def test_damaged_parts_of_a_plan_are_named(make_run):
    path = make_run(trials=6)
    plan = path / "trials" / "00002" / "plan.json"
    edit(plan, seed="one", source=[1], configuration="x", stages=[{"name": 3}])
    edit(path / "trials" / "00003" / "plan.json", stages={"finetune": {}})
    edit(path / "trials" / "00004" / "plan.json", stages=[{"name": "a", "config": 1}])
    text = "\n".join(analysis.load(path).problems)
    for part in (
        "00002/plan.json: seed 'one' is not of type Int64",
        "00002/plan.json: source must be a JSON object",
        "00002/plan.json: configuration must be a JSON object",
        "00002/plan.json: name 3 is not of type string",
        "00003/plan.json: stages must be a list",
        "00004/plan.json: config must be a JSON object",
    ):
        assert part in text


def test_the_configuration_of_a_plan():
    plan = {
        "configuration": {
            "stages.init": "none",
            "stages.finetune.lr": 0.1,
            "data.limit": 3,
        },
        "source": {"model": "vit", "args": {"depth": 2, "empty": {}}},
        "data": {"mean": [0.5], "limit": 4},
        "stages": [
            {"name": "finetune", "kind": "finetune", "config": {"augment": {"p": 1}}}
        ],
    }
    problems: list[str] = []
    assert config_of(plan, "plan.json", problems) == {
        "init": "none",
        "source.model": "vit",
        "source.args.depth": 2,
        "data.mean": [0.5],
        "data.limit": 4,
        "finetune.augment.p": 1,
    }
    assert problems == []
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert config_of({"source": deep}, "plan.json", problems) == {}


def test_a_plugins_metric_is_described_like_ours(make_run, tmp_path):
    """Its unit and words come from run.json: in tables, report, Markdown and figures."""
    described = {
        "energy": {"description": "energy of one inference", "unit": "mJ"},
        "sharpness": {
            "description": "sharpness on the validation part",
            "unit": "fraction",
        },
    }

    def change(record):
        if record["status"] == "complete":
            record["metrics"]["energy"] = 1.5 + record["number"]
            record["metrics"]["sharpness"] = 0.5

    def with_sharpness(row: dict) -> dict:
        return row | {"sharpness": 1}

    header = {
        "objectives": [{"metric": "energy", "mode": "min"}],
        "metrics": described,
    }
    path = make_run(trials=16, change=change, header=header)
    for file in path.glob("trials/*/epochs.jsonl"):
        lines = [with_sharpness(json.loads(line)) for line in file.open()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = analysis.gather(path)
    assert run.metrics.of("energy").description == "energy of one inference"
    assert not run.metrics.of("energy").is_time
    assert run.epochs["sharpness"].dtype == "float64"
    assert analysis.front_text(run)["energy"].tolist() == ["1.5 mJ"]
    page = analysis.write_report(run).read_text()
    assert "energy 1.5 mJ" in page
    assert '"title":"energy (mJ)","description":"energy of one inference"' in page
    assert '{"name":"sharpness","unit":"fraction","title":"sharpness"}' in page
    assert "1.5 mJ" in analysis.write_markdown(run, tmp_path / "a.md").read_text()
    if pytest.importorskip("matplotlib"):
        figures = analysis.write_figures(run, tmp_path)
        assert "energy (mJ)" in _svg_texts(figures[0].with_suffix(".svg"))
    shutil.rmtree(path / "trials")
    (path / "run.json").unlink()
    assert analysis.load(path).metrics == run.metrics
    # without the description the metric is still there, by its name alone
    assert analysis.load(make_run("bare", trials=4)).metrics.of("energy").unit == ""


def _svg_texts(path: Path) -> str:
    return path.read_text().replace("<!-- ", "").replace(" -->", "")


def test_damaged_descriptions_are_named(make_run):
    metrics = {
        "accuracy": {"description": 3},
        "gmacs": "10^9",
        "loss": {"unit": "", "is_time": 1},
        "energy": {"unit": "mJ", "has_ratio_scale": "yes"},
        "speed": {"unit": "1/s", "is_time": True},
        "heads": {"unit": "1", "has_ratio_scale": True},
        "units": {"unit": "1"},
    }
    path = make_run(trials=4, header={"metrics": metrics})
    run = analysis.load(path)
    assert list(run.metrics) == ["speed", "heads", "units"]
    assert [metric.is_ratio for metric in run.metrics.values()] == [True, True, False]
    assert len(run.problems) == 4
    assert all("needs a description and a unit" in text for text in run.problems)
    assert metrics_of_run(path) == run.metrics
    listed = analysis.load(make_run("listed", trials=4, header={"metrics": []}))
    assert listed.metrics == {}
    assert "metrics must be an object" in listed.problems[0]


def test_an_epochs_metric_that_is_no_number_is_named(make_run):
    path = make_run(trials=4)
    with (path / "trials" / "00000" / "epochs.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "wfn", "epoch": 9, "accuracy": "high"}) + "\n")
    run = analysis.load(path)
    assert any("accuracy 'high' is not of type float64" in p for p in run.problems)
    assert run.epochs["accuracy"].dtype == "float64"


def test_a_run_is_short_in_words_and_its_front_begins_with_what_matters(demo_run):
    assert repr(demo_run) == (
        "<Run demo: 40 trials (31 complete, 4 pruned, 3 failed, 1 interrupted,"
        " 1 running), objectives accuracy max, gmacs min>"
    )
    wanted = [
        "metric/accuracy",
        "metric/gmacs",
        *(f"config/{p}" for p in demo_run.parameters),
    ]
    front = demo_run.front()
    assert list(front)[: len(wanted)] == wanted
    assert set(front) == set(demo_run.configurations())
