"""The lease: one owner at a time, taken over from the dead, refused or waited for."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from trainers.files import read_json
from trainers.lease import Lease, LeaseHeldError, Owner, one_at_a_time
from trainers.processes import process_exists

# Two processes that hold the lease at the same time find each other's folder and say so.
COMPETE = """
import sys, time
from pathlib import Path
from trainers.lease import Lease
path, work = Path(sys.argv[1]), Path(sys.argv[2])
with Lease(path, heartbeat_seconds=0.05, silence_seconds=0.3).held_unless(lambda: False):
    work.mkdir()
    time.sleep(0.1)
    work.rmdir()
"""


def quick(path: Path, silence: float = 20.0) -> Lease:
    return Lease(path, heartbeat_seconds=0.05, silence_seconds=silence)


def write(path: Path, **owner: object) -> None:
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t", **owner}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "lease.json"


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_file_names_its_owner_and_goes_with_the_block(path: Path) -> None:
    with quick(path).held() as owner:
        content = read_json(path)
        assert content is not None
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
        assert Lease(path).owner() == owner
        time.sleep(0.3)
        seen = Lease(path).owner()
        assert seen is not None
        assert seen.beat > 0
        assert seen.token == owner.token
    assert not path.exists()


def test_an_error_in_the_block_frees_the_lease(path: Path) -> None:
    with pytest.raises(KeyError), quick(path).held():
        raise KeyError
    assert not path.exists()


def test_a_living_owner_is_named(path: Path) -> None:
    with quick(path).held() as owner:
        with pytest.raises(LeaseHeldError, match=str(os.getpid())) as refused:
            quick(path).clear()
        assert refused.value.owner.token == owner.token
        assert refused.value.path == path
    quick(path).clear()  # nobody holds it: nothing happens
    assert not path.exists()


def test_an_owner_whose_process_is_gone_is_replaced_at_once(
    path: Path, dead_pid: int
) -> None:
    path.parent.mkdir()
    write(path, host=socket.gethostname(), pid=dead_pid)
    begun = time.monotonic()
    with quick(path).held() as owner:
        assert time.monotonic() - begun < 5
        assert owner.pid == os.getpid()


@pytest.mark.parametrize(
    "content", ['{"host": "elsewhere", "pid": 1, "token": "t"}', "{"]
)
def test_a_silent_owner_is_replaced(path: Path, content: str) -> None:
    """One on another host, and one that was killed while it wrote."""
    path.parent.mkdir()
    path.write_text(content)
    begun = time.monotonic()
    with quick(path, silence=0.4).held():
        assert 0.3 < time.monotonic() - begun < 10


def test_a_heartbeat_on_another_host_is_seen(path: Path) -> None:
    path.parent.mkdir()
    write(path, beat=0)
    beat = threading.Timer(0.2, write, [path], {"beat": 1})
    beat.start()
    with (
        pytest.raises(LeaseHeldError, match="process 1 on elsewhere"),
        quick(path).held(),
    ):
        pass
    beat.join()


def test_a_machine_that_slept_takes_nobody_for_dead(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its processes were stopped alike; the owner's next heartbeat comes a little later."""
    path.parent.mkdir()
    write(path, beat=0)
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 1000 if clock[0] == 0 else seconds
        if clock[0] > 1001:
            write(path, beat=1)

    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr("trainers.lease.time", fake)
    with pytest.raises(LeaseHeldError), quick(path, silence=10.0).held():
        pass
    assert clock[0] < 1010


def test_waiting_ends_when_the_lease_is_free_or_no_longer_wanted(path: Path) -> None:
    freed = threading.Event()

    def hold() -> None:
        with quick(path).held():
            freed.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    while not path.exists():
        time.sleep(0.01)
    with quick(path).held_unless(lambda: True) as owner:
        assert owner is None
    assert path.exists()  # the other one's
    threading.Timer(0.3, freed.set).start()
    with quick(path).held_unless(lambda: False) as owner:
        assert owner is not None
        assert freed.is_set()
    holder.join()


def test_who_slept_too_long_does_not_take_the_lease_back(path: Path) -> None:
    with quick(path).held():
        write(path)
        time.sleep(0.3)
        assert Lease(path).owner() == Owner("elsewhere", 1, "t")
    assert path.exists()


def test_a_dead_lease_gets_one_new_owner_at_a_time(path: Path, dead_pid: int) -> None:
    path.parent.mkdir()
    write(path, host=socket.gethostname(), pid=dead_pid)
    command = [sys.executable, "-c", COMPETE, str(path), str(path.parent / "work")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4


def test_process_exists(dead_pid: int) -> None:
    assert process_exists(os.getpid())
    assert process_exists(1)  # belongs to somebody else
    assert not process_exists(dead_pid)


def test_without_locks_the_work_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    path.parent.mkdir()
    write(path)
    with one_at_a_time(path.with_suffix(".lock")), quick(path, silence=0.2).held():
        pass
