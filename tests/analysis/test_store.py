"""Parquet parts: an incremental gather equals a whole one, old schemas load, and others
read the files.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.tables import store
from analysis.tables.schema import FIXED, TABLES


def change_record(path: Path, trial_id: str, **changes: object) -> None:
    file = path / "trials" / trial_id / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same_tables(a: analysis.Run, b: analysis.Run) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))
    pd.testing.assert_frame_equal(a.fronts, b.fronts)
    assert a.problems == b.problems


def parts(path: Path) -> dict[str, int]:
    """Modification times of the stored parts."""
    return {
        p.relative_to(path).as_posix(): p.stat().st_mtime_ns
        for p in (path / "parquet").rglob("part-*.parquet")
    }


def test_incremental_gather_is_a_whole_gather(make_run, tmp_path, monkeypatch):
    """New, changed, removed, damaged and still running trials, over parts of seven."""
    monkeypatch.setattr(store, "TRIALS_PER_PART", 7)
    path = make_run(trials=30)
    more = make_run("more", trials=38, seed=1)
    analysis.gather(path)
    first = parts(path)
    for number in range(30, 38):
        shutil.copytree(
            more / "trials" / f"{number:05d}", path / "trials" / f"{number:05d}"
        )
    change_record(
        path,
        "00029",
        status="complete",
        metrics={"accuracy": 0.99, "gmacs": 0.1, "extra": 3},
    )
    shutil.rmtree(path / "trials" / "00011")
    (path / "trials" / "00012" / "record.json").write_text("{")
    (path / "trials" / "00019" / "layers.json").write_text(
        '{"schema": 2, "layers": [{"layer": "a", "heads": "x"}]}'
    )

    gathered = analysis.gather(path)

    again = parts(path)
    kept = [
        name
        for name in first
        if name.startswith("parquet/epochs/") and first[name] == again[name]
    ]
    assert kept == [
        "parquet/epochs/part-00000.parquet",
        "parquet/epochs/part-00003.parquet",
    ]
    copy = tmp_path / "copy" / path.name
    shutil.copytree(path, copy)
    shutil.rmtree(copy / "parquet")
    assert_same_tables(gathered, analysis.load(path))
    assert_same_tables(gathered, analysis.load(copy))
    assert_same_tables(gathered, analysis.gather(copy))
    assert any("00012/record.json" in problem for problem in gathered.problems)
    # a damaged record leaves what was planned
    assert gathered.trials.set_index("trial_id").loc["00012", "status"] == "running"
    assert len(gathered.trials) == 37


def test_nothing_new_writes_no_part(make_run):
    path = make_run(trials=20)
    change_record(
        path, "00019", status="complete", ended="2026-03-04T11:00:00+00:00"
    )  # a running one is always read
    analysis.gather(path)
    first = {name: time for name, time in parts(path).items() if "fronts" not in name}
    analysis.gather(path)
    assert first == {
        name: time for name, time in parts(path).items() if "fronts" not in name
    }


def test_a_record_changed_after_its_running_row_is_read_again(make_run):
    path = make_run(trials=20)
    assert (
        analysis.gather(path).trials.set_index("trial_id").loc["00019", "status"]
        == "running"
    )
    change_record(
        path, "00019", status="failed", error={"type": "OSError", "message": "gone"}
    )
    assert (
        analysis.gather(path).trials.set_index("trial_id").loc["00019", "error"]
        == "OSError: gone"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema": 2, "objectives": ["accuracy", "gmacs"], "metrics": [], "parts": 3}',
    ],
)
def test_a_damaged_manifest_or_part_costs_a_reading(make_run, content):
    path = make_run(trials=12)
    whole = analysis.gather(path)
    (path / "parquet" / "manifest.json").write_text(content)
    assert_same_tables(analysis.load(path), whole)
    analysis.gather(path)
    (path / "parquet" / "epochs" / "part-00000.parquet").write_bytes(b"PAR1")
    assert_same_tables(analysis.load(path), whole)


def test_other_objectives_are_read_anew(make_run):
    """Which metrics must be numbers depends on them."""
    path = make_run(trials=12, change=lambda record: record["metrics"].update(note="x"))
    analysis.gather(path)
    header = json.loads((path / "run.json").read_text()) | {
        "objectives": [{"metric": "note", "mode": "min"}]
    }
    (path / "run.json").write_text(json.dumps(header))
    assert any(
        "objective 'note' is 'x'" in problem
        for problem in analysis.gather(path).problems
    )


def write_schema_1(path: Path) -> None:
    """The tables as version 1 wrote them: one file a table, without what came later; no records."""
    later = (
        "refines",
        "feasible",
        "pruned_stage",
        "pruned_epoch",
        "world_size",
        "code",
    )
    for name in ("trials", "epochs", "stages"):
        data = pq.read_table(
            path / "parquet" / name / "part-00000.parquet"
        ).drop_columns([c for c in later if name == "trials"])
        meta = json.loads(data.schema.metadata[b"sweeps"]) | {"schema": 1}
        data = data.replace_schema_metadata({b"sweeps": json.dumps(meta).encode()})
        data = data.cast(
            pa.schema(
                [
                    f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f
                    for f in data.schema
                ],
                data.schema.metadata,
            )
        )
        pq.write_table(data, path / "parquet" / f"{name}.parquet")
    for name in (*TABLES, "fronts"):
        shutil.rmtree(path / "parquet" / name)
    (path / "parquet" / "manifest.json").unlink()
    shutil.rmtree(path / "trials")


def test_tables_of_schema_1_load_and_are_brought_up_to_date(make_run):
    path = make_run()
    whole = analysis.gather(path)
    write_schema_1(path)
    old = analysis.load(path)
    assert old.problems == []
    assert old.layers.empty
    pd.testing.assert_frame_equal(old.epochs, whole.epochs)
    pd.testing.assert_frame_equal(old.trials, whole.trials, check_like=True)
    assert old.front()["trial_id"].tolist() == whole.front()["trial_id"].tolist()
    analysis.gather(path)
    assert not list((path / "parquet").glob("*.parquet"))
    pd.testing.assert_frame_equal(analysis.load(path).trials, old.trials)


def test_stored_tables_without_classes_are_brought_up_to_date(make_run):
    path = make_run(trials=6)
    whole = analysis.gather(path)
    shutil.rmtree(path / "parquet" / "classes")
    pd.testing.assert_frame_equal(analysis.gather(path).classes, whole.classes)
    shutil.rmtree(path / "parquet" / "classes")
    shutil.rmtree(path / "trials")
    alone = analysis.load(path)
    assert alone.problems == []
    assert alone.classes.empty
    pd.testing.assert_frame_equal(alone.layers, whole.layers)


def test_tables_of_a_later_schema_are_named(make_run):
    path = make_run()
    analysis.gather(path)
    shutil.rmtree(path / "trials")
    file = path / "parquet" / "trials" / "part-00000.parquet"
    data = pq.read_table(file)
    meta = json.loads(data.schema.metadata[b"sweeps"]) | {"schema": 99}
    pq.write_table(
        data.replace_schema_metadata({b"sweeps": json.dumps(meta).encode()}), file
    )
    assert any(
        "another schema than 1 or 2" in problem
        for problem in analysis.load(path).problems
    )


def test_what_records_of_today_say_is_in_the_tables(make_run):
    def change(record):
        record["world_size"], record["feasible"] = 4, record["number"] % 2 == 0
        record["code"] = {"sha256": "s" * 64, "commit": "c" * 40, "dirty": True}
        if record["status"] == "pruned":
            record["pruned"] = {"stage": "wfn", "epoch": 3, "metric": "accuracy"}
        if record["number"] == 20:
            record["refines"] = 7

    trials = analysis.load(make_run(change=change)).trials.set_index("trial_id")
    assert set(trials["world_size"]) == {4}
    assert set(trials["code"]) == {"c" * 40 + "+"}
    assert trials.loc["00020", "refines"] == 7
    assert trials["refines"].notna().sum() == 1
    pruned = trials[trials["status"] == "pruned"]
    assert (set(pruned["pruned_stage"]), set(pruned["pruned_epoch"])) == ({"wfn"}, {3})
    assert trials["attempts"].tolist() == [
        2 if status == "failed" else 1 for status in trials["status"]
    ]
    assert set(trials["status"]) == {
        "complete",
        "pruned",
        "failed",
        "interrupted",
        "running",
    }


@pytest.mark.parametrize("name", FIXED)
def test_the_documentation_names_every_column(name):
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    part = text.split(f"**{name}**", 1)[1].split("\n\n", 1)[0]
    assert [column for column in FIXED[name] if f"`{column}`" not in part] == []


def test_other_readers_read_the_files(make_run, monkeypatch):
    """Arrow's dataset reader and DuckDB, over all parts, with types and missing values as ours."""
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr(store, "TRIALS_PER_PART", 15)
    path = make_run()
    run = analysis.gather(path)
    for name in TABLES:
        whole = pq.read_table(path / "parquet" / name).to_pandas()
        assert len(whole) == len(getattr(run, name))
        assert set(whole) == set(getattr(run, name))
    rows = (
        duckdb.sql(f"""
        select status, count(*) n, max("metric/accuracy") best, count(seconds) ended
        from read_parquet('{path}/parquet/trials/*.parquet') group by status
    """)
        .df()
        .set_index("status")
    )
    assert rows["n"].to_dict() == run.trials["status"].value_counts().to_dict()
    assert rows.loc["complete", "best"] == run.complete()["metric/accuracy"].max()
    assert rows.loc["running", "ended"] == 0


