"""The commands that read a run."""

import importlib.util
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import analysis
from sweeps.cli.main import app
from sweeps.drive.driver import SweepResult


@pytest.fixture(scope="module")
def synthetic() -> ModuleType:
    """The writer of synthetic run folders of the analysis' own tests."""
    place = Path(__file__).parent.parent / "analysis" / "conftest.py"
    spec = importlib.util.spec_from_file_location("synthetic_runs", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(synthetic: ModuleType, tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "demo", trials=20)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Runs `sweeps` with these arguments: exit code and output."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result.exit_code, result.output

    return invoke


def test_status(run: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, text = call("status", run)
    assert code == 0
    assert "20 trials: 15 complete" in text
    assert "ValueError: stage nvit" in text


def test_a_run_is_found_by_its_name(
    run: Path, call: Callable[..., tuple[int, str]]
) -> None:
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "mine")
    code, text = call("status", "mine")
    assert (code, "20 trials: 15 complete" in text) == (0, True), text


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 1)])
def test_a_sweep_without_a_complete_trial_fails(
    run: Path,
    call: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    complete: bool,
    code: int,
) -> None:
    outcome = SweepResult(
        run, interrupted=False, stopped=False, report=run / "report.html"
    )
    monkeypatch.setattr(
        "sweeps.drive.driver.run_sweep", lambda *args, **kwargs: outcome
    )
    for path in (run / "trials").glob("*/record.json"):
        record = json.loads(path.read_text())
        if record["status"] == "complete" and not complete:
            path.write_text(
                json.dumps(
                    record
                    | {
                        "status": "failed",
                        "error": {"type": "E", "message": "no"},
                    }
                )
            )
    found, text = call("run", "demo")
    assert (found, "no trial is complete; `sweeps status`" in text) == (
        code,
        not complete,
    ), text


def test_front(run: Path, call: Callable[..., tuple[int, str]]) -> None:
    loaded = analysis.load(run)
    code, text = call("front", run)
    assert code == 0
    assert all(trial in text for trial in loaded.front()["trial_id"])
    none = call("front", run, "--where", "accuracy>2")[1]
    assert "no configuration within the bounds passes accuracy>2; the 15" in none
    assert "have accuracy 82.43 % to 97.43 %" in " ".join(none.split())
    best = loaded.complete()["metric/accuracy"].max()
    code, text = call("front", run, "--where", f"accuracy>={best - 1e-9}")
    assert code == 0
    assert len(text.splitlines()) == 3


