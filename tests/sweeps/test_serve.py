"""The live page: what it notices, whom it refuses, and what it writes."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.notes import Note, read_notes
from sweeps.cli import serve as serve_command
from sweeps.drive.watch import Changes, Watch
from sweeps.run.driving import driving
from sweeps.run.requests import read_requests
from sweeps.serve import live
from sweeps.serve.guard import Guard, is_loopback
from sweeps.serve.live import LiveRun
from tests.analysis.conftest import write_run
from tests.sweeps.serving import asked, begun, epoch, served


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", trials=12)


def test_a_watch_notices_what_changes_and_nothing_else(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.drive.watch._UNSURE_NS", 0)
    (tmp_path / "trials").mkdir()
    watch = Watch(tmp_path)
    watch.look()
    record = begun(tmp_path, "00000")
    assert watch.look() == Changes(trials=True, epochs=True)
    assert watch.look() == Changes(trials=False, epochs=False)
    epoch(record, 0)
    assert watch.look() == Changes(trials=False, epochs=True)
    trial = watch.running.trials["00000"]
    assert [row["accuracy"] for row in trial.curve] == [0.5]
    assert "epoch 1 of 4" in trial.said(())
    record.finish("complete", metrics={"accuracy": 0.9})
    assert watch.look().trials
    assert not watch.running.trials
    assert watch.look() == Changes(trials=False, epochs=False)
    (tmp_path / "notes").mkdir()
    assert watch.look().trials
    shutil.rmtree(tmp_path / "trials")
    assert watch.look().trials is False


def test_who_may_look(demo: Path) -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("node.example")
    with served(demo) as server:
        assert "token" not in server.address
        for host, status in (
            ("localhost:1", 200),
            ("[::1]:1", 200),
            ("evil.example", 403),
            ("", 403),
        ):
            assert asked(server, "GET", "/run/demo/data", Host=host)[0] == status, host
        assert asked(server, "GET", "/run/other/")[0] == 404
        assert asked(server, "GET", "/run/demo/../../etc/passwd")[0] == 404
        status, headers, _ = asked(server, "GET", "/")
        assert (status, headers["Location"]) == (302, "/run/demo/")
        tag = asked(server, "GET", "/run/demo/data")[1]["ETag"]
        again = asked(server, "GET", "/run/demo/data", If_None_Match=tag)
        assert (again[0], again[2]) == (304, b"")
    with served(demo, Guard("127.0.0.1", needs_token=True)) as server:
        assert asked(server, "GET", "/run/demo/")[0] == 403
        assert asked(server, "GET", "/?token=wrong")[0] == 403
        token = server.guard.token
        status, headers, _ = asked(server, "GET", f"/?token={token}")
        assert status == 303
        assert "HttpOnly; SameSite=Strict" in headers["Set-Cookie"]
        kept = headers["Set-Cookie"].split(";")[0]
        assert asked(server, "GET", "/", Cookie=kept)[0] == 302
        assert asked(server, "GET", "/", Cookie="sweeps-token=wrong")[0] == 403


def test_wishes_are_written_where_the_driver_looks(
    demo: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "demo"
    shutil.copytree(demo, run)
    with served(run) as server:
        good = {"X_Sweeps_Secret": server.guard.secret}
        here = f"127.0.0.1:{server.server_address[1]}"

        def wish(what: str, content: Any, **headers: str) -> tuple[int, Any]:
            found = asked(server, "POST", f"/run/demo/{what}", content, **headers)
            return found[0], json.loads(found[2])

        assert wish("stop", {})[0] == 403
        assert wish("stop", {}, X_Sweeps_Secret="wrong")[0] == 403
        assert wish("stop", {}, **good, Origin="http://evil.example")[0] == 403
        status, said = wish("stop", {}, **good, Origin=f"http://{here}")
        assert (status, "nobody drives" in said["error"]) == (400, True)
        assert wish("note", {"trial": "../x", "note": "n"}, **good)[0] == 400
        assert wish("note", {"trial": "00001", "note": "n" * 5000}, **good)[0] == 400
        noted = {"trial": "00001", "note": "Good.", "tags": ["ship"]}
        assert wish("note", noted, **good)[0] == 200
        assert read_notes(run, []) == {"00001": Note("Good.", ("ship",))}
        with driving(run):
            assert wish("stop", {}, **good)[1]["stopping"]
            assert (run / "stop").exists()
            assert not wish("resume", {}, **good)[1]["stopping"]
            said = wish("try", {"stages.finetune.lr": 0.01}, **good)[1]
            assert said["requests"][0]["text"] == "stages.finetune.lr: 0.01"
            assert wish("try", [1], **good)[0] == 400
            assert wish("dance", {}, **good)[0] == 404
        assert len(read_requests(run)) == 1
    assert asked_nothing_else(run)


def asked_nothing_else(run: Path) -> bool:
    """Whether nothing but notes, requests and the driver's files were written."""
    known = {"run.json", "trials", "notes", "requests"}
    return {path.name for path in run.iterdir()} <= known


def test_a_live_run_reads_only_what_has_changed(
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LOOKS", 0.0)
    run = tmp_path / "demo"
    shutil.copytree(demo, run)
    shown = LiveRun("demo", run)
    first = shown.edition().version
    read: list[str] = []
    from analysis.tables import store

    known = store.read_trial

    def noted(folder: Path, *rest: Any) -> Any:
        read.append(folder.name)
        return known(folder, *rest)

    monkeypatch.setattr(store, "read_trial", noted)
    running = set(shown.watch.running.trials)
    begun(run, "00700").finish("complete", metrics={"accuracy": 0.9, "gmacs": 0.1})
    wait_for(lambda: shown.edition().version != first)
    assert set(read) == running | {"00700"}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_in_a_store_is_followed_by_what_is_fetched(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(live, "SECONDS_BETWEEN_FETCHES", 0.0)
    monkeypatch.setenv("SWEEPS_MIRROR", str(tmp_path / "mirror"))
    stored = tmp_path / "bucket/demo"
    stored.mkdir(parents=True)
    shutil.copy(demo / "run.json", stored)
    begun(stored, "00000").finish("complete", metrics={"accuracy": 0.8, "gmacs": 0.2})
    (shown,) = serve_command.live_runs([stored.as_uri()])
    assert not shown.is_writable
    first = shown.edition().version
    begun(stored, "00700").finish("complete", metrics={"accuracy": 0.9, "gmacs": 0.1})
    wait_for(lambda: shown.edition().version != first)
    assert (shown.folder / "trials/00700/record.json").exists()
    assert tmp_path / "mirror" in shown.folder.parents


def test_a_store_that_is_away_leaves_what_was_fetched(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(live, "SECONDS_BETWEEN_FETCHES", 0.0)
    faults: list[Exception] = []

    def fetch() -> None:
        if faults:
            raise faults[0]

    shown = LiveRun("demo", demo, fetch)
    version = shown.edition().version
    faults.append(OSError("no route to bucket"))
    shown.look()
    line = shown.now()["line"]
    assert line.startswith("The store does not answer")
    assert "no route to bucket" in line
    assert shown.edition().version == version
    faults.clear()
    shown.look()
    assert "does not answer" not in shown.now()["line"]