def test_query(make_run):
    pytest.importorskip("duckdb")
    path = make_run()
    run = analysis.load(path)
    joined = analysis.query(
        path,
        """
        select t.trial_id, count(*) n from trials t join epochs e using (trial_id) where
        t.status = 'complete' group by t.trial_id order by 1
    """,
    )
    assert joined["trial_id"].tolist() == run.complete()["trial_id"].tolist()
    assert (
        joined["n"].sum()
        == run.epochs["trial_id"].isin(run.complete()["trial_id"]).sum()
    )
    hardest = analysis.query(
        path,
        "select class, min(images) n from classes group by class order by n, class",
    )
    assert hardest["class"].tolist() == ["bird", "cat", "dög"]
    fronts = analysis.query(
        path, "select trial_id from fronts where front = 'mean' order by position"
    )
    assert fronts["trial_id"].tolist() == run.front()["trial_id"].tolist()
    assert not (path / "parquet").exists()  # a query writes nothing


def test_a_querys_rows_as_a_file(make_run, tmp_path):
    pytest.importorskip("duckdb")
    rows = analysis.query(make_run(trials=4), "select trial_id from trials order by 1")
    analysis.write_rows(rows, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pandas().equals(rows)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("duckdb", lambda run, folder: analysis.query(run, "select 1")),
        ("matplotlib", lambda run, folder: analysis.write_figures(run, folder)),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    demo_run, tmp_path, monkeypatch, module, use
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=r"pip install 'compression-sweeps\[analysis\]'"
    ):
        use(demo_run, tmp_path)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/hostname')",
        "select * from '/etc/hostname'",
        "copy trials to 'out.csv'",
        "attach 'other.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "select * from run",  # a variable of the process
        "selec",
    ],
)
def test_a_query_reaches_nothing_else(make_run, sql, tmp_path, monkeypatch):
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    path = make_run(trials=4)
    with pytest.raises(ValueError, match="query: "):
        analysis.query(path, sql)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
