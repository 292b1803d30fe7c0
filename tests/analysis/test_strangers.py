"""A run folder from somebody else reaches nothing outside itself and is read within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.tables import json_files, parts
from analysis.tables.records import MOST_METRICS
from analysis.text import clean_text, printable

BELONGS_TO_ANOTHER = b"not yours"


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder of the reader's own, with files named as a run's tables are."""
    folder = tmp_path / "elsewhere"
    for path in (folder / "part-00007.parquet", folder / "trials/part-00007.parquet"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(BELONGS_TO_ANOTHER)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("link", ["parquet", "parquet/trials", "parquet/fronts"])
def test_a_link_leads_no_write_out_of_the_run(make_run, elsewhere, link):
    run = make_run(trials=3)
    before = content(elsewhere)
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(elsewhere)

    with pytest.raises(ValueError, match="a link leads out of the run folder to"):
        analysis.gather(run)

    assert content(elsewhere) == before
    analysis.load(run)  # writes nothing, so it may


@pytest.mark.parametrize("name", ["parquet/trials/part-00000.parquet", "report.html"])
def test_a_file_that_is_a_link_is_replaced_not_followed(make_run, tmp_path, name):
    run = make_run(trials=3)
    target = tmp_path / "mine"
    target.write_bytes(BELONGS_TO_ANOTHER)
    (run / name).parent.mkdir(exist_ok=True, parents=True)
    (run / name).symlink_to(target)

    analysis.write_report(analysis.gather(run))

    assert target.read_bytes() == BELONGS_TO_ANOTHER
    assert not (run / name).is_symlink()


def test_only_parts_of_the_manifest_are_removed(make_run):
    run = make_run(trials=3)
    analysis.gather(run)
    mine = run / "parquet/trials/part-12345.parquet"
    mine.write_bytes(BELONGS_TO_ANOTHER)
    analysis.gather(run)
    assert mine.read_bytes() == BELONGS_TO_ANOTHER


@pytest.mark.parametrize("name", ["record.json", "epochs.jsonl"])
def test_a_huge_file_is_not_read(make_run, monkeypatch, name):
    run = make_run(trials=2)
    monkeypatch.setattr(json_files, "LARGEST_BYTES", 10_000)
    os.truncate(run / "trials/00001" / name, 10_001)  # sparse: takes no room

    problems = analysis.load(run).problems

    assert any(
        f"00001/{name}: cannot be read (larger than" in text for text in problems
    )


def test_a_huge_run_json_is_named(make_run, monkeypatch):
    run = make_run(trials=1)
    with (run / "run.json").open("r+b") as file:
        file.truncate(20 * 2**30)
    assert any(
        "run.json: cannot be read (larger" in p for p in analysis.load(run).problems
    )


def table_of(**columns: pa.Array) -> pa.Table:
    return pa.table(columns)


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_table_that_unpacks_to_far_more_is_refused(tmp_path, use_dictionary):
    """300 MB of text in a file of less than 1 MB."""
    path = tmp_path / "bomb.parquet"
    rows = 3000
    texts = pa.array(["x" * 100_000] * rows, pa.large_string())
    data = table_of(trial_id=pa.array(["00000"] * rows), error=texts)
    pq.write_table(data, path, compression="zstd", use_dictionary=use_dictionary)
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match="are no table of a run"):
        parts.read_file(path)


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "twice.parquet"
    ids = pa.array(["00000"])
    pq.write_table(pa.table([ids, ids], names=["trial_id", "trial_id"]), path)
    with pytest.raises(ValueError, match="columns that are there twice: trial_id"):
        parts.read_file(path)


def test_many_metrics_are_cut_after_the_objectives(make_run):
    run = make_run(trials=1)
    path = run / "trials/00000/record.json"
    record = json.loads(path.read_text())
    made_up = {f"m{i}": i for i in range(MOST_METRICS + 50)}
    record["metrics"] = made_up | record["metrics"]
    path.write_text(json.dumps(record))

    loaded = analysis.load(run)

    metrics = [c for c in loaded.trials if c.startswith("metric/")]
    assert len(metrics) <= MOST_METRICS + 2  # and the two that no trial has
    assert {f"metric/{o.metric}" for o in loaded.objectives} <= set(metrics)
    assert any("2,0" in p and "metrics; 2,000 are read" in p for p in loaded.problems)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", r"\x1b]52;c;ZXZpbA==\x07"),
        ("\x9b31mred", r"\x9b31mred"),
        ("a\rb\x7f", r"a\rb\x7f"),
        ("evil\u202etxt.exe", r"evil\u202etxt.exe"),
        ("café\tλ\n中", "café\tλ\n中"),
    ],
)
def test_control_characters_are_spelled_out(text, printed):
    assert printable(text) == printed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/x?region=eu", "s3://***@bucket/x?region=eu"),
        ("http://user@host:5000 and more", "http://***@host:5000 and more"),
        (
            "s3://b?scheme=http&Secret_Key=abc&x=1",
            "s3://b?scheme=http&Secret_Key=***&x=1",
        ),
        ("someone@example.org", "someone@example.org"),
        ("https://example.org/a@b?c=d", "https://example.org/a@b?c=d"),
    ],
)
def test_credentials_in_addresses_are_not_shown(text, shown):
    assert clean_text(text) == shown


def test_a_run_with_credentials_shows_none(make_run):
    """In the spec, the command, an error and a configuration's value."""
    run = make_run(trials=3)
    header = json.loads((run / "run.json").read_text())
    header["spec"]["storage"] = "s3://KEY:SECRET@bucket"
    header["command"] = "sweeps run x storage=s3://KEY:SECRET@bucket"
    (run / "run.json").write_text(json.dumps(header))
    record = json.loads((run / "trials/00000/record.json").read_text())
    record |= {"status": "failed"}
    record["error"] = {
        "type": "OSError",
        "message": "s3://KEY:SECRET@bucket",
        "traceback": "",
    }
    (run / "trials/00000/record.json").write_text(json.dumps(record))

    page = analysis.write_report(analysis.load(run), run / "page.html").read_text()

    assert "s3://***@bucket" in page
    assert "SECRET" not in page