def test_a_front_fits_into_a_narrow_terminal(
    run: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.cli.terminal.console.width", 80)
    code, text = call("front", run)
    assert code == 0
    assert max(len(line) for line in text.splitlines()) <= 80
    loaded = analysis.load(run)
    words = set(text.split())
    for _, row in loaded.front().iterrows():
        assert row["trial_id"] in words
        assert f"init={row['config/init']}" in words


def test_status_knows_that_the_driver_is_gone(
    run: Path, call: Callable[..., tuple[int, str]]
) -> None:
    owner = {"host": socket.gethostname(), "pid": 2**22 + 1, "token": "x"}
    owner["since"] = "2026-01-02T03:04:05.000+00:00"
    lease = run / "driver.json"
    lease.write_text(json.dumps(owner))
    text = call("status", run)[1]
    assert re.search(r"driver gone since \d\d:\d\d \(process 4194305 on ", text), text
    assert f"`sweeps resume {run}` goes on" in text
    os.utime(lease, (0, 0))
    assert "driver gone since 19" in call("status", run)[1]  # the date too
    lease.write_text(json.dumps(owner | {"pid": os.getpid()}))
    assert f"driven by process {os.getpid()} on" in call("status", run)[1]
    elsewhere = owner | {"host": "node-7"}  # only its heartbeat tells of it
    lease.write_text(json.dumps(elsewhere))
    assert (
        "driven by process 4194305 on node-7 since 2026-01-02" in call("status", run)[1]
    )
    lease.write_text("{")
    assert "driver" not in call("status", run)[1]


def test_pick_tells_how_to_get_the_model(
    run: Path, call: Callable[..., tuple[int, str]]
) -> None:
    knee = analysis.load(run).best().loc["knee", "trial_id"]
    code, text = call("front", run, "--pick", "knee")
    assert code == 0
    assert f"sweeps export --format onnx -o ./demo-{knee}-onnx demo {knee}" in text
    assert f"sweeps reproduce demo {knee}" in text
    assert call("front", run, "--pick", "best accuracy")[1] == call(
        "front", run, "--pick", "best-accuracy"
    )[1].replace("best-accuracy", "best accuracy")


def test_query(run: Path, call: Callable[..., tuple[int, str]]) -> None:
    pytest.importorskip("duckdb")
    code, text = call(
        "query",
        run,
        "select status, count(*) n from trials group by status order by n desc",
        "--csv",
    )
    assert code == 0
    assert text.splitlines()[:2] == ["status,n", "complete,15"]
    assert "1 row" in call("query", run, "select 1 a")[1]
    whole = (
        'select "metric/accuracy" as accuracy, "config/finetune.lr" as lr from trials'
    )
    for short in (
        'select accuracy, "finetune.lr" as lr from trials',
        'select accuracy, "finetune.lr" as lr',
        "select Accuracy as accuracy, lr from trials",
    ):
        assert call("query", run, short, "--csv") == call("query", run, whole, "--csv")
    code, text = call("query", run, "select accuracy where accuracy > 2", "--csv")
    assert (code, text.split()) == (0, ["accuracy"])
    code, text = call("query", run, "select acuracy from trials")
    assert (code, "acuracy" in text) == (2, True)
    out = run.parent / "rows.parquet"
    code, text = call(
        "query", run, "select trial_id, seed from trials order by trial_id", "-o", out
    )
    assert (code, f"{out}  {len(pq.read_table(out))} rows" in text) == (0, True)
    assert pq.read_table(out)["trial_id"].to_pylist() == list(
        analysis.load(run).trials["trial_id"].sort_values()
    )


def test_a_query_fits_into_a_narrow_terminal(
    run: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that have no room are named; numbers are whole, and long text is folded."""
    pytest.importorskip("duckdb")
    monkeypatch.setattr("sweeps.cli.terminal.console.width", 80)
    columns = analysis.load(run).trials.columns
    code, text = call("query", run, "select * from trials")
    title, head, *rows, last = text.splitlines()
    assert (code, title) == (0, f"{len(rows)} rows")
    assert max(map(len, [head, *rows])) <= 80
    shown = head.split()
    assert shown == list(columns[: len(shown)])
    assert "…" not in text
    left_out = columns[len(shown) :]
    assert last.startswith(
        f"{len(left_out)} more columns: {', '.join(left_out[:5])} and"
    )
    assert last.endswith("; --csv prints all, -o FILE.parquet writes all")

    wide = ", ".join(f"{number}.5 as number_{number}" for number in range(100, 120))
    code, text = call("query", run, f"select {wide}")
    _, head, row, last = text.splitlines()
    assert row.split() == [f"{100 + index}.5" for index in range(len(head.split()))]
    assert "more columns: number_" in last

    long = "word " * 30
    code, text = call("query", run, f"select '{long}' as said, 123456789 as count")
    assert max(map(len, text.splitlines())) <= 80
    assert text.split().count("word") == 30
    assert "123456789" in text
    assert "more column" not in text


def test_report_and_what_goes_with_it(
    run: Path, synthetic: ModuleType, call: Callable[..., tuple[int, str]]
) -> None:
    other = synthetic.write_run(run.parent / "other", trials=9, seed=1)
    code, text = call(
        "report",
        run,
        other,
        "-o",
        "both.html",
        "--markdown",
        "out/summary.md",
        "--figures",
        "out/figures",
    )
    assert code == 0
    assert (run.parent / "both.html").stat().st_size > 1e6
    summary = (run.parent / "out" / "summary.md").read_text()
    assert "## Compared by `run`" in summary
    assert "![front](<figures/front.png>)" in summary
    assert (run.parent / "out" / "figures" / "comparison.svg").is_file()
    assert (run / "parquet" / "fronts" / "part-00000.parquet").is_file()
    assert "both.html" in text


def test_mistakes_get_one_message(
    run: Path, call: Callable[..., tuple[int, str]]
) -> None:
    odd = run.parent / "odd"
    odd.mkdir()
    (odd / "run.json").write_text(
        json.dumps(
            {"schema": 1, "objectives": [{"metric": "elsewhere", "mode": "min"}]}
        )
    )
    for arguments, message in [
        (("front", run.parent), "not a run folder: no run.json in"),
        (
            ("front", run, "--where", "acuracy>0.9"),
            "no metric, parameter or column 'acuracy'; near: accuracy",
        ),
        (
            ("front", run, "--pick", "cheapest"),
            "no such pick; valid: best-accuracy, best-gmacs, knee",
        ),
        (
            ("front", run, "--where", "accuracy>2", "--pick", "knee"),
            "nothing to pick from",
        ),
        (
            ("front", run, "--where", "accuracy>2", "--pick", "kne"),
            "--pick kne: no such pick; did you mean 'knee'? valid: best-accuracy",
        ),
        (
            ("front", run, "--pick", "kne", "--max-loss", "5%"),
            "error give one of --pick, --max-loss",
        ),
        (
            ("front", run, "--where", "accuracy>0.9", "--max-loss", "5%"),
            "--max-loss picks from the whole front; leave out --where, --noise",
        ),
        (
            ("query", run, "select 1", "--csv", "-o", "x.parquet"),
            "give one of --csv, --out",
        ),
        (("query", run, ""), "error query: the SQL says nothing"),
        (("front", run, "--noise"), "no objective has measured quartiles"),
        (("query", run, "selec"), "query: "),
        (("report", run, odd, "-o", "x.html"), "share no objective"),
        (("report", run, run), "example -o compared.html"),
        (
            ("report", run, "--by", "size"),
            "no parameter 'size' to compare by; valid: init",
        ),
        (("status", run.parent / "none"), "not a run folder"),
        (("status", run / "run.json"), "run.json: a file, and a run is a folder"),
    ]:
        code, text = call(*arguments)
        assert (code, message in text.replace("\n", " ")) == (2, True), (
            arguments,
            text,
        )
    assert not (run.parent / "x.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["front"],
        ["query", "select * from trials"],
        ["query", "select * from trials", "--csv"],
    ],
)
def test_no_command_prints_the_control_characters_of_a_run(run, words):
    """In a metric's name and value, an error, and a trial's folder."""
    for path in run.glob("trials/*/record.json"):
        record = json.loads(path.read_text())
        record["metrics"] = record["metrics"] | {"x\x1b]52;c;A\x07": "\x9b31m"}
        if record["error"]:
            record["error"]["message"] = "\x1b[2J"
        path.write_text(json.dumps(record))
    (run / "trials/evil\x1b]52;c;A\x07").mkdir()
    done = CliRunner().invoke(app, [words[0], str(run), *words[1:]])
    assert done.exit_code == 0, done.output
    assert not set("\x1b\x07\x9b\r") & set(done.output)
