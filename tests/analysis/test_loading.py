"""Loading run folders, whole and damaged, and Parquet there and back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.tables.schema import TABLES


def test_all_trials_have_a_row(demo_run):
    assert len(demo_run.trials) == 40
    assert demo_run.problems == []
    assert demo_run.name == "demo"
    assert demo_run.trials["status"].value_counts().to_dict() == {
        "complete": 31,
        "pruned": 4,
        "failed": 3,
        "interrupted": 1,
        "running": 1,
    }
    failed = demo_run.trials[demo_run.trials["status"] == "failed"]
    assert failed["error"].str.startswith("ValueError: stage nvit").all()
    assert failed["error_traceback"].str.contains("Traceback").all()
    assert demo_run.trials["started"].dtype == "datetime64[us, UTC]"
    assert set(demo_run.epochs["trial_id"]) <= set(demo_run.trials["trial_id"])
    assert {"metric/accuracy", "cached", "seconds_full"} <= set(demo_run.stages.columns)


def test_front_holds_complete_trials_within_bounds(make_run, demo_run):
    front = demo_run.front()
    done = demo_run.complete()
    for _, row in front.iterrows():
        better = (done["metric/accuracy"] > row["metric/accuracy"]) & (
            done["metric/gmacs"] <= row["metric/gmacs"]
        )
        assert not better.any()
    assert (front["status"] == "complete").all()
    bounded = [
        {"metric": "accuracy", "mode": "max", "bound": None},
        {"metric": "gmacs", "mode": "min", "bound": 0.6},
    ]
    limited = analysis.load(make_run("bounded", header={"objectives": bounded})).front()
    assert (limited["metric/gmacs"] <= 0.6).all()
    assert set(limited["trial_id"]) == set(
        front[front["metric/gmacs"] <= 0.6]["trial_id"]
    )


def test_picks_and_hypervolume(demo_run):
    best = demo_run.best()
    assert list(best.index) == ["best accuracy", "best gmacs", "knee"]
    assert (
        best.loc["best accuracy", "metric/accuracy"]
        == demo_run.complete()["metric/accuracy"].max()
    )
    assert (
        best.loc["best gmacs", "metric/gmacs"]
        == demo_run.complete()["metric/gmacs"].min()
    )
    assert demo_run.hypervolume() == demo_run.hypervolume(demo_run.reference()) > 0
    assert (
        demo_run.hypervolume([0.0, 2.0])
        == demo_run.hypervolume({"gmacs": 2.0, "accuracy": 0.0})
        > demo_run.hypervolume()
    )
    with pytest.raises(ValueError, match="reference point"):
        demo_run.hypervolume([0.0])


def test_one_objective(make_run):
    run = analysis.load(
        make_run(
            header={
                "objectives": [{"metric": "accuracy", "mode": "max", "bound": None}]
            }
        )
    )
    assert list(run.best().index) == ["best accuracy"]
    assert len(run.front()) == 1
    assert run.hypervolume([0.0]) == pytest.approx(
        run.complete()["metric/accuracy"].max()
    )


def test_not_finite_metrics_are_loaded_and_never_on_a_front(make_run):
    def change(record):
        if record["number"] == 0:
            record["metrics"] |= {"accuracy": float("inf"), "gmacs": 0.0}
        if record["number"] == 1:
            record["metrics"] |= {"accuracy": 2.0, "gmacs": float("nan")}

    run = analysis.load(make_run(change=change))
    assert np.isposinf(run.trials.loc[0, "metric/accuracy"])
    assert not {"00000", "00001"} & set(run.front()["trial_id"])
    assert np.isfinite(run.hypervolume())


def test_damaged_files_of_schema_1_are_named_and_the_rest_loads(make_run):
    path = make_run(schema=1)
    trials = path / "trials"
    (trials / "00000" / "record.json").write_text('{"schema": 1, "trial_id": "000')
    (trials / "00001" / "record.json").write_text('{"other": "software"}')
    (trials / "00002" / "record.json").write_bytes(b"\xff\xfe\x00")
    (trials / "00003" / "record.json").write_text("[" * 100_000)
    shutil.copytree(trials / "00005", trials / "00005 (copy)")
    (trials / "notes.txt").write_text("hello")
    (trials / "empty").mkdir()
    record = json.loads((trials / "00007" / "record.json").read_text())
    record |= {
        "seed": "seven",
        "started": "yesterday",
        "stages": {"a": 1},
        "attempts": 10**30,
    }
    (trials / "00007" / "record.json").write_text(
        json.dumps(record | {"metrics": {"accuracy": "high", "gmacs": 10**400}})
    )
    with (trials / "00008" / "epochs.jsonl").open("r+") as file:
        whole = len(file.readlines())
        file.write('[1]\n{"stage": "wfn", "epo')

    run = analysis.load(path)

    text = "\n".join(run.problems)
    for part in (
        "00000/record.json",
        "00001/record.json",
        "00002/record.json",
        "00003/record.json",
        "notes.txt",
    ):
        assert f"trials/{part}" in text
    for part in (
        "00005 (copy)/record.json: trial_id",
        "empty: neither plan.json nor record.json",
        "seed 'seven'",
        "started 'yesterday'",
    ):
        assert part in text
    for part in (
        "stages must be",
        "attempts",
        "objective 'accuracy' is 'high'",
        f"00008/epochs.jsonl: line {whole + 1}",
    ):
        assert part in text
    assert f"00008/epochs.jsonl: line {whole + 2}" in text
    assert len(run.trials) == 36
    assert len(run.epochs[run.epochs["trial_id"] == "00008"]) == len(
        analysis.load(make_run("whole")).epochs.query("trial_id == '00008'")
    )
    analysis.gather(path)
    assert analysis.write_report(path).stat().st_size > 1e6


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema": 99}',
        '{"schema": 1, "objectives": [{"metric": 3}], "params": "x"}',
    ],
)
def test_damaged_run_json(make_run, content):
    path = make_run()
    (path / "run.json").write_text(content)
    run = analysis.load(path)
    assert any("run.json" in problem for problem in run.problems)
    assert len(run.trials) == 40
    assert run.front().empty
    assert run.best().empty
    assert run.hypervolume() == 0.0
    analysis.write_report(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 3}, "run.json: name must be text, got 3"),
        ({"spec": []}, "run.json: spec must be a JSON object"),
        ({"seed": "x"}, None),
        ({"objectives": [{"metric": "a", "mode": "up"}]}, "mode must be min or max"),
        (
            {"objectives": [{"metric": "a", "mode": "min", "bound": "x"}]},
            "bound must be a finite number or null",
        ),
        ({"objectives": "accuracy"}, "run.json: objective 'accuracy' is malformed"),
    ],
)
def test_a_malformed_field_of_run_json_takes_its_default(make_run, change, problem):
    run = analysis.load(make_run(trials=2, header=change))
    assert len(run.trials) == 2
    if problem is None:
        assert run.seed is None
    else:
        assert any(problem in text for text in run.problems)


def test_damaged_layers_and_epochs_are_named(make_run):
    trials = make_run(trials=6) / "trials"
    (trials / "00000" / "layers.json").write_text("{")
    (trials / "00001" / "layers.json").write_text('{"schema": 2, "layers": [3]}')
    (trials / "00002" / "epochs.jsonl").write_text("[1]\n" * 9)
    (trials / "00003" / "epochs.jsonl").write_text(
        '\n{"épo\ud83d": 1}\n'.encode("utf-8", "replace").decode()
    )
    (trials / "00003" / "layers.json").unlink()
    (trials / "00003" / "layers.json").mkdir()
    run = analysis.load(trials.parent)
    text = "\n".join(run.problems)
    for part in (
        "00000/layers.json: not valid JSON",
        "00001/layers.json: layers must be a list",
        "00002/epochs.jsonl: line 5 is not a JSON object",
        "00002/epochs.jsonl: 4 more lines are not JSON objects",
    ):
        assert part in text
    assert "épo?" in run.epochs


def test_classes_load_and_damaged_ones_are_named(make_run):
    trials = make_run(trials=6) / "trials"
    whole = analysis.load(trials.parent)
    names = ["trial_id", "index", "class", "images", "accuracy"]
    assert whole.classes.columns.tolist() == [*names, "test_images", "test_accuracy"]
    rows = whole.classes[whole.classes["trial_id"] == "00000"]
    assert rows["class"].tolist() == ["cat", "dög", "bird"]
    assert rows["images"].tolist() == [20, 30, 0]
    known = whole.trials.set_index("trial_id").loc["00000", "metric/accuracy"]
    assert rows["accuracy"].iloc[:2].tolist() == [known] * 2
    assert rows["accuracy"].isna().tolist() == [False, False, True]

    (trials / "00000" / "classes.json").write_text("{")
    (trials / "00001" / "classes.json").write_text('{"schema": 2, "classes": {}}')
    (trials / "00002" / "classes.json").write_text(
        '{"schema": 2, "classes": [{"index": 0, "class": 5, "images": "many"}]}'
    )
    (trials / "00003" / "classes.json").write_text('{"schema": 9, "classes": []}')
    run = analysis.load(trials.parent)
    text = "\n".join(run.problems)
    for part in (
        "00000/classes.json: not valid JSON",
        "00001/classes.json: classes must be a list",
        "00002/classes.json: class 0: class 5 is not of type string",
        "00002/classes.json: class 0: images 'many' is not of type Int64",
        "00003/classes.json: schema 9",
    ):
        assert part in text
    assert len(run.trials) == 6
    assert run.classes["trial_id"].tolist() == ["00002"]
    assert run.classes["images"].isna().all()


def test_parquet_there_and_back(make_run):
    path = make_run()
    run = analysis.gather(path)
    shutil.rmtree(path / "trials")
    (path / "run.json").unlink()
    stored = analysis.load(path)
    assert stored.problems == []
    assert (stored.name, stored.objectives, stored.parameters) == (
        run.name,
        run.objectives,
        run.parameters,
    )
    assert (stored.seed, stored.command, stored.spec) == (
        run.seed,
        run.command,
        run.spec,
    )
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(stored, name), getattr(run, name))
    pd.testing.assert_frame_equal(stored.fronts, run.fronts)
    files = sorted(
        p.relative_to(path / "parquet").as_posix()
        for p in (path / "parquet").rglob("*")
        if p.is_file()
    )
    assert files == [
        "classes/part-00000.parquet",
        "epochs/part-00000.parquet",
        "fronts/part-00000.parquet",
        "layers/part-00000.parquet",
        "manifest.json",
        "stages/part-00000.parquet",
        "trials/part-00000.parquet",
    ]


def test_parquet_states_schema_and_units(make_run):
    path = make_run()
    analysis.gather(path)
    for table, column, unit in [
        ("trials", "seconds", "s"),
        ("trials", "metric/latency_ms", "ms"),
        ("epochs", "images_per_second", "images/s"),
        ("epochs", "accuracy", "fraction"),
        ("stages", "seconds_full", "s"),
        ("layers", "entropy_bits", "bits"),
        ("classes", "test_accuracy", "fraction"),
        ("fronts", "sd/accuracy", "fraction"),
    ]:
        schema = pq.read_schema(path / "parquet" / table / "part-00000.parquet")
        meta = json.loads(schema.metadata[b"sweeps"])
        assert (meta["schema"], meta["table"], meta["run"]["name"]) == (
            2,
            table,
            "demo",
        )
        assert set(meta["columns"]) == set(schema.names)
        assert meta["columns"][column]["unit"] == unit
        assert schema.field(column).metadata[b"unit"] == unit.encode()
        assert all(schema.field(name).metadata[b"description"] for name in schema.names)


def test_parquet_files_keep_one_policy(make_run):
    """One row group a file, zstd, text dictionary-encoded: small, and read alike by every
    reader.
    """
    path = make_run()
    analysis.gather(path)
    for file in (path / "parquet").rglob("*.parquet"):
        data = pq.ParquetFile(file).metadata
        assert data.num_row_groups == 1
        for i in range(data.num_columns):
            column = data.row_group(0).column(i)
            assert column.compression == "ZSTD"
            if column.physical_type == "BYTE_ARRAY":
                assert "RLE_DICTIONARY" in column.encodings


def test_damaged_parquet_is_named(make_run):
    path = make_run()
    run = analysis.gather(path)
    shutil.rmtree(path / "trials")
    (path / "parquet" / "epochs" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    pd.DataFrame({"a": [1]}).to_parquet(
        path / "parquet" / "stages" / "part-00000.parquet"
    )
    stored = analysis.load(path)
    assert [p.partition(":")[0] for p in stored.problems] == [
        "parquet/epochs/part-00000.parquet",
        "parquet/stages/part-00000.parquet",
    ]
    pd.testing.assert_frame_equal(stored.trials, run.trials)
    assert stored.epochs.empty


def test_mixed_types_become_text(make_run):
    odd = [1, "a", 0.5, True, None, [1, 2], {"b": "\ud800"}]

    def change(record):
        record["config"]["odd"] = odd[record["number"] % len(odd)]
        record["config"]["flag"] = record["number"] % 2 == 0
        record["config"]["huge"] = 2**70
        record["metrics"]["note"] = "fine" if record["number"] else 3

    path = make_run(change=change, trials=8)
    run = analysis.gather(path)
    assert run.trials["config/odd"].tolist() == [
        "1",
        "a",
        "0.5",
        "true",
        pd.NA,
        "[1, 2]",
        '{"b": "?"}',
        "1",
    ]
    assert run.trials["config/flag"].dtype == "boolean"
    assert run.trials["config/huge"].tolist() == [2.0**70] * 8
    shutil.rmtree(path / "trials")
    pd.testing.assert_frame_equal(analysis.load(path).trials, run.trials)
    analysis.write_report(path)


def test_no_trials_yet(make_run):
    path = make_run(trials=0)
    run = analysis.gather(path)
    assert run.trials.empty
    assert {"metric/accuracy", "config/init", "trial_id"} <= set(run.trials.columns)
    assert run.front().empty
    pd.testing.assert_frame_equal(analysis.load(path).trials, run.trials)
    assert "No trial has begun yet" in analysis.write_report(path).read_text()


def test_not_a_run_folder(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="not a run folder"):
            analysis.load(path)


def test_a_run_in_a_store_is_read_like_a_folder(make_run):
    folder = make_run(trials=6)
    there, here = analysis.load(folder.as_uri()), analysis.load(folder)
    assert there.name == here.name
    assert not there.problems
    pd.testing.assert_frame_equal(there.trials, here.trials)
    with pytest.raises(ValueError, match="not a run folder"):
        analysis.load(f"{folder.as_uri()}/nowhere")
    with pytest.raises(ValueError, match="is no storage that can be read"):
        analysis.load("s4://bucket/run")
