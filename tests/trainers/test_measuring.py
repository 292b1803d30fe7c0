"""One measurement at a time on a node; the others stand still, and nobody waits for ever."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from trainers import measuring
from trainers.measuring import Member, Node, Use, alone, taking_part

CPU = torch.device("cpu")
EVERYWHERE = Use(frozenset({0, 1}))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path / "node")
    node.make()
    return node


@contextmanager
def worker(node: Node, use: Use = EVERYWHERE, group: str = "a") -> Iterator[Member]:
    """A member of another trial whose thread passes a pause point every few milliseconds."""
    member = Member(node, use, group)
    member.join()
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.005):
            member._look_at = 0.0
            member.pause_point()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield member
    finally:
        stop.set()
        thread.join()
        member.leave()


def held(node: Node, use: Use = EVERYWHERE, **owner: object) -> None:
    """A lease of another host, which nobody can ask whether its process lives."""
    note = json.dumps(use.to_json() | {"seconds": 60.0})
    content = {"host": "elsewhere", "pid": 1, "token": "t", "note": note, **owner}
    node.lease.write_text(json.dumps(content))


def states(node: Node) -> list[str]:
    return sorted(path.suffix for path in node.processes.iterdir())


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PATIENCE_SECONDS", 0.15)
    monkeypatch.setattr(measuring, "MATES_SECONDS", 0.05)


def test_others_stand_still_while_one_measures_and_go_on_after(node: Node) -> None:
    with worker(node) as other:
        with alone(CPU, 5.0, node.folder) as quiet:
            assert quiet
            assert states(node) == [".still"]
            time.sleep(0.05)
        while states(node) != [".busy"]:
            time.sleep(0.005)
        assert other.paused >= 0.05
    assert not list(node.processes.iterdir())
    assert not node.lease.exists()


def test_paused_time_is_no_working_time(node: Node) -> None:
    held(node)
    with taking_part(CPU, "a", node.folder) as member:
        begun, wall = measuring.working_seconds(), time.perf_counter()
        threading.Timer(0.15, node.lease.unlink).start()
        measuring.pause_point()
        wall = time.perf_counter() - wall
        assert wall > 0.1
        assert measuring.paused_seconds() == pytest.approx(wall, abs=0.03)
        measuring.count_as_paused(0.0)
        assert measuring.working_seconds() - begun < 0.03
        paused = member.paused
    assert measuring.working_seconds() - begun < 0.03 + wall - paused + 0.05
    assert measuring.paused_seconds() == 0


def test_one_that_passes_no_pause_point_is_waited_for_shortly(
    node: Node, patience: None
) -> None:
    busy = Member(node, EVERYWHERE, "a")
    busy.join()
    begun = time.monotonic()
    with alone(CPU, 1.0, node.folder) as quiet:
        assert not quiet
    assert 0.15 <= time.monotonic() - begun < 1.0
    os.utime(next(node.processes.iterdir()), (0, time.time() - 100))
    with alone(CPU, 1.0, node.folder) as quiet:
        assert quiet, "it has not come by for a minute, so it is not waited for"


def test_ranks_that_wait_for_one_that_stands_still_are_hardly_waited_for(
    node: Node, patience: None
) -> None:
    stuck = Member(node, EVERYWHERE, "a")
    stuck.join()
    with worker(node, group="a"), alone(CPU, 1.0, node.folder) as quiet:
        assert quiet
        assert states(node) == [".busy", ".still"]
    stuck.leave()


def test_own_ranks_are_not_waited_for(node: Node) -> None:
    with taking_part(CPU, "a", node.folder), worker(node, group="a"):
        begun = time.monotonic()
        with alone(CPU, 1.0, node.folder) as quiet:
            assert quiet
        assert time.monotonic() - begun < 1.0


def test_a_dead_process_is_forgotten(node: Node) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    member = Member(node, EVERYWHERE, "a")
    member.join()
    path = next(node.processes.iterdir())
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"pid": process.pid}))
    with alone(CPU, 1.0, node.folder) as quiet:
        assert quiet
    assert not list(node.processes.iterdir())


@pytest.mark.parametrize(
    "owner",
    [
        {"note": ""},
        {"note": '{"cores": 3}'},
        {"note": json.dumps(EVERYWHERE.to_json() | {"seconds": 0.05})},
    ],
    ids=["no note", "not ours", "beyond its time"],
)
def test_a_holder_that_says_nothing_or_hangs_is_passed_over(
    node: Node, owner: dict[str, object]
) -> None:
    held(node, **owner)
    member = Member(node, EVERYWHERE, "a")
    begun = time.monotonic()
    member.pause_point()
    assert time.monotonic() - begun < 0.5


def test_a_stopped_holder_is_passed_over_and_waited_for_when_it_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SILENCE_SECONDS", 0.1)
    held(node)
    member = Member(node, EVERYWHERE, "a")
    member.pause_point()
    assert 0.1 <= member.paused < 0.5
    member._look_at = 0.0
    before = member.paused
    member.pause_point()
    assert member.paused == before, "it is still stopped"
    held(node, beat=1)
    member._look_at = 0.0
    member.pause_point()
    assert member.paused >= before + 0.1


def test_a_killed_holder_stops_nobody(node: Node) -> None:
    code = (
        "import sys, time, torch; from pathlib import Path\n"
        "from trainers.measuring import alone\n"
        "with alone(torch.device('cpu'), 60.0, Path(sys.argv[1])):\n"
        "    print('holds', flush=True); time.sleep(60)"
    )
    with worker(node) as other:
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(node.folder)], stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline()
        assert states(node) == [".still"]
        holder.kill()
        holder.wait()
        while states(node) != [".busy"]:
            time.sleep(0.01)
        with alone(CPU, 1.0, node.folder) as quiet:
            assert quiet, "the next one takes the lease over"
        assert other.paused > 0


def test_only_who_shares_cores_or_the_gpu_stands_still() -> None:
    left, right = Use(frozenset({0})), Use(frozenset({1}))
    assert not left.disturbs(right)
    assert left.disturbs(Use(frozenset({0, 1})))
    assert Use(frozenset({0}), "gpu-a").disturbs(Use(frozenset(), "gpu-a"))
    assert not Use(frozenset({0}), "gpu-b").disturbs(Use(frozenset(), "gpu-a"))


def test_a_gpu_needs_no_shared_core_where_there_are_enough(node: Node) -> None:
    other = Member(node, Use(frozenset({0, 1}), "gpu-b", threads=1), "b")
    other.join()
    mine = Use(frozenset({0, 1}), "gpu-a", threads=1)
    assert measuring._with_room(node, mine, "a").cores == frozenset()
    third = Member(node, Use(frozenset({0, 1}), "gpu-c", threads=1), "c")
    third.join()
    assert measuring._with_room(node, mine, "a") == mine


def test_two_that_measure_take_turns(node: Node) -> None:
    inside, most = [0], [0]

    def measure() -> None:
        for _ in range(3):
            with alone(CPU, 5.0, node.folder):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.01)
                inside[0] -= 1

    threads = [threading.Thread(target=measure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_folder_that_cannot_be_written_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "node"
    with taking_part(CPU, "a", folder), alone(CPU, 1.0) as quiet:
        assert not quiet
        measuring.pause_point()
    assert "SWEEPS_NODE_FOLDER" in caplog.text


def test_ctrl_c_ends_a_pause(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held(node)
    member = Member(node, EVERYWHERE, "a")
    member.join()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        member.pause_point()
    assert states(node) == [".busy"]
