"""What killed processes leave is removed, and nothing that a living one writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import leftovers
from trainers.files import write_atomic
from trainers.leftovers import SILENT_SECONDS, is_leftover, remove_leftovers, tag
from trainers.remote import Remote

DEAD = subprocess.Popen([sys.executable, "-c", ""])
DEAD.wait()


def of_process(pid: int, host: str | None = None) -> str:
    found, _, rest = tag().split("-")
    return f"{host or found}-{pid}-{rest}"


def test_a_process_that_is_gone_left_it(tmp_path: Path) -> None:
    gone, mine = of_process(DEAD.pid), tag()
    below = tmp_path / "trials" / "00000"
    for name in (f".record.json.{gone}.tmp", f".record.json.{mine}.tmp", "record.json"):
        write_atomic(below / name, b"x")
    for name in (f".new-{gone}", f".new-{mine}"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / f".probe-{gone}").touch()
    (tmp_path / f"record-{gone}").touch()  # not hidden: the user's
    assert remove_leftovers(tmp_path) == 2
    assert remove_leftovers(tmp_path, below=True) == 1
    assert remove_leftovers(tmp_path / "nowhere") == 0
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f".record.json.{mine}.tmp", "record.json", f"record-{gone}"}
    assert (tmp_path / f".new-{mine}").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        ".new-abcdef0123",  # of an earlier version
        ".probe-975efa75",
        ".report.html.1234.tmp",  # of the analysis
        ".record.json.OF_ANOTHER_HOST.tmp",
    ],
)
def test_of_whom_nothing_is_known_a_day_must_pass(name: str) -> None:
    name = name.replace("OF_ANOTHER_HOST", of_process(os.getpid(), "0dd0dd"))
    assert not is_leftover(name, SILENT_SECONDS - 1)
    assert is_leftover(name, SILENT_SECONDS + 1)


@pytest.mark.parametrize("name", ["record.json", ".git", ".hidden", "a.tmp", ".x.lock"])
def test_other_files_stay_for_ever(name: str) -> None:
    assert not is_leftover(name, 100 * SILENT_SECONDS)


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (run / f".new-{of_process(DEAD.pid)}").symlink_to(elsewhere)
    (run / ".folder").symlink_to(elsewhere)
    assert remove_leftovers(run, below=True) == 1
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_probes_in_a_store(scheme: str, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    mine = bucket / f".probe-{tag()}"
    for path in (mine, bucket / f".probe-{of_process(DEAD.pid)}", bucket / "run.json"):
        path.touch()
    Remote(f"{scheme}://{bucket}").check_writable()
    assert {path.name for path in bucket.iterdir()} == {mine.name, "run.json"}


def test_the_tag_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f".probe-{tag()}"
    assert not leftovers.is_of_gone_process(name)
    monkeypatch.setattr(leftovers, "process_exists", lambda pid: pid != os.getpid())
    assert leftovers.is_of_gone_process(name)
